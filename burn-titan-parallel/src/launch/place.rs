//! What a process is in its world, and where that was read.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::error::LaunchError;
use super::variables::{Setting, host, listed};

/// Whose variables say which rank this is, in the order in which they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `--rank`, `--world-size`, `--rendezvous`.
    Flags,
    /// `--ranks N`: started by this program's own launcher.
    Local,
    /// torchrun and what imitates it.
    Torchrun,
    /// Kubeflow, which sets up pods for torchrun.
    Kubeflow,
    /// `mpirun` and `mpiexec`.
    Mpi,
    /// `srun`.
    Slurm,
    /// An indexed Job of Kubernetes, alone or in a JobSet.
    Kubernetes,
    /// Nothing is set: one rank.
    Alone,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flags => "the command line",
            Self::Local => "--ranks",
            Self::Torchrun => "torchrun",
            Self::Kubeflow => "Kubeflow",
            Self::Mpi => "MPI",
            Self::Slurm => "Slurm",
            Self::Kubernetes => "Kubernetes",
            Self::Alone => "no launcher",
        })
    }
}

/// Where rank 0 listens for its peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rendezvous {
    /// A host name or an address.
    pub host: String,
    /// A TCP port.
    pub port: u16,
}

impl Rendezvous {
    /// Whether only this host can reach it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    pub(super) fn parse(name: &'static str, value: &str) -> Result<Self, LaunchError> {
        let wrong = || LaunchError::NotAnEndpoint { setting: Setting::new(name, value) };
        let (left, port) = value.trim().rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let bare = left.strip_prefix('[').and_then(|left| left.strip_suffix(']'));
        // Without brackets an IPv6 address and its port cannot be told apart.
        if bare.is_none() && left.contains(':') {
            return Err(wrong());
        }
        let host = host(name, bare.unwrap_or(left)).map_err(|_| wrong())?;
        Ok(Self { host, port })
    }
}

impl FromStr for Rendezvous {
    type Err = LaunchError;

    /// Reads `HOST:PORT`, an IPv6 address in brackets.
    fn from_str(value: &str) -> Result<Self, LaunchError> {
        Self::parse("--rendezvous", value)
    }
}

impl fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// What was chosen, and from which variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Whose variables.
    pub family: Family,
    /// Those that were used.
    pub settings: Vec<Setting>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.family)?;
        if self.settings.is_empty() { Ok(()) } else { write!(f, " ({})", listed(&self.settings)) }
    }
}

/// Which rank this process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks in the world.
    pub world_size: usize,
    /// This rank among those of its host, from 0: which device it takes.
    pub local_rank: usize,
    /// Ranks on this host, where the launcher says so.
    pub local_size: Option<usize>,
    /// Where rank 0 listens, where that is known. One rank needs none, nor does MPI's own engine.
    pub rendezvous: Option<Rendezvous>,
    /// What was chosen, and from which variables.
    pub source: Source,
}

impl Launch {
    /// Where rank 0 listens.
    ///
    /// # Errors
    /// If nothing says so, with the remedy.
    pub fn rendezvous(&self) -> Result<&Rendezvous, LaunchError> {
        self.rendezvous.as_ref().ok_or(LaunchError::NoRendezvous {
            rank: self.rank,
            world_size: self.world_size,
            source_name: self.source.family,
        })
    }
}

impl fmt::Display for Launch {
    /// One line that says what was chosen, and from which variables.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}, local rank {}", self.rank, self.world_size, self.local_rank)?;
        if let Some(size) = self.local_size {
            write!(f, " of {size}")?;
        }
        if let Some(rendezvous) = &self.rendezvous {
            write!(f, ", rendezvous {rendezvous}")?;
        }
        write!(f, "; from {}", self.source)
    }
}

/// This process is to start ranks on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLaunch {
    /// How many.
    pub ranks: usize,
    /// The first of them in the world.
    pub first_rank: usize,
    /// Ranks in the world.
    pub world_size: usize,
    /// Where rank 0 listens; `None` if all ranks are on this host: the launcher finds a port.
    pub rendezvous: Option<Rendezvous>,
    /// What was chosen, and from which variables.
    pub source: Source,
}

impl fmt::Display for HostLaunch {
    /// One line that says what was chosen, and from which variables.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, first_rank, world_size, rendezvous, source } = self;
        write!(f, "starts {ranks} of {world_size} ranks here, the first is rank {first_rank}")?;
        if let Some(rendezvous) = rendezvous {
            write!(f, ", rendezvous {rendezvous}")?;
        }
        write!(f, "; from {source}")
    }
}

/// What this process is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A rank.
    Rank(Launch),
    /// What starts the ranks of its host (see [`super::run_local`]).
    Host(HostLaunch),
}

/// What one family of variables says about this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Whose variables.
    pub family: Family,
    /// This rank.
    pub rank: usize,
    /// Ranks in the world.
    pub world_size: usize,
    /// Where both were read.
    pub settings: Vec<Setting>,
}

impl fmt::Display for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, rank, world_size, settings } = self;
        write!(f, "{family} says rank {rank} of {world_size} ({})", listed(settings))
    }
}
