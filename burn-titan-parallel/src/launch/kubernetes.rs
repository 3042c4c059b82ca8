//! An indexed Job of Kubernetes, alone or in a JobSet: `JOB_COMPLETION_INDEX` is the rank.
//!
//! Kubernetes tells a pod neither how many there are nor where the first one is; the manifest does.
//! `WORLD_SIZE` is required. Rank 0 is at `MASTER_ADDR`, or in a JobSet, whose pods are called
//! `<jobset>-<job>-<number>-<index>.<jobset>`, at the name that follows from `HOSTNAME` and `JOBSET_NAME`.

use super::agree::Claim;
use super::error::LaunchError;
use super::place::Family;
use super::variables::{Reader, Variables};

/// Where rank 0 listens unless `MASTER_PORT` says otherwise: pods share no ports.
const PORT: u16 = 29_500;

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>, LaunchError> {
    let mut read = Reader::new(variables);
    let (Some(rank), Some(world_size)) =
        (read.index("JOB_COMPLETION_INDEX")?, read.count("WORLD_SIZE")?)
    else {
        return Ok(None);
    };
    one_job(&mut read)?;
    let mut claim = Claim::new(Family::Kubernetes, rank, world_size, read.used);
    claim.local_rank = Some(0);
    claim.checked().map(Some)
}

/// In a JobSet with several Jobs of one kind each counts from 0.
fn one_job(read: &mut Reader) -> Result<(), LaunchError> {
    match read.index("JOB_INDEX")? {
        Some(job) if job > 0 => Err(LaunchError::Refused {
            set: read.used.clone(),
            cause: "each Job of a JobSet counts from 0; use one Job with all pods (replicas: 1), or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT".to_string(),
        }),
        _ => Ok(()),
    }
}

/// Sets the name of pod 0, if this is a JobSet.
pub(super) fn rendezvous(claim: &mut Claim, variables: &Variables) -> Result<(), LaunchError> {
    claim.port = claim.port.or(Some(PORT));
    if claim.host.is_some() {
        return Ok(());
    }
    let mut read = Reader::new(variables);
    let rank = claim.rank;
    let Some(jobset) = read.host("JOBSET_NAME")? else { return Ok(()) };
    let Some(own) = read.host("HOSTNAME")? else { return Ok(()) };
    let ours = own.starts_with(&format!("{jobset}-"));
    let job = own.strip_suffix(&format!("-{rank}")).filter(|_| ours);
    match job {
        Some(job) => {
            claim.host = Some(format!("{job}-0.{jobset}"));
            claim.settings.append(&mut read.used);
            Ok(())
        }
        None => Err(LaunchError::Refused {
            set: read.used,
            cause: format!(
                "the host is not called {jobset}-...-{rank}, so rank 0 cannot be found by name; set MASTER_ADDR"
            ),
        }),
    }
}

/// Refuses an index without a world size, where no other family says which rank this is.
pub(super) fn leftover(variables: &Variables) -> Result<(), LaunchError> {
    let set = variables.settings(&["JOB_COMPLETION_INDEX"]);
    if set.is_empty() {
        return Ok(());
    }
    let cause = "Kubernetes does not say how many pods the Job has; set WORLD_SIZE to its completions, or say --rank 0 --world-size 1 if each pod is a run of its own";
    Err(LaunchError::Refused { set, cause: cause.to_string() })
}
