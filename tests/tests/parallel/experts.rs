//! Experts that ranks deal out, against one rank: 20 steps from one seed.

use burn_titan_tests::runs::{Run, random_tokens};

use crate::equal::{SAVED, assert_close, biases, curve};

/// Twelve experts of which a token meets three; nothing else in it divides.
const EXPERTS: &str = "
run: {output_dir: HERE/out}
model:
  name: qwen3_moe
  overrides:
    {n_layers: 4, dim: 36, n_heads: 6, n_kv_heads: 3, head_dim: 10, n_experts: 12, top_k: 3,
     expert_dim: 37, vocab_size: 331, sequence_balance_loss: 0.3, router_z_loss: 0.05}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 20, seq_len: 37, local_batch_size: 2, global_batch_size: 8}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

const TP2: &str = "parallelism.tensor_parallel_degree=2";
const CP2: &str = "parallelism.context_parallel_degree=2";
const PP2: &str = "parallelism.pipeline_parallel_degree=2";
const EP2: &str = "parallelism.expert_parallel_degree=2";
const EP4: &str = "parallelism.expert_parallel_degree=4";
const COPIES: &str = "parallelism.data_parallel_replicate_degree=2";
const NO_SP: &str = "parallelism.enable_sequence_parallel=false";
const FULL: &str = "activation_checkpoint.mode=full";

fn experts() -> Run {
    let run = Run::new(EXPERTS);
    run.write("tokens.bin", &random_tokens(7, 3001, 331));
    run
}

/// The load of every layer's busiest expert, at every step.
fn loads(run: &Run) -> Vec<Vec<f64>> {
    run.metrics().into_iter().map(|metrics| metrics.expert_load).collect()
}

#[test]
fn every_mesh_equals_one_rank() {
    let one = experts();
    one.train(&SAVED);
    let (reference, met, moved) = (curve(&one), loads(&one), biases(&one));
    assert!(moved.len() == 4 && moved.iter().all(|(_, bias)| bias.iter().any(|x| *x != 0.0)));
    assert!(reference.iter().all(|row| row[2] > 0.3 * 4.0), "four layers add to the loss");
    assert!(met.iter().all(|layers| layers.len() == 4 && layers.iter().all(|load| *load >= 1.0)));
    let zero_bubble = "parallelism.pipeline_parallel_schedule=zb1p";
    let always = "parallelism.fsdp_reshard_after_forward=always";
    let cases: [(usize, &[&str]); 20] = [
        (2, &[]),
        (2, &[TP2]),
        (2, &[TP2, NO_SP]),
        (2, &[EP2]),
        (4, &[EP4]),
        (2, &[TP2, EP2]),
        (2, &[TP2, EP2, NO_SP]),
        (4, &[EP2]),
        (4, &[EP2, FULL, always]),
        (4, &[TP2, EP2]),
        (4, &[TP2, EP4]),
        (4, &[PP2, EP2]),
        (4, &[PP2, EP2, zero_bubble]),
        (2, &[CP2, EP2]),
        (4, &[CP2, EP4, FULL]),
        (4, &[COPIES, EP2]),
        (8, &[COPIES, TP2, EP4]),
        (8, &[TP2, CP2, EP4]),
        (8, &[TP2, PP2, EP4]),
        (8, &[TP2, PP2, EP4, zero_bubble, FULL]),
    ];
    for (ranks, words) in cases {
        let run = experts();
        run.simulate(ranks, &[words, &SAVED].concat());
        let name = format!("{ranks} ranks, {words:?}");
        assert_close(&name, &reference, &curve(&run));
        assert_eq!((&met, &moved), (&loads(&run), &biases(&run)), "{name}");
        assert!(run.metrics().iter().all(|metrics| metrics.dropped == Some(0)), "{name}");
    }
}

/// The models of `configs/`, at their own sizes.
#[test]
fn debug_flavors_equal_one_rank() {
    let cases: [(usize, &[&str]); 8] = [
        (2, &[EP2]),
        (4, &[EP4]),
        (2, &[TP2, EP2]),
        (4, &[EP2]),
        (4, &[TP2, EP4]),
        (4, &[PP2, EP2]),
        (2, &[CP2, EP2]),
        (8, &[TP2, PP2, EP4]),
    ];
    for family in ["qwen3_moe", "deepseek_v3"] {
        let model = format!("model={{name: {family}, flavor: debug}}");
        let debug = |ranks: usize, words: &[&str]| {
            let run = experts();
            run.simulate(ranks, &[&[model.as_str(), "training.seq_len=16"], words].concat());
            run
        };
        let one = debug(1, &[]);
        for (ranks, words) in cases {
            let run = debug(ranks, words);
            let name = format!("{family}, {ranks} ranks, {words:?}");
            assert_close(&name, &curve(&one), &curve(&run));
            assert_eq!(loads(&one), loads(&run), "{name}");
        }
    }
}

/// One word, over and over: a router sends all of it to the same experts, and most ranks get nothing.
#[test]
fn ranks_that_no_token_is_sent_to() {
    let words = ["model.overrides.top_k=1", "training.steps=20"];
    let same = || {
        let run = experts();
        run.write("tokens.bin", &[5_u16; 3001].map(u16::to_le_bytes).concat());
        run
    };
    let one = same();
    one.train(&words);
    // All of them to one expert of twelve.
    assert!(loads(&one).iter().flatten().any(|load| *load == 12.0), "{:?}", loads(&one));
    let four = same();
    four.simulate(4, &[&words[..], &[EP4]].concat());
    for (a, b) in one.losses().iter().zip(four.losses()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    assert_eq!(loads(&one), loads(&four));
}

#[test]
fn bf16_and_int8() {
    for words in [&["precision.compute=bfloat16"][..], &["comm.quantize=all"]] {
        let run = |ranks: usize, more: &[&str]| {
            let run = experts();
            run.simulate(ranks, &[words, more].concat());
            run
        };
        let (one, four) = (run(1, &[]), run(4, &[EP2]));
        let off = |i: usize| {
            let (a, b) = (curve(&one), curve(&four));
            a.iter().zip(&b).map(|(a, b)| ((a[i] - b[i]) / a[i]).abs()).fold(0.0, f64::max)
        };
        let (a, b) = (loads(&one), loads(&four));
        let load =
            a.concat().iter().zip(b.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("{words:?}: loss {:.1e}, norm {:.1e}, loads {load:.3}", off(0), off(1));
        // Until the first step is taken, only what crosses ranks as int8 differs; then close scores round another way.
        assert!(words.contains(&"comm.quantize=all") || a[0] == b[0], "{words:?}");
        assert!(off(0) < 1e-3 && off(1) < 1e-2 && load < 0.3, "{words:?}");
    }
}

/// Three ranks that have two experts each, of either family.
#[test]
fn six_experts_on_three_ranks() {
    let deepseek = "model={name: deepseek_v3, overrides: {n_layers: 3, dim: 44, n_heads: 6, q_lora_rank: null, \
                    kv_lora_rank: 13, qk_nope_head_dim: 7, qk_rope_head_dim: 6, v_head_dim: 9, ffn_dim: 77, \
                    n_experts: 6, top_k: 2, expert_dim: 37, n_groups: 3, chosen_groups: 2, vocab_size: 331}}";
    for model in ["model.overrides.n_experts=6", deepseek] {
        let run = |ranks: usize, split: &[&str]| {
            let run = experts();
            let words = [&[model, "training.global_batch_size=12"][..], &SAVED, split].concat();
            run.simulate(ranks, &words);
            run
        };
        let (one, three) = (run(1, &[]), run(3, &["parallelism.expert_parallel_degree=3"]));
        assert_close(model, &curve(&one), &curve(&three));
        assert_eq!((loads(&one), biases(&one)), (loads(&three), biases(&three)), "{model}");
    }
}

/// The rank whose loss broke finds the unit with the help of those that have its experts.
#[test]
fn a_broken_step_is_reported() {
    let broken = ["optimizer.lr=1e15", "training.max_grad_norm=0", "training.local_batch_size=1"];
    let message = |ranks: usize, split: &[&str]| {
        let words = [&broken[..], &["training.global_batch_size=4"], split].concat();
        let error = experts().try_simulate(ranks, &words).expect_err("it diverges").to_string();
        let (what, rest) = error.split_once(" (documents: ").expect("the documents are named");
        let token = rest.split_once("tokens.bin: ").expect("the file is named").1.to_string();
        (what.replace(" of data-parallel rank 0", ""), token)
    };
    let one = message(1, &[]);
    assert!(one.0.contains("the first unit whose output is not is `layers.0`"), "{one:?}");
    for (ranks, split) in [(2, &[EP2][..]), (4, &[EP4]), (4, &[EP2, TP2]), (4, &[EP2, PP2])] {
        assert_eq!(message(ranks, split), one, "{split:?}");
    }
}

#[test]
fn experts_that_do_not_divide_are_refused() {
    let refused = |ranks: usize, words: &[&str]| {
        let error = experts().try_simulate(ranks, words).expect_err("it is refused");
        error.to_string()
    };
    let six = "model.overrides.n_experts=6";
    let found = refused(4, &[six, EP4]);
    let message = "`parallelism.expert_parallel_degree` is 4, but `layers.0.feed_forward.experts.w1` has 6 experts, \
                   which do not divide by 4 ranks";
    assert!(found.contains(message), "{found}");
    let found = refused(4, &["parallelism.tensor_parallel_degree=4", EP2]);
    assert!(found.contains("is no multiple of `parallelism.tensor_parallel_degree`"), "{found}");
    let dense = "model={name: llama3, flavor: debug}";
    let found = refused(2, &[dense, EP2]);
    assert!(found.contains("but the model has no experts"), "{found}");
}
