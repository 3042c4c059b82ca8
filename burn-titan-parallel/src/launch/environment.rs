//! Which rank this process is, from flags and environment variables.

use super::agree::{Claim, half_set};
use super::error::LaunchError;
use super::place::{Family, HostLaunch, Launch, Place, Rendezvous, Source};
use super::variables::{MOST_RANKS, Setting, Variables};
use super::{kubeflow, kubernetes, mpi, own, slurm, torchrun};

/// What the command line says about ranks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--ranks`: start this many local ranks.
    pub ranks: Option<usize>,
    /// `--rank`: which rank this is.
    pub rank: Option<usize>,
    /// `--world-size`: ranks in the world.
    pub world_size: Option<usize>,
    /// `--local-rank`: this rank among those of its host.
    pub local_rank: Option<usize>,
    /// `--rendezvous`: where rank 0 listens.
    pub rendezvous: Option<Rendezvous>,
}

/// Which rank this process is, or which ranks it is to start.
///
/// The first of these that is there decides: `--rank` with `--world-size`; what `--ranks` told its
/// children; `--ranks`; torchrun; Kubeflow; MPI; Slurm; Kubernetes; nothing, which is one rank.
/// `--rendezvous` and `--local-rank` alone change what was found, and so do `MASTER_ADDR` and
/// `MASTER_PORT` below torchrun.
///
/// # Errors
/// If a value cannot be read, if a launcher's variables are there in part, or if two launchers say what
/// cannot both be true; with the variables, their values and a remedy.
pub fn read(flags: &Flags, variables: &Variables) -> Result<Place, LaunchError> {
    if let Some(claim) = claim_of_flags(flags)? {
        return Ok(Place::Rank(overridden(claim, flags)));
    }
    if let Some(claim) = own::claim(variables)? {
        return Ok(Place::Rank(overridden(claim.checked()?, flags)));
    }
    let pod = kubeflow::pod(variables)?;
    match flags.ranks {
        Some(ranks) => start(ranks, flags, pod, variables).map(Place::Host),
        None => found(flags, pod, variables),
    }
}

fn claim_of_flags(flags: &Flags) -> Result<Option<Claim>, LaunchError> {
    let mut settings = Vec::new();
    let mut note = |name, value: Option<usize>| {
        settings.extend(value.map(|value| Setting::new(name, value)));
    };
    note("--rank", flags.rank);
    note("--world-size", flags.world_size);
    if settings.is_empty() {
        return Ok(None);
    }
    let (Some(rank), Some(world_size)) = (flags.rank, flags.world_size) else {
        let missing =
            [("--rank", flags.rank.is_none()), ("--world-size", flags.world_size.is_none())];
        return half_set(Family::Flags, settings, &missing);
    };
    if let Some(ranks) = flags.ranks {
        settings.push(Setting::new("--ranks", ranks));
        let cause = "--ranks starts ranks, --rank is one of them; leave one out".to_string();
        return Err(LaunchError::Refused { set: settings, cause });
    }
    if !(1..=MOST_RANKS).contains(&world_size) {
        return Err(LaunchError::NotANumber {
            setting: Setting::new("--world-size", world_size),
            expected: format!("a whole number from 1 to {MOST_RANKS}"),
        });
    }
    Claim::new(Family::Flags, rank, world_size, settings).checked().map(Some)
}

/// The claim with what the command line says besides.
fn overridden(mut claim: Claim, flags: &Flags) -> Launch {
    if let Some(local_rank) = flags.local_rank {
        claim.local_rank = Some(local_rank);
        // Whoever says the one knows better about the other too.
        claim.local_size = None;
        claim.settings.push(Setting::new("--local-rank", local_rank));
    }
    if let Some(rendezvous) = &flags.rendezvous {
        claim.settings.push(Setting::new("--rendezvous", rendezvous));
        claim.host = Some(rendezvous.host.clone());
        claim.port = Some(rendezvous.port);
    }
    claim.launch()
}

/// `--ranks`.
fn start(
    ranks: usize,
    flags: &Flags,
    pod: Option<kubeflow::Pod>,
    variables: &Variables,
) -> Result<HostLaunch, LaunchError> {
    let setting = Setting::new("--ranks", ranks);
    if !(1..=MOST_RANKS).contains(&ranks) {
        let expected = format!("a whole number from 1 to {MOST_RANKS}");
        return Err(LaunchError::NotANumber { setting, expected });
    }
    let mut host = match pod {
        Some(pod) => start_in_pod(pod, ranks, setting, variables)?,
        None => {
            let claims = [
                torchrun::claim(variables)?,
                mpi::claim(variables)?,
                slurm::claim(variables)?,
                kubernetes::claim(variables)?,
            ];
            if let Some(claim) = claims.into_iter().flatten().find(|claim| claim.world_size > 1) {
                return Err(LaunchError::RanksWithin { ranks, other: claim.claimed() });
            }
            let source = Source { family: Family::Local, settings: vec![setting] };
            HostLaunch { ranks, first_rank: 0, world_size: ranks, rendezvous: None, source }
        }
    };
    if let Some(rendezvous) = &flags.rendezvous {
        host.source.settings.push(Setting::new("--rendezvous", rendezvous));
        host.rendezvous = Some(rendezvous.clone());
    }
    Ok(host)
}

fn start_in_pod(
    pod: kubeflow::Pod,
    ranks: usize,
    setting: Setting,
    variables: &Variables,
) -> Result<HostLaunch, LaunchError> {
    if let Some(count) = pod.ranks
        && count != ranks
    {
        let cause = format!("Kubeflow asks for {count} ranks in this pod; leave --ranks out");
        let set = [vec![setting], variables.settings(&["PET_NPROC_PER_NODE"])].concat();
        return Err(LaunchError::Refused { set, cause });
    }
    if let Some(torchrun) = torchrun::claim(variables)? {
        pod.check_pod(&torchrun, ranks)?;
    }
    let mut host = pod.start(ranks)?;
    host.source.settings.push(setting);
    Ok(host)
}

/// The first family that is there, if all others can be true beside it.
fn found(
    flags: &Flags,
    pod: Option<kubeflow::Pod>,
    variables: &Variables,
) -> Result<Place, LaunchError> {
    let torchrun = torchrun::claim(variables)?;
    if let Some(ranks) = pod.as_ref().and_then(|pod| pod.ranks).filter(|ranks| *ranks > 1)
        && torchrun.as_ref().is_none_or(|claim| claim.local_rank.is_none() && !claim.renumbers)
        && let Some(pod) = pod
    {
        if let Some(torchrun) = torchrun {
            pod.check_pod(&torchrun, ranks)?;
        }
        return pod.start(ranks).map(Place::Host);
    }
    let claims = [
        torchrun,
        pod.map(|pod| pod.claim),
        mpi::claim(variables)?,
        slurm::claim(variables)?,
        kubernetes::claim(variables)?,
    ];
    let mut claims = claims.into_iter().flatten();
    let Some(mut first) = claims.next() else { return alone(flags, variables) };
    for other in claims {
        first.agree(&other)?;
    }
    complete(&mut first, variables)?;
    Ok(Place::Rank(overridden(first, flags)))
}

/// Adds where rank 0 is, to what says only which rank this is.
fn complete(claim: &mut Claim, variables: &Variables) -> Result<(), LaunchError> {
    if claim.family == Family::Torchrun {
        return Ok(());
    }
    torchrun::complete(claim, variables)?;
    match claim.family {
        _ if claim.host.is_some() && claim.port.is_some() => Ok(()),
        Family::Mpi => mpi::rendezvous(claim, variables),
        Family::Slurm => slurm::rendezvous(claim, variables),
        Family::Kubernetes => kubernetes::rendezvous(claim, variables),
        _ => Ok(()),
    }
}

/// One rank, if nothing is left over of a launcher that would say more.
fn alone(flags: &Flags, variables: &Variables) -> Result<Place, LaunchError> {
    slurm::leftover(variables)?;
    kubernetes::leftover(variables)?;
    mpi::leftover(variables)?;
    torchrun::leftover(variables)?;
    Ok(Place::Rank(overridden(Claim::new(Family::Alone, 0, 1, Vec::new()), flags)))
}
