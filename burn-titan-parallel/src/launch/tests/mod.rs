//! Environments and what comes of them, and real processes.

mod environment;
#[cfg(unix)]
mod local;
#[cfg(unix)]
mod processes;
mod refusals;

use super::*;

/// What comes of words such as `--rank=1 RANK=1`, where `~` stands for a space.
pub(super) fn read_words(words: &str) -> Result<Place, LaunchError> {
    let mut flags = Flags::default();
    let mut variables = Vec::new();
    for word in words.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap();
        let number = || Some(value.parse().unwrap());
        match name {
            "--ranks" => flags.ranks = number(),
            "--rank" => flags.rank = number(),
            "--world-size" => flags.world_size = number(),
            "--local-rank" => flags.local_rank = number(),
            "--rendezvous" => flags.rendezvous = Some(value.parse()?),
            _ => variables.push((name, value.replace('~', " "))),
        }
    }
    read(&flags, &variables.into_iter().collect())
}

pub(super) fn said(words: &str) -> String {
    match read_words(words) {
        Ok(Place::Rank(launch)) => launch.to_string(),
        Ok(Place::Host(host)) => host.to_string(),
        Err(error) => error.to_string(),
    }
}

/// What comes of it, up to the source.
pub(super) fn short(words: &str) -> String {
    said(words).split("; from").next().unwrap().to_string()
}

pub(super) const TORCHRUN: &str =
    "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=n1 MASTER_PORT=29400";
pub(super) const SLURM: &str = "SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=1 SLURM_JOB_ID=4711 SLURM_STEP_ID=0 \
     SLURM_JOB_NODELIST=node[001-002] SLURM_NODEID=1 SLURM_STEP_TASKS_PER_NODE=2(x2)";
pub(super) const MPI: &str = "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 \
     OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_RANK=3 PMIX_NAMESPACE=prterun-n1-77@1";
pub(super) const PODS: &str =
    "PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=job-node-0-0.job PET_MASTER_PORT=29500";
pub(super) const JOBSET: &str =
    "JOB_COMPLETION_INDEX=2 WORLD_SIZE=4 JOBSET_NAME=llama HOSTNAME=llama-train-0-2";
