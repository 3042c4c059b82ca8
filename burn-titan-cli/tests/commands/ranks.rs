//! Which ranks run: what the command line and the environment say, and what of it is refused.

use burn_titan_core::metrics::read_metrics;
use burn_titan_parallel::launch::local::free_port;

use crate::sandbox::{Ended, Sandbox};

const DEGREES: [&str; 2] =
    ["parallelism.data_parallel_replicate_degree=2", "parallelism.data_parallel_shard_degree=2"];

/// The first line of what is told of a command that must be refused.
fn refusal(words: &[&str]) -> String {
    let ended = Sandbox::new().run(words);
    assert_eq!(ended.code, Some(2), "{words:?}: {}", ended.stderr);
    ended.stderr.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn the_degrees_must_make_the_ranks_that_are_started() {
    let message = "error: 2 x 2 = 4 ranks, but 3 were started";
    for started in
        [&["train", "run.yaml", "--ranks", "3"][..], &["validate", "run.yaml", "--ranks", "3"]]
    {
        assert_eq!(refusal(&[started, &DEGREES[..]].concat()), message, "{started:?}");
    }
    let simulated = [&["train", "run.yaml", "--simulate", "3"], &DEGREES[..]].concat();
    assert_eq!(refusal(&simulated), message);
    let alone = [&["train", "run.yaml"], &DEGREES[..]].concat();
    assert_eq!(refusal(&alone), "error: 2 x 2 = 4 ranks, but 1 was started");
    // Without a number, any will do; with one, the batch is held against it.
    let sandbox = Sandbox::new();
    sandbox.succeed(&[&["validate", "run.yaml"], &DEGREES[..]].concat());
    sandbox.succeed(&["validate", "run.yaml", "--ranks", "5"]);
    assert_eq!(
        refusal(&["validate", "run.yaml", "--ranks", "4", "training.global_batch_size=12"]),
        "error: a global batch of 12 sequences is not a multiple of local_batch_size x \
         data-parallel ranks = 2 x 4 = 8"
    );
}

#[test]
fn what_says_ranks_twice_is_refused() {
    let simulated = ["train", "run.yaml", "--simulate", "2"];
    assert_eq!(
        refusal(&[&simulated[..], &["--ranks", "2"]].concat()),
        "error: the argument '--simulate <N>' cannot be used with '--ranks <N>'"
    );
    assert_eq!(
        refusal(&[&simulated[..], &["debug.link_mbit_per_second=10"]].concat()),
        "error: --simulate: debug.link_mbit_per_second limits ranks that are processes: say --ranks"
    );
    assert_eq!(
        refusal(&["train", "run.yaml", "--ranks", "2", "--rank", "1", "--world-size", "2"]),
        "error: --rank 1, --world-size 2, --ranks 2: --ranks starts ranks, --rank is one of them; \
         leave one out"
    );
    let output = Sandbox::new()
        .command(&simulated)
        .env("RANK", "1")
        .env("WORLD_SIZE", "2")
        .env("MASTER_ADDR", "node001")
        .env("MASTER_PORT", "29500")
        .output()
        .expect("the binary runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.starts_with(
            "error: --simulate: this process is one of several ranks already: rank 1 of 2"
        ),
        "{stderr}"
    );
}

/// What was taken is said, and by a lone process nothing.
#[test]
fn one_rank_trains_however_it_is_started() {
    let of_slurm = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "0"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("SLURM_JOB_ID", "7"),
        ("SLURM_STEP_NODELIST", "node001"),
    ];
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], Option<&'a str>);
    let cases: [Case; 4] = [
        (&[], &[], None),
        (
            &["--ranks", "1"],
            &[],
            Some("starts 1 of 1 ranks here, the first is rank 0; from --ranks (--ranks 1)"),
        ),
        (&["--simulate", "1"], &[], None),
        (&[], &of_slurm, Some("rank 0 of 1, local rank 0, rendezvous node001:61447; from Slurm (")),
    ];
    for (words, variables, said) in cases {
        let sandbox = Sandbox::new();
        let mut command = sandbox.command(&[&["train", "run.yaml"], words].concat());
        let output = command.envs(variables.iter().copied()).output().expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {stderr}");
        let first = stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with(said.unwrap_or("llama3 debug (")), "{words:?}: {stderr}");
        let rows = read_metrics(&sandbox.path("out/metrics.jsonl")).unwrap_or_default();
        assert_eq!(rows.len(), 4, "{words:?}");
    }
}

#[test]
fn ranks_with_other_secrets_do_not_meet() {
    let sandbox = Sandbox::new();
    let rendezvous = format!("127.0.0.1:{}", free_port().expect("some port is free"));
    let rank = |rank: &str, secret: Option<&str>| {
        let words = ["train", "run.yaml", "--world-size", "2", "--rendezvous", &rendezvous];
        // Rank 0 waits in vain for so long; rank 1 is refused as soon as it is there.
        let times = ["--rank", rank, "comm.join_timeout_seconds=6"];
        let mut command = sandbox.command(&[&words[..], &times].concat());
        command.env_remove("BURN_TITAN_TOKEN").envs(secret.map(|it| ("BURN_TITAN_TOKEN", it)));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().expect("the binary runs")
    };
    let ended = |child: std::process::Child| {
        let output = child.wait_with_output().expect("the process ends");
        let text = |bytes| String::from_utf8(bytes).expect("the binary writes UTF-8");
        Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    };
    let without = ended(rank("0", None));
    assert_eq!(without.code, Some(2), "{}", without.stderr);
    assert!(without.stderr.contains("error: BURN_TITAN_TOKEN is not set: "), "{}", without.stderr);
    let [zero, one] = [rank("0", Some("one")), rank("1", Some("another"))].map(ended);
    assert_eq!((zero.code, one.code), (Some(138), Some(2)), "{}\n{}", zero.stderr, one.stderr);
    assert!(one.stderr.contains("the tokens are not the same"), "{}", one.stderr);
    assert!(zero.stderr.contains("error: rank 1 did not join within 6s"), "{}", zero.stderr);
}
