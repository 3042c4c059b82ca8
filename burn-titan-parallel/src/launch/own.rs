//! What [`super::run_local`] tells the ranks that it starts.

use super::agree::Claim;
use super::error::LaunchError;
use super::place::{Family, Rendezvous};
use super::variables::{Reader, Variables};

/// The variable with the secret that ranks show each other at the rendezvous. `--ranks` makes a random
/// one; between hosts it is set by the one who starts the job.
pub const TOKEN: &str = "BURN_TITAN_TOKEN";

pub(super) const RANK: &str = "BURN_TITAN_RANK";
pub(super) const WORLD_SIZE: &str = "BURN_TITAN_WORLD_SIZE";
pub(super) const LOCAL_RANK: &str = "BURN_TITAN_LOCAL_RANK";
pub(super) const LOCAL_SIZE: &str = "BURN_TITAN_LOCAL_SIZE";
pub(super) const RENDEZVOUS: &str = "BURN_TITAN_RENDEZVOUS";

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>, LaunchError> {
    let mut read = Reader::new(variables);
    let rank = read.index(RANK)?;
    let world_size = read.count(WORLD_SIZE)?;
    let local_rank = read.index(LOCAL_RANK)?;
    let local_size = read.count(LOCAL_SIZE)?;
    let rendezvous = match read.text(RENDEZVOUS)? {
        Some(text) => Some(Rendezvous::parse(RENDEZVOUS, text)?),
        None => None,
    };
    let missing = [
        (RANK, rank.is_none()),
        (WORLD_SIZE, world_size.is_none()),
        (LOCAL_RANK, local_rank.is_none()),
        (LOCAL_SIZE, local_size.is_none()),
        (RENDEZVOUS, rendezvous.is_none()),
    ];
    let (Some(rank), Some(world_size), Some(_), Some(_), Some(rendezvous)) =
        (rank, world_size, local_rank, local_size, rendezvous)
    else {
        return super::agree::half_set(Family::Local, read.used, &missing);
    };
    let mut claim = Claim::new(Family::Local, rank, world_size, read.used);
    claim.local_rank = local_rank;
    claim.local_size = local_size;
    claim.host = Some(rendezvous.host);
    claim.port = Some(rendezvous.port);
    Ok(Some(claim))
}
