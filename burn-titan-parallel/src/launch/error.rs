//! Why ranks cannot be started, or a process cannot tell which it is.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::place::{Claimed, Family};
use super::variables::{Setting, listed};

/// Why ranks cannot be started, or a process cannot tell which it is. All of these are faults of the
/// configuration: exit code 2.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A variable that is set to nothing.
    #[error("{name} is empty: give it a value or unset it")]
    Empty {
        /// The variable or flag.
        name: &'static str,
    },
    /// A value that is no number, or not one that makes sense.
    #[error("{setting}: expected {expected}")]
    NotANumber {
        /// What was read.
        setting: Setting,
        /// What would do.
        expected: String,
    },
    /// A value that cannot be the name of a host.
    #[error("{setting}: expected the name or the address of a host, without scheme and port")]
    NotAHost {
        /// What was read.
        setting: Setting,
    },
    /// A value that is no `host:port`.
    #[error("{setting}: expected HOST:PORT, for example node001:29500 or [fe80::1]:29500")]
    NotAnEndpoint {
        /// What was read.
        setting: Setting,
    },
    /// Some variables of a launcher are set, and others that must come with them are not.
    #[error(
        "{}, but {} not set; they belong together ({family}): set what is missing or unset the rest",
        listed(.set), are(.missing)
    )]
    HalfSet {
        /// Whose variables they are.
        family: Family,
        /// Those that are there.
        set: Vec<Setting>,
        /// Those that are not.
        missing: Vec<&'static str>,
    },
    /// A rank that its world does not have.
    #[error("{}: {what} {index} does not exist among {count}: they count from 0 to {}", listed(.set), .count - 1)]
    OutOfRange {
        /// `rank` or `local rank`.
        what: &'static str,
        /// Its number.
        index: usize,
        /// How many there are.
        count: usize,
        /// Where both were read.
        set: Vec<Setting>,
    },
    /// Two sources say different things about this process.
    #[error(
        "{first}, but {second}: they disagree about this process; unset one of them, or say --rank, --world-size and --rendezvous"
    )]
    Disagree {
        /// The source of higher order.
        first: Box<Claimed>,
        /// The other.
        second: Box<Claimed>,
    },
    /// Values that cannot be together, or do not do.
    #[error("{}: {cause}", listed(.set))]
    Refused {
        /// The variables or flags.
        set: Vec<Setting>,
        /// What is wrong, and what to do.
        cause: String,
    },
    /// A number of hosts that may change.
    #[error("{setting}: a range of hosts is for elastic jobs; burn-titan needs one fixed number")]
    Elastic {
        /// What was read.
        setting: Setting,
    },
    /// A list of hosts that cannot be read.
    #[error("{name}: cannot read the list of hosts `{list}` at character {at}: {cause}")]
    HostList {
        /// Where the list was read.
        name: &'static str,
        /// The list.
        list: String,
        /// The character, from 1.
        at: usize,
        /// What is wrong.
        cause: &'static str,
    },
    /// In an allocation of Slurm, but not started by `srun`.
    #[error(
        "{}: this is a job of Slurm, but the process was not started by srun; put `srun` before the command, or say --ranks N",
        listed(.set)
    )]
    NoSrun {
        /// What Slurm set.
        set: Vec<Setting>,
    },
    /// `--ranks` where a launcher has started several processes already.
    #[error(
        "--ranks {ranks} would start a world of its own in each of {} processes: {other}; leave --ranks out, or start one process", .other.world_size
    )]
    RanksWithin {
        /// What `--ranks` says.
        ranks: usize,
        /// The launcher that was found.
        other: Box<Claimed>,
    },
    /// Nothing says where rank 0 listens.
    #[error(
        "rank {rank} of {world_size} knows no rendezvous: {source_name} does not say where rank 0 is; set MASTER_ADDR and MASTER_PORT, or say --rendezvous HOST:PORT"
    )]
    NoRendezvous {
        /// This rank.
        rank: usize,
        /// Ranks in the world.
        world_size: usize,
        /// What was found.
        source_name: Family,
    },
    /// A number of local ranks that cannot be started.
    #[error("cannot start {ranks} ranks here from rank {first_rank} of {world_size}")]
    LocalRanks {
        /// How many were asked for.
        ranks: usize,
        /// The first of them.
        first_rank: usize,
        /// Ranks in the world.
        world_size: usize,
    },
    /// A local rank did not start.
    #[error("cannot start rank {rank} ({}): {error}", .program.display())]
    Start {
        /// The rank.
        rank: usize,
        /// What was to run.
        program: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// What starting processes needs of the system is not there.
    #[error("cannot start local ranks: {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        #[source]
        error: io::Error,
    },
}

/// `A is`, `A and B are`, `A, B and C are`.
fn are(names: &[&'static str]) -> String {
    match names {
        [] => "nothing is".to_string(),
        [name] => format!("{name} is"),
        [before @ .., last] => format!("{} and {last} are", before.join(", ")),
    }
}
