//! Environments, and the rank or the exact message that comes of them.

use super::*;

#[test]
fn each_family_says_which_rank_this_is() {
    for (words, want) in [
        ("", "rank 0 of 1, local rank 0; from no launcher"),
        ("PATH=/bin HOSTNAME=box", "rank 0 of 1, local rank 0; from no launcher"),
        (
            "--rank=1 --world-size=2 --rendezvous=n1:29500",
            "rank 1 of 2, local rank 0, rendezvous n1:29500; from the command line (--rank 1, --world-size 2, --rendezvous n1:29500)",
        ),
        (
            "BURN_TITAN_RANK=1 BURN_TITAN_WORLD_SIZE=2 BURN_TITAN_LOCAL_RANK=1 BURN_TITAN_LOCAL_SIZE=2 BURN_TITAN_RENDEZVOUS=127.0.0.1:61500 BURN_TITAN_TOKEN=secret",
            "rank 1 of 2, local rank 1 of 2, rendezvous 127.0.0.1:61500; from --ranks (BURN_TITAN_RANK=1, BURN_TITAN_WORLD_SIZE=2, BURN_TITAN_LOCAL_RANK=1, BURN_TITAN_LOCAL_SIZE=2, BURN_TITAN_RENDEZVOUS=127.0.0.1:61500)",
        ),
        (
            TORCHRUN,
            "rank 3 of 4, local rank 1 of 2, rendezvous n1:29400; from torchrun (RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2, MASTER_ADDR=n1, MASTER_PORT=29400)",
        ),
        (
            PODS,
            "rank 1 of 2, local rank 0, rendezvous job-node-0-0.job:29500; from Kubeflow (PET_NODE_RANK=1, PET_NNODES=2, PET_MASTER_ADDR=job-node-0-0.job, PET_MASTER_PORT=29500)",
        ),
        (
            SLURM,
            "rank 3 of 4, local rank 1 of 2, rendezvous node001:62055; from Slurm (SLURM_PROCID=3, SLURM_NTASKS=4, SLURM_LOCALID=1, SLURM_NODEID=1, SLURM_STEP_TASKS_PER_NODE=2(x2), SLURM_JOB_NODELIST=node[001-002], SLURM_JOB_ID=4711, SLURM_STEP_ID=0)",
        ),
        (
            MPI,
            "rank 3 of 4, local rank 1 of 2; from MPI (OMPI_COMM_WORLD_RANK=3, OMPI_COMM_WORLD_SIZE=4, OMPI_COMM_WORLD_LOCAL_RANK=1, OMPI_COMM_WORLD_LOCAL_SIZE=2)",
        ),
        (
            JOBSET,
            "rank 2 of 4, local rank 0, rendezvous llama-train-0-0.llama:29500; from Kubernetes (JOB_COMPLETION_INDEX=2, WORLD_SIZE=4, JOBSET_NAME=llama, HOSTNAME=llama-train-0-2)",
        ),
    ] {
        assert_eq!(said(words), want, "{words}");
    }
}

#[test]
fn the_first_family_in_order_decides() {
    let order = [
        "--rank=3 --world-size=4",
        "BURN_TITAN_RANK=3 BURN_TITAN_WORLD_SIZE=4 BURN_TITAN_LOCAL_RANK=0 BURN_TITAN_LOCAL_SIZE=1 BURN_TITAN_RENDEZVOUS=a:1",
        TORCHRUN,
        "PET_NNODES=4 PET_NODE_RANK=3 PET_MASTER_ADDR=b PET_MASTER_PORT=1",
        MPI,
        SLURM,
        "JOB_COMPLETION_INDEX=3 WORLD_SIZE=4",
    ];
    let families = [
        "the command line",
        "--ranks",
        "torchrun",
        "Kubeflow",
        "MPI",
        "Slurm",
        "Kubernetes",
        "no launcher",
    ];
    for (first, family) in families.iter().enumerate() {
        let words = order[first.min(order.len())..].join(" ");
        let said = said(&words);
        assert!(said.contains(&format!("; from {family}")), "{words}: {said}");
    }
}

#[test]
fn details_of_each_family() {
    for (words, want) in [
        // Flags.
        ("--rank=0 --world-size=1", "rank 0 of 1, local rank 0"),
        (
            "--rank=1 --world-size=2 --rendezvous=localhost:9",
            "rank 1 of 2, local rank 1, rendezvous localhost:9",
        ),
        (
            "--rank=1 --world-size=2 --rendezvous=[::1]:9",
            "rank 1 of 2, local rank 1, rendezvous [::1]:9",
        ),
        ("--rank=1 --world-size=2 --local-rank=5", "rank 1 of 2, local rank 5"),
        ("--rank=0 --world-size=2 RANK=junk SLURM_PROCID=7", "rank 0 of 2, local rank 0"),
        ("--rendezvous=[fe80::1%eth0]:9", "rank 0 of 1, local rank 0, rendezvous [fe80::1%eth0]:9"),
        // torchrun.
        ("RANK=0 WORLD_SIZE=1", "rank 0 of 1, local rank 0"),
        (
            "RANK=~1~ WORLD_SIZE=2 MASTER_ADDR=::1 MASTER_PORT=9",
            "rank 1 of 2, local rank 1, rendezvous [::1]:9",
        ),
        (
            "RANK=1 WORLD_SIZE=2 MASTER_ADDR=n1 MASTER_PORT=9",
            "rank 1 of 2, local rank 0, rendezvous n1:9",
        ),
        (
            "RANK=1 WORLD_SIZE=2 MASTER_ADDR=n1 MASTER_PORT=9 --local-rank=1",
            "rank 1 of 2, local rank 1, rendezvous n1:9",
        ),
        (
            "RANK=1 WORLD_SIZE=2 MASTER_ADDR=n1 MASTER_PORT=9 --rendezvous=n2:8",
            "rank 1 of 2, local rank 0, rendezvous n2:8",
        ),
        // The agent of torchrun listens on the port itself.
        (
            &format!("{TORCHRUN} TORCHELASTIC_USE_AGENT_STORE=True"),
            "rank 3 of 4, local rank 1 of 2, rendezvous n1:62169",
        ),
        (
            &format!("{TORCHRUN} TORCHELASTIC_USE_AGENT_STORE=False"),
            "rank 3 of 4, local rank 1 of 2, rendezvous n1:29400",
        ),
        // MPI.
        ("PMI_RANK=1 PMI_SIZE=2", "rank 1 of 2, local rank 0"),
        (
            "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 MASTER_PORT=9",
            "rank 1 of 2, local rank 1 of 2, rendezvous 127.0.0.1:9",
        ),
        (
            "MV2_COMM_WORLD_RANK=1 MV2_COMM_WORLD_SIZE=2 MASTER_ADDR=n1 MASTER_PORT=9",
            "rank 1 of 2, local rank 0, rendezvous n1:9",
        ),
        (
            "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE=a",
            "rank 0 of 2, local rank 0 of 2, rendezvous 127.0.0.1:64652",
        ),
        (
            "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n[4-5]",
            "rank 2 of 4, local rank 0, rendezvous n4:61447",
        ),
        // Slurm.
        (
            "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEPID=3 SLURM_JOBID=4096 SLURM_NODELIST=a,b",
            "rank 0 of 2, local rank 0, rendezvous a:61440",
        ),
        (
            "SLURM_PROCID=1 SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=gpu[7,9]-a SLURM_JOB_NODELIST=gpu[1-9]-a SLURM_JOB_ID=1 SLURM_STEP_ID=1",
            "rank 1 of 2, local rank 0, rendezvous gpu7-a:62462",
        ),
        (
            "SLURM_PROCID=4 SLURM_NTASKS=5 SLURM_STEP_ID=0 SLURM_NODEID=2 SLURM_STEP_TASKS_PER_NODE=2(x2),1",
            "rank 4 of 5, local rank 0 of 1",
        ),
        (
            "SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_JOB_ID=1 SLURM_JOB_NODELIST=a MASTER_ADDR=ib0",
            "rank 1 of 2, local rank 0, rendezvous ib0:61441",
        ),
        (
            "SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_JOB_ID=1 SLURM_JOB_NODELIST=a MASTER_PORT=9",
            "rank 1 of 2, local rank 0, rendezvous a:9",
        ),
        ("SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_JOB_ID=1", "rank 0 of 1, local rank 0"),
        (
            "SLURM_JOB_ID=1 SLURM_NTASKS=4 SLURM_PROCID=0 --ranks=4",
            "starts 4 of 4 ranks here, the first is rank 0",
        ),
        // Kubeflow.
        (
            &format!("{PODS} PET_NPROC_PER_NODE=auto"),
            "rank 1 of 2, local rank 0, rendezvous job-node-0-0.job:29500",
        ),
        (
            &format!("{PODS} PET_NPROC_PER_NODE=8"),
            "starts 8 of 16 ranks here, the first is rank 8, rendezvous job-node-0-0.job:29500",
        ),
        (
            &format!("{PODS} PET_NPROC_PER_NODE=gpu --ranks=4"),
            "starts 4 of 8 ranks here, the first is rank 4, rendezvous job-node-0-0.job:29500",
        ),
        (
            &format!("{PODS} PET_NPROC_PER_NODE=4 --ranks=4 --rendezvous=x:1"),
            "starts 4 of 8 ranks here, the first is rank 4, rendezvous x:1",
        ),
        (
            "PET_NNODES=1 PET_NPROC_PER_NODE=4 PET_MASTER_ADDR=a PET_MASTER_PORT=1",
            "starts 4 of 4 ranks here, the first is rank 0",
        ),
        ("PET_NPROC_PER_NODE=2", "starts 2 of 2 ranks here, the first is rank 0"),
        (
            "PET_NNODES=2 PET_NODE_RANK=0 PET_RDZV_ENDPOINT=a:7",
            "rank 0 of 2, local rank 0, rendezvous a:7",
        ),
        // The first operator of Kubeflow, which sets RANK too.
        (
            &format!(
                "{PODS} PET_NPROC_PER_NODE=auto RANK=1 WORLD_SIZE=2 MASTER_ADDR=m MASTER_PORT=1"
            ),
            "rank 1 of 2, local rank 0, rendezvous m:1",
        ),
        (
            &format!("{PODS} PET_NPROC_PER_NODE=4 RANK=1 WORLD_SIZE=2 MASTER_ADDR=m MASTER_PORT=1"),
            "starts 4 of 8 ranks here, the first is rank 4, rendezvous job-node-0-0.job:29500",
        ),
        (
            &format!("{PODS} PET_NPROC_PER_NODE=4 RANK=1 WORLD_SIZE=8 MASTER_ADDR=m MASTER_PORT=1"),
            "starts 4 of 8 ranks here, the first is rank 4, rendezvous job-node-0-0.job:29500",
        ),
        // A torchrun that Kubeflow's variables have set up.
        (
            &format!("{PODS} PET_NPROC_PER_NODE=2 {TORCHRUN}"),
            "rank 3 of 4, local rank 1 of 2, rendezvous n1:29400",
        ),
        // Kubernetes.
        (
            "JOB_COMPLETION_INDEX=1 WORLD_SIZE=2 MASTER_ADDR=job-0.svc",
            "rank 1 of 2, local rank 0, rendezvous job-0.svc:29500",
        ),
        (
            "JOB_COMPLETION_INDEX=1 WORLD_SIZE=2 MASTER_ADDR=job-0.svc MASTER_PORT=7",
            "rank 1 of 2, local rank 0, rendezvous job-0.svc:7",
        ),
        ("JOB_COMPLETION_INDEX=1 WORLD_SIZE=2", "rank 1 of 2, local rank 0"),
        ("JOB_COMPLETION_INDEX=3 --ranks=2", "starts 2 of 2 ranks here, the first is rank 0"),
        (
            &format!("{PODS} JOB_COMPLETION_INDEX=1"),
            "rank 1 of 2, local rank 0, rendezvous job-node-0-0.job:29500",
        ),
        // --ranks alone.
        ("--ranks=3", "starts 3 of 3 ranks here, the first is rank 0"),
        (
            "--ranks=3 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_STEP_ID=0",
            "starts 3 of 3 ranks here, the first is rank 0",
        ),
        // A child has the same arguments as its parent.
        (
            "--ranks=2 BURN_TITAN_RANK=1 BURN_TITAN_WORLD_SIZE=2 BURN_TITAN_LOCAL_RANK=1 BURN_TITAN_LOCAL_SIZE=2 BURN_TITAN_RENDEZVOUS=127.0.0.1:9 SLURM_PROCID=5",
            "rank 1 of 2, local rank 1 of 2, rendezvous 127.0.0.1:9",
        ),
    ] {
        assert_eq!(short(words), want, "{words}");
    }
}

#[test]
fn launchers_nest() {
    let slurm = |rank, tasks| {
        format!(
            "SLURM_PROCID={rank} SLURM_NTASKS={tasks} SLURM_STEP_ID=0 SLURM_JOB_NODELIST=n[1-9]"
        )
    };
    // One torchrun a host under srun; one torchrun for all; numbered in another order.
    for words in [
        format!("{TORCHRUN} {}", slurm(1, 2)),
        format!("{TORCHRUN} {}", slurm(0, 1)),
        format!("{TORCHRUN} {}", slurm(3, 4)),
        format!("{TORCHRUN} TORCHELASTIC_RUN_ID=x {}", slurm(0, 2)),
        format!(
            "RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=n1 MASTER_PORT=1 TORCHELASTIC_RUN_ID=x {}",
            slurm(0, 2)
        ),
    ] {
        assert!(
            short(&words).starts_with(if words.contains("RANK=3") {
                "rank 3 of 4"
            } else {
                "rank 1 of 2"
            }),
            "{}",
            said(&words)
        );
    }
    // mpirun starts its daemons by srun, and none on its own host.
    // So ranks there see a step and ranks here none, and must find the same rendezvous.
    let job = "SLURM_JOB_ID=9 SLURM_JOB_NODELIST=n[0-9]";
    for step in ["SLURM_PROCID=0 SLURM_NTASKS=3 SLURM_STEP_ID=1 SLURM_STEP_NODELIST=n[1-9]", ""] {
        assert_eq!(
            short(&format!("{MPI} {job} {step}")),
            "rank 3 of 4, local rank 1 of 2, rendezvous n0:61449"
        );
    }
    // Where srun itself started the ranks, the numbers are the same.
    assert!(said(&format!("PMI_RANK=3 PMI_SIZE=4 {SLURM}")).contains("; from MPI"));
}

#[test]
fn a_rendezvous_that_is_needed_and_not_there_is_named() {
    let Ok(Place::Rank(launch)) = read_words(MPI) else { panic!("no rank") };
    assert_eq!(
        launch.rendezvous().unwrap_err().to_string(),
        "rank 3 of 4 knows no rendezvous: MPI does not say where rank 0 is; set MASTER_ADDR and MASTER_PORT, or say --rendezvous HOST:PORT"
    );
}

#[test]
fn all_ranks_of_a_job_derive_the_same_rendezvous() {
    let said = |rank| {
        let words = format!(
            "SLURM_PROCID={rank} SLURM_NTASKS=64 SLURM_STEP_ID=2 SLURM_JOB_ID=18446744073709551615 SLURM_STEP_NODELIST=n[01-64]"
        );
        let Ok(Place::Rank(launch)) = read_words(&words) else { panic!("no rank") };
        launch.rendezvous().unwrap().clone()
    };
    assert!((0..64).all(|rank| said(rank) == said(0)));
    assert!(said(0).port >= slurm::FIRST_PORT);
}
