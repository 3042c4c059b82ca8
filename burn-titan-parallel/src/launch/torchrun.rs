//! torchrun, and what sets its variables: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`,
//! `MASTER_ADDR`, `MASTER_PORT`.
//!
//! `RANK` is what makes it torchrun. Scripts and manifests set the others too, to complete what Slurm or
//! Kubernetes say: there `MASTER_ADDR` and `MASTER_PORT` say where rank 0 is, and `WORLD_SIZE` must
//! agree.

use super::agree::{Claim, half_set};
use super::error::LaunchError;
use super::place::Family;
use super::slurm;
use super::variables::{Reader, Setting, Variables};

const ALL: [&str; 6] =
    ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"];

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>, LaunchError> {
    let mut read = Reader::new(variables);
    let Some(rank) = read.index("RANK")? else { return Ok(None) };
    let world_size = read.count("WORLD_SIZE")?;
    let local_rank = read.index("LOCAL_RANK")?;
    let local_size = read.count("LOCAL_WORLD_SIZE")?;
    let host = read.host("MASTER_ADDR")?;
    let port = read.port("MASTER_PORT")?;
    // A world of one needs no rendezvous.
    let alone = world_size == Some(1);
    let missing = [
        ("WORLD_SIZE", world_size.is_none()),
        ("MASTER_ADDR", host.is_none() && !alone),
        ("MASTER_PORT", port.is_none() && !alone),
    ];
    let Some(world_size) = world_size.filter(|_| missing.iter().all(|(_, missing)| !missing))
    else {
        return half_set(Family::Torchrun, read.used, &missing);
    };
    let mut claim = Claim::new(Family::Torchrun, rank, world_size, read.used);
    claim.local_rank = local_rank;
    claim.local_size = local_size;
    claim.host = host;
    claim.port = port;
    if let (Some(port), Some(setting)) = (port, agent_listens(variables)) {
        claim.port = Some(slurm::FIRST_PORT + ((u64::from(port) + 1) % slurm::PORTS) as u16);
        claim.settings.push(setting);
    }
    // Only the real torchrun sets this; its agents may be numbered in any order.
    claim.renumbers = variables.get("TORCHELASTIC_RUN_ID").is_some();
    claim.checked().map(Some)
}

/// torchrun's own agent listens on `MASTER_PORT` where it says `TORCHELASTIC_USE_AGENT_STORE=True`, as newer
/// versions of PyTorch do; rank 0 then takes another port that all ranks can derive.
fn agent_listens(variables: &Variables) -> Option<Setting> {
    let name = "TORCHELASTIC_USE_AGENT_STORE";
    let value = variables.get(name).filter(|value| *value == "True")?;
    Some(Setting::new(name, value))
}

/// Completes another family's claim by what is set of these variables.
pub(super) fn complete(claim: &mut Claim, variables: &Variables) -> Result<(), LaunchError> {
    let mut read = Reader::new(variables);
    if let Some(host) = read.host("MASTER_ADDR")? {
        claim.host = Some(host);
    }
    if let Some(port) = read.port("MASTER_PORT")? {
        claim.port = Some(port);
    }
    claim.settings.append(&mut read.used);
    match read.count("WORLD_SIZE")? {
        Some(world_size) if world_size != claim.world_size => Err(LaunchError::Refused {
            cause: format!(
                "{} has started {} ranks; unset WORLD_SIZE",
                claim.family, claim.world_size
            ),
            set: [read.used, claim.naming()].concat(),
        }),
        _ => Ok(()),
    }
}

/// Refuses variables without `RANK`, where no other family says which rank this is.
pub(super) fn leftover(variables: &Variables) -> Result<(), LaunchError> {
    let set = variables.settings(&ALL);
    half_set::<()>(Family::Torchrun, set, &[("RANK", true)]).map(|_| ())
}
