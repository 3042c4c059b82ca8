//! Environments that are refused, with the exact message.

use super::*;

#[test]
fn what_cannot_be_true_is_refused_with_the_values() {
    let disagree = "they disagree about this process; unset one of them, or say --rank, --world-size and --rendezvous";
    let pods = "PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=a PET_MASTER_PORT=1";
    for (words, want) in [
        // Values that cannot be read.
        ("RANK=", "RANK is empty: give it a value or unset it"),
        ("RANK=0 WORLD_SIZE=1 MASTER_ADDR=~", "MASTER_ADDR is empty: give it a value or unset it"),
        ("RANK=one WORLD_SIZE=2", "RANK=one: expected a whole number from 0 to 1048575"),
        ("RANK=-1 WORLD_SIZE=2", "RANK=-1: expected a whole number from 0 to 1048575"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE=0: expected a whole number from 1 to 1048576"),
        (
            "RANK=0 WORLD_SIZE=99999999999999999999",
            "WORLD_SIZE=99999999999999999999: expected a whole number from 1 to 1048576",
        ),
        (
            "RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=70000",
            "MASTER_PORT=70000: expected a whole number from 1 to 65535",
        ),
        (
            "RANK=0 WORLD_SIZE=2 MASTER_ADDR=tcp://a MASTER_PORT=1",
            "MASTER_ADDR=tcp://a: expected the name or the address of a host, without scheme and port",
        ),
        (
            "--rendezvous=node001",
            "--rendezvous node001: expected HOST:PORT, for example node001:29500 or [fe80::1]:29500",
        ),
        (
            "--rendezvous=:1",
            "--rendezvous :1: expected HOST:PORT, for example node001:29500 or [fe80::1]:29500",
        ),
        (
            "--rendezvous=a:0",
            "--rendezvous a:0: expected HOST:PORT, for example node001:29500 or [fe80::1]:29500",
        ),
        (
            "--rendezvous=fe80::1:1",
            "--rendezvous fe80::1:1: expected HOST:PORT, for example node001:29500 or [fe80::1]:29500",
        ),
        ("--ranks=0", "--ranks 0: expected a whole number from 1 to 1048576"),
        ("--rank=0 --world-size=0", "--world-size 0: expected a whole number from 1 to 1048576"),
        // Ranks that do not exist.
        (
            "RANK=3 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1",
            "RANK=3, WORLD_SIZE=2: rank 3 does not exist among 2: they count from 0 to 1",
        ),
        (
            "--rank=2 --world-size=2",
            "--rank 2, --world-size 2: rank 2 does not exist among 2: they count from 0 to 1",
        ),
        (
            "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=2 OMPI_COMM_WORLD_LOCAL_SIZE=2",
            "OMPI_COMM_WORLD_RANK=0, OMPI_COMM_WORLD_SIZE=4, OMPI_COMM_WORLD_LOCAL_RANK=2, OMPI_COMM_WORLD_LOCAL_SIZE=2: local rank 2 does not exist among 2: they count from 0 to 1",
        ),
        (
            "RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=2",
            "RANK=0, WORLD_SIZE=1, LOCAL_WORLD_SIZE=2: 2 ranks on this host are more than the 1 of the world",
        ),
        // Half of a family.
        (
            "RANK=1",
            "RANK=1, but WORLD_SIZE, MASTER_ADDR and MASTER_PORT are not set; they belong together (torchrun): set what is missing or unset the rest",
        ),
        (
            "RANK=1 WORLD_SIZE=2 MASTER_ADDR=a",
            "RANK=1, WORLD_SIZE=2, MASTER_ADDR=a, but MASTER_PORT is not set; they belong together (torchrun): set what is missing or unset the rest",
        ),
        (
            "WORLD_SIZE=2 MASTER_ADDR=a",
            "WORLD_SIZE=2, MASTER_ADDR=a, but RANK is not set; they belong together (torchrun): set what is missing or unset the rest",
        ),
        (
            "--rank=1",
            "--rank 1, but --world-size is not set; they belong together (the command line): set what is missing or unset the rest",
        ),
        (
            "OMPI_COMM_WORLD_RANK=1",
            "OMPI_COMM_WORLD_RANK=1, but OMPI_COMM_WORLD_SIZE is not set; they belong together (MPI): set what is missing or unset the rest",
        ),
        (
            "PMIX_RANK=1",
            "PMIX_RANK=1, but OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE are not set; they belong together (MPI): set what is missing or unset the rest",
        ),
        (
            "SLURM_STEP_ID=0 SLURM_PROCID=1",
            "SLURM_PROCID=1, but SLURM_NTASKS is not set; they belong together (Slurm): set what is missing or unset the rest",
        ),
        (
            "PET_NNODES=2",
            "PET_NNODES=2, but PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT are not set; they belong together (Kubeflow): set what is missing or unset the rest",
        ),
        (
            "PET_NODE_RANK=1",
            "PET_NODE_RANK=1, but PET_NNODES is not set; they belong together (Kubeflow): set what is missing or unset the rest",
        ),
        (
            "BURN_TITAN_RANK=1 BURN_TITAN_WORLD_SIZE=2",
            "BURN_TITAN_RANK=1, BURN_TITAN_WORLD_SIZE=2, but BURN_TITAN_LOCAL_RANK, BURN_TITAN_LOCAL_SIZE and BURN_TITAN_RENDEZVOUS are not set; they belong together (--ranks): set what is missing or unset the rest",
        ),
        (
            "JOB_COMPLETION_INDEX=3",
            "JOB_COMPLETION_INDEX=3: Kubernetes does not say how many pods the Job has; set WORLD_SIZE to its completions, or say --rank 0 --world-size 1 if each pod is a run of its own",
        ),
        // Launchers that disagree.
        (
            &format!("RANK=0 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=1 {SLURM}"),
            &format!(
                "torchrun says rank 0 of 4 (RANK=0, WORLD_SIZE=4), but Slurm says rank 3 of 4 (SLURM_PROCID=3, SLURM_NTASKS=4): {disagree}"
            ),
        ),
        (
            &format!("{TORCHRUN} SLURM_PROCID=1 SLURM_NTASKS=3 SLURM_STEP_ID=0"),
            &format!(
                "torchrun says rank 3 of 4 (RANK=3, WORLD_SIZE=4), but Slurm says rank 1 of 3 (SLURM_PROCID=1, SLURM_NTASKS=3): {disagree}"
            ),
        ),
        (
            &format!("{SLURM} PMI_RANK=0 PMI_SIZE=4"),
            &format!(
                "MPI says rank 0 of 4 (PMI_RANK=0, PMI_SIZE=4), but Slurm says rank 3 of 4 (SLURM_PROCID=3, SLURM_NTASKS=4): {disagree}"
            ),
        ),
        (
            &format!("{pods} PET_NPROC_PER_NODE=4 RANK=0 WORLD_SIZE=8 MASTER_ADDR=a MASTER_PORT=1"),
            &format!(
                "torchrun says rank 0 of 8 (RANK=0, WORLD_SIZE=8), but Kubeflow says rank 1 of 2 (PET_NODE_RANK=1, PET_NNODES=2): {disagree}"
            ),
        ),
        (
            "SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2 WORLD_SIZE=16",
            "WORLD_SIZE=16, SLURM_PROCID=1, SLURM_NTASKS=2: Slurm has started 2 ranks; unset WORLD_SIZE",
        ),
        (
            "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 PMIX_RANK=0",
            "OMPI_COMM_WORLD_RANK=1, PMIX_RANK=0: they name different ranks; unset the one that is left over",
        ),
        (
            "--ranks=2 --rank=0 --world-size=2",
            "--rank 0, --world-size 2, --ranks 2: --ranks starts ranks, --rank is one of them; leave one out",
        ),
        (
            &format!("--ranks=2 {SLURM}"),
            "--ranks 2 would start a world of its own in each of 4 processes: Slurm says rank 3 of 4 (SLURM_PROCID=3, SLURM_NTASKS=4); leave --ranks out, or start one process",
        ),
        (
            &format!("--ranks=2 {pods} PET_NPROC_PER_NODE=4"),
            "--ranks 2, PET_NPROC_PER_NODE=4: Kubeflow asks for 4 ranks in this pod; leave --ranks out",
        ),
        // Each family's own.
        (
            "PET_NNODES=1:3",
            "PET_NNODES=1:3: a range of hosts is for elastic jobs; burn-titan needs one fixed number",
        ),
        (
            "PET_NNODES=1048576 PET_NODE_RANK=0 PET_MASTER_ADDR=a PET_MASTER_PORT=1 PET_NPROC_PER_NODE=8",
            "PET_NODE_RANK=0, PET_NNODES=1048576, PET_NPROC_PER_NODE=8, PET_MASTER_ADDR=a, PET_MASTER_PORT=1: 1048576 x 8 ranks are more than 1048576",
        ),
        (
            "SLURM_JOB_ID=9 SLURM_NTASKS=8 SLURM_PROCID=0",
            "SLURM_JOB_ID=9, SLURM_NTASKS=8: this is a job of Slurm, but the process was not started by srun; put `srun` before the command, or say --ranks N",
        ),
        (
            "SLURM_JOB_ID=9 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_ID=4294967290",
            "SLURM_JOB_ID=9, SLURM_NTASKS=8: this is a job of Slurm, but the process was not started by srun; put `srun` before the command, or say --ranks N",
        ),
        (
            "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_JOB_NODELIST=n[1-",
            "SLURM_JOB_NODELIST: cannot read the list of hosts `n[1-` at character 2: a bracket that is not closed",
        ),
        (
            "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_NODEID=2 SLURM_STEP_TASKS_PER_NODE=1(x2)",
            "SLURM_STEP_TASKS_PER_NODE=1(x2): expected tasks of each host, such as 2(x3),1, for at least 3 hosts",
        ),
        (
            "JOB_COMPLETION_INDEX=0 WORLD_SIZE=2 JOB_INDEX=1",
            "JOB_COMPLETION_INDEX=0, WORLD_SIZE=2, JOB_INDEX=1: each Job of a JobSet counts from 0; use one Job with all pods (replicas: 1), or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT",
        ),
        (
            "JOB_COMPLETION_INDEX=1 WORLD_SIZE=2 JOBSET_NAME=a HOSTNAME=b-w-0-1",
            "JOBSET_NAME=a, HOSTNAME=b-w-0-1: the host is not called a-...-1, so rank 0 cannot be found by name; set MASTER_ADDR",
        ),
    ] {
        assert_eq!(said(words), want, "{words}");
    }
}
