//! Open MPI, PMI (MPICH, Intel MPI, `srun --mpi=pmi2`) and MVAPICH.
//!
//! MPI has no address of rank 0 in the environment, and its own engine needs none. For the others:
//! `MASTER_ADDR` and `MASTER_PORT`; within Slurm the first host of the job; loopback where all ranks
//! are on this host.

use super::agree::{Claim, half_set};
use super::error::LaunchError;
use super::place::Family;
use super::slurm;
use super::variables::{Reader, Setting, Variables};

/// How one implementation names rank, size, local rank and local size.
struct Names {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

const IMPLEMENTATIONS: [Names; 3] = [
    Names {
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Names {
        rank: "MV2_COMM_WORLD_RANK",
        size: "MV2_COMM_WORLD_SIZE",
        local_rank: "MV2_COMM_WORLD_LOCAL_RANK",
        local_size: "MV2_COMM_WORLD_LOCAL_SIZE",
    },
    Names {
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_size: "MPI_LOCALNRANKS",
    },
];

/// The names of one job of mpirun, from which all its ranks derive the same port.
const JOBS: [&str; 2] = ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"];

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>, LaunchError> {
    for names in &IMPLEMENTATIONS {
        let mut read = Reader::new(variables);
        let rank = read.index(names.rank)?;
        let size = read.count(names.size)?;
        let (Some(rank), Some(size)) = (rank, size) else {
            let missing = [(names.rank, rank.is_none()), (names.size, size.is_none())];
            half_set::<()>(Family::Mpi, read.used, &missing)?;
            continue;
        };
        let local_rank = read.index(names.local_rank)?;
        let local_size = read.count(names.local_size)?;
        let mut claim = Claim::new(Family::Mpi, rank, size, read.used);
        claim.local_rank = local_rank;
        claim.local_size = local_size;
        // An mpirun or mpiexec says where its ranks are; under `srun --mpi=pmi2` Slurm does.
        claim.renumbers = local_rank.is_some();
        check_pmix(&claim, variables)?;
        return claim.checked().map(Some);
    }
    Ok(None)
}

/// `PMIX_RANK` is set by whoever runs PMIx, with no size; it must name the same rank.
fn check_pmix(claim: &Claim, variables: &Variables) -> Result<(), LaunchError> {
    let mut read = Reader::new(variables);
    match read.index("PMIX_RANK")? {
        Some(rank) if rank != claim.rank => Err(LaunchError::Refused {
            set: [claim.settings[..1].to_vec(), read.used].concat(),
            cause: "they name different ranks; unset the one that is left over".to_string(),
        }),
        _ => Ok(()),
    }
}

/// Adds where rank 0 is, as far as that follows from something.
pub(super) fn rendezvous(claim: &mut Claim, variables: &Variables) -> Result<(), LaunchError> {
    if claim.host.is_some() || claim.local_size != Some(claim.world_size) {
        return slurm::rendezvous(claim, variables);
    }
    claim.host = Some("127.0.0.1".to_string());
    let job = JOBS.iter().find_map(|name| variables.get(name).map(|job| (*name, job)));
    if let (None, Some((name, job))) = (claim.port, job) {
        claim.settings.push(Setting::new(name, job));
        claim.port = Some(port_of(job));
    }
    Ok(())
}

/// A port for a name, the same for all who know it (FNV-1a), above the ports that Linux gives out.
fn port_of(job: &str) -> u16 {
    let hash = job.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| {
        (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    slurm::FIRST_PORT + (hash % slurm::PORTS) as u16
}

/// Refuses PMIx alone, where no other family says which rank this is.
pub(super) fn leftover(variables: &Variables) -> Result<(), LaunchError> {
    let set = variables.settings(&["PMIX_RANK"]);
    half_set::<()>(
        Family::Mpi,
        set,
        &[("OMPI_COMM_WORLD_RANK", true), ("OMPI_COMM_WORLD_SIZE", true)],
    )
    .map(|_| ())
}
