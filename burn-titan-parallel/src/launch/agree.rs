//! What a family of variables claims, and whether two claims can both be true.

use super::error::LaunchError;
use super::place::{Claimed, Family, Launch, Rendezvous, Source};
use super::variables::Setting;

/// What one family of variables says about this process.
pub(super) struct Claim {
    pub(super) family: Family,
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) local_rank: Option<usize>,
    pub(super) local_size: Option<usize>,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    /// The launcher is known to number ranks by itself whatever started it: it may run inside an
    /// allocation of another one, whose numbers are then those of its daemons.
    pub(super) renumbers: bool,
    /// What was used, rank and world size first.
    pub(super) settings: Vec<Setting>,
}

impl Claim {
    pub(super) fn new(
        family: Family,
        rank: usize,
        world_size: usize,
        settings: Vec<Setting>,
    ) -> Self {
        Self {
            family,
            rank,
            world_size,
            local_rank: None,
            local_size: None,
            host: None,
            port: None,
            renumbers: false,
            settings,
        }
    }

    /// The variables of rank and world size.
    pub(super) fn naming(&self) -> Vec<Setting> {
        self.settings.iter().take(2).cloned().collect()
    }

    /// How errors name it.
    pub(super) fn claimed(&self) -> Box<Claimed> {
        let settings = self.naming();
        let Self { family, rank, world_size, .. } = *self;
        Box::new(Claimed { family, rank, world_size, settings })
    }

    /// Refuses ranks that do not exist.
    pub(super) fn checked(self) -> Result<Self, LaunchError> {
        let out_of_range = |what, index, count, set: &[Setting]| {
            Err(LaunchError::OutOfRange { what, index, count, set: set.to_vec() })
        };
        if self.rank >= self.world_size {
            return out_of_range("rank", self.rank, self.world_size, &self.naming());
        }
        if let (Some(index), Some(count)) = (self.local_rank, self.local_size)
            && index >= count
        {
            return out_of_range("local rank", index, count, &self.settings);
        }
        match self.local_size {
            Some(size) if size > self.world_size => Err(LaunchError::Refused {
                cause: format!(
                    "{size} ranks on this host are more than the {} of the world",
                    self.world_size
                ),
                set: self.settings,
            }),
            _ => Ok(self),
        }
    }

    /// Refuses another claim about this process, of lower order, that cannot be true beside this one.
    ///
    /// Launchers nest: `srun` may start one torchrun per host, which starts the ranks. So the other
    /// claim may be that of one process per host, or of one process for all.
    pub(super) fn agree(&self, other: &Claim) -> Result<(), LaunchError> {
        let same = (self.rank, self.world_size) == (other.rank, other.world_size);
        let encloses = match self.local_size {
            Some(size) if size > 1 || self.renumbers => other.world_size * size == self.world_size,
            _ => false,
        };
        // A host of mpirun may have more ranks than another, and mpirun's own host no daemon.
        let around_mpi = self.family == Family::Mpi && self.renumbers;
        if same || encloses || around_mpi || other.world_size == 1 {
            return Ok(());
        }
        Err(LaunchError::Disagree { first: self.claimed(), second: other.claimed() })
    }

    pub(super) fn launch(self) -> Launch {
        let rendezvous = match (self.host, self.port) {
            (Some(host), Some(port)) => Some(Rendezvous { host, port }),
            _ => None,
        };
        // Without a word about it: one rank a host, unless all must be on this one.
        let here = rendezvous.as_ref().is_some_and(Rendezvous::is_loopback);
        Launch {
            rank: self.rank,
            world_size: self.world_size,
            local_rank: self.local_rank.unwrap_or(if here { self.rank } else { 0 }),
            local_size: self.local_size,
            rendezvous,
            source: Source { family: self.family, settings: self.settings },
        }
    }
}

/// Nothing, if no variable of a family is set; else an error that names those that are missing.
pub(super) fn half_set<T>(
    family: Family,
    set: Vec<Setting>,
    missing: &[(&'static str, bool)],
) -> Result<Option<T>, LaunchError> {
    if set.is_empty() {
        return Ok(None);
    }
    let missing = missing.iter().filter(|(_, missing)| *missing).map(|(name, _)| *name).collect();
    Err(LaunchError::HalfSet { family, set, missing })
}
