//! Slurm: `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` or `SLURM_NTASKS`, `SLURM_LOCALID`, and the list of
//! hosts, whose first one runs task 0.
//!
//! A process is a task only within a step, that is under `srun`. The script of a batch job and the shell
//! of `salloc` have most of the variables too, but are no task.

use super::agree::{Claim, half_set};
use super::error::LaunchError;
use super::hostlist;
use super::place::Family;
use super::variables::{MOST_RANKS, Reader, Variables};

/// The first of the ports that jobs listen on: above those that Linux gives to outgoing connections.
pub(super) const FIRST_PORT: u16 = 61_440;
/// How many they are.
pub(super) const PORTS: u64 = 4096;

pub(super) fn claim(variables: &Variables) -> Result<Option<Claim>, LaunchError> {
    if !in_step(variables) {
        return Ok(None);
    }
    let mut read = Reader::new(variables);
    let rank = read.index("SLURM_PROCID")?;
    let tasks = match read.count("SLURM_STEP_NUM_TASKS")? {
        Some(tasks) => Some(tasks),
        None => read.count("SLURM_NTASKS")?,
    };
    let (Some(rank), Some(tasks)) = (rank, tasks) else {
        let missing = [("SLURM_PROCID", rank.is_none()), ("SLURM_NTASKS", tasks.is_none())];
        return half_set(Family::Slurm, read.used, &missing);
    };
    let local_rank = read.index("SLURM_LOCALID")?;
    let local_size = local_size(&mut read)?;
    let mut claim = Claim::new(Family::Slurm, rank, tasks, read.used);
    claim.local_rank = local_rank;
    claim.local_size = local_size;
    claim.checked().map(Some)
}

/// Whether `srun` started this process.
fn in_step(variables: &Variables) -> bool {
    // From here on the numbers stand for the script of a job, the shell of `salloc` and the like.
    const NO_STEP: u64 = 4_294_967_280;
    let step = variables.get("SLURM_STEP_ID");
    match step.or_else(|| variables.get("SLURM_STEPID")) {
        Some(step) => step.parse().is_ok_and(|step: u64| step < NO_STEP),
        None => variables.get("SLURM_STEP_NODELIST").is_some(),
    }
}

/// Adds the first host of the job, and a port derived from its number, where Slurm says them.
///
/// Under mpirun the step is that of its daemons: it leaves out mpirun's own host, whose ranks see no step.
/// So there only the job is looked at, which is the same for all ranks.
pub(super) fn rendezvous(claim: &mut Claim, variables: &Variables) -> Result<(), LaunchError> {
    let mut read = Reader::new(variables);
    let step = !claim.renumbers;
    if claim.host.is_none() {
        claim.host = first_host(&mut read, step)?;
    }
    if claim.port.is_none() {
        claim.port = port(&mut read, step)?;
    }
    claim.settings.append(&mut read.used);
    Ok(())
}

fn first_host(read: &mut Reader, step: bool) -> Result<Option<String>, LaunchError> {
    let names = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
    for name in &names[usize::from(!step)..] {
        if let Some(list) = read.text(name)? {
            return Ok(hostlist::expand(name, list)?.into_iter().next());
        }
    }
    Ok(None)
}

fn port(read: &mut Reader, step: bool) -> Result<Option<u16>, LaunchError> {
    let job = match read.job("SLURM_JOB_ID")? {
        Some(job) => Some(job),
        None => read.job("SLURM_JOBID")?,
    };
    let step = if step { read.job("SLURM_STEP_ID")?.unwrap_or(0) } else { 0 };
    // Steps of one job and neighbouring jobs may share a host; the prime keeps them apart.
    let number = job.map(|job| job.wrapping_add(step.wrapping_mul(1021)));
    Ok(number.map(|number| FIRST_PORT + (number % PORTS) as u16))
}

/// Tasks on this host: entry `SLURM_NODEID` of a list such as `2(x3),1`.
fn local_size(read: &mut Reader) -> Result<Option<usize>, LaunchError> {
    let Some(node) = read.index("SLURM_NODEID")? else { return Ok(None) };
    let Some(list) = read.text("SLURM_STEP_TASKS_PER_NODE")? else { return Ok(None) };
    let wrong = || LaunchError::NotANumber {
        setting: super::Setting::new("SLURM_STEP_TASKS_PER_NODE", list),
        expected: format!("tasks of each host, such as 2(x3),1, for at least {} hosts", node + 1),
    };
    let mut hosts = 0usize;
    for entry in list.split(',') {
        let (tasks, times) = match entry.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')').ok_or_else(wrong)?),
            None => (entry, "1"),
        };
        let number = |text: &str| {
            text.parse::<usize>().ok().filter(|n| (1..=MOST_RANKS).contains(n)).ok_or_else(wrong)
        };
        hosts += number(times)?;
        if node < hosts {
            return number(tasks).map(Some);
        }
    }
    Err(wrong())
}

/// Refuses an allocation of several tasks without `srun`, where no other family says which rank this is.
pub(super) fn leftover(variables: &Variables) -> Result<(), LaunchError> {
    let tasks = Reader::new(variables).count("SLURM_NTASKS")?;
    if tasks.is_none_or(|tasks| tasks == 1) {
        return Ok(());
    }
    Err(LaunchError::NoSrun { set: variables.settings(&["SLURM_JOB_ID", "SLURM_NTASKS"]) })
}
