//! Kubeflow: `PET_NNODES`, `PET_NODE_RANK`, `PET_NPROC_PER_NODE`, `PET_MASTER_ADDR`,
//! `PET_MASTER_PORT`, which set up one torchrun per pod.
//!
//! We stand where torchrun would: with one process per pod this process is the rank; with more it
//! starts them. `auto`, `cpu` and `gpu` let torchrun count devices; here they mean one rank per pod,
//! unless `--ranks N` says how many.

use super::agree::{Claim, half_set};
use super::error::LaunchError;
use super::place::{Family, HostLaunch, Rendezvous, Source};
use super::variables::{MOST_RANKS, Reader, Setting, Variables};

/// What the variables say about this pod.
pub(super) struct Pod {
    /// This pod among the pods.
    pub(super) claim: Claim,
    /// Ranks in each pod, if a number is set.
    pub(super) ranks: Option<usize>,
}

pub(super) fn pod(variables: &Variables) -> Result<Option<Pod>, LaunchError> {
    let mut read = Reader::new(variables);
    let index = read.index("PET_NODE_RANK")?;
    let pods = pods(&mut read)?;
    let ranks = ranks(&mut read)?;
    // Without these, the rest is only left over from something else.
    if read.used.is_empty() {
        return Ok(None);
    }
    let (host, port) = master(&mut read)?;
    // As torchrun has it: one host, unless PET_NNODES says more.
    let several = pods.is_some_and(|pods| pods > 1);
    let missing = [
        ("PET_NNODES", pods.is_none() && index.is_some_and(|index| index > 0)),
        ("PET_NODE_RANK", several && index.is_none()),
        ("PET_MASTER_ADDR", several && host.is_none()),
        ("PET_MASTER_PORT", several && port.is_none()),
    ];
    if missing.iter().any(|(_, missing)| *missing) {
        return half_set(Family::Kubeflow, read.used, &missing);
    }
    let mut claim = Claim::new(Family::Kubeflow, index.unwrap_or(0), pods.unwrap_or(1), read.used);
    claim.host = host;
    claim.port = port;
    // One rank in a pod, unless `start` makes it more.
    claim.local_rank = Some(0);
    Ok(Some(Pod { claim: claim.checked()?, ranks }))
}

fn pods(read: &mut Reader) -> Result<Option<usize>, LaunchError> {
    if let Some(value) = read.text("PET_NNODES")?
        && value.contains(':')
    {
        return Err(LaunchError::Elastic { setting: Setting::new("PET_NNODES", value) });
    }
    read.used.retain(|setting| setting.name != "PET_NNODES");
    read.count("PET_NNODES")
}

fn ranks(read: &mut Reader) -> Result<Option<usize>, LaunchError> {
    if let Some("auto" | "cpu" | "gpu") = read.text("PET_NPROC_PER_NODE")? {
        return Ok(None);
    }
    read.used.retain(|setting| setting.name != "PET_NPROC_PER_NODE");
    read.count("PET_NPROC_PER_NODE")
}

fn master(read: &mut Reader) -> Result<(Option<String>, Option<u16>), LaunchError> {
    let host = read.host("PET_MASTER_ADDR")?;
    let port = read.port("PET_MASTER_PORT")?;
    if host.is_some() || port.is_some() {
        return Ok((host, port));
    }
    let Some(endpoint) = read.text("PET_RDZV_ENDPOINT")? else { return Ok((None, None)) };
    let Rendezvous { host, port } = Rendezvous::parse("PET_RDZV_ENDPOINT", endpoint)?;
    Ok((Some(host), Some(port)))
}

impl Pod {
    /// What starts the `ranks` of this pod.
    pub(super) fn start(self, ranks: usize) -> Result<HostLaunch, LaunchError> {
        let Claim { rank, world_size: pods, host, port, settings, .. } = self.claim;
        let world_size = pods * ranks;
        if world_size > MOST_RANKS {
            let cause = format!("{pods} x {ranks} ranks are more than {MOST_RANKS}");
            return Err(LaunchError::Refused { set: settings, cause });
        }
        let rendezvous = match (host, port) {
            // Within one pod the launcher finds a port of its own.
            (Some(host), Some(port)) if pods > 1 => Some(Rendezvous { host, port }),
            _ => None,
        };
        let source = Source { family: Family::Kubeflow, settings };
        Ok(HostLaunch { ranks, first_rank: rank * ranks, world_size, rendezvous, source })
    }

    /// Kubeflow's first operator sets `RANK` and `WORLD_SIZE` beside `PET_*`, and means pods by `RANK`.
    /// With several ranks in a pod, and no torchrun that started them, they must name this pod.
    pub(super) fn check_pod(&self, torchrun: &Claim, ranks: usize) -> Result<(), LaunchError> {
        let pods = self.claim.world_size;
        let sizes = [pods, pods * ranks];
        if torchrun.rank == self.claim.rank && sizes.contains(&torchrun.world_size) {
            return Ok(());
        }
        Err(LaunchError::Disagree { first: torchrun.claimed(), second: self.claim.claimed() })
    }
}
