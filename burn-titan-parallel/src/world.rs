//! All ranks of a run, and the groups among them.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::Device;
use sha2::{Digest, Sha256};

use crate::communicator::{Communicator, HostCommunicator, OneRank, Rehearsal};
use crate::host::tcp::JoinError;
use crate::host::{CommError, FailureHook, Group, Links, LocalLinks, Queue};
use crate::join::{self, WorldOptions};
use crate::launch::Launch;
use crate::mpi::MpiError;
#[cfg(feature = "mpi")]
use crate::mpi::{GroupOptions, MpiConfig, MpiWorld};
use crate::nccl::NcclError;
#[cfg(feature = "nccl")]
use crate::nccl::NcclWorld;
use crate::trace::Trace;

/// One rank of a world: who it is, and how it reaches the others.
#[derive(Clone)]
pub struct World {
    engine: Engine,
    /// How long an operation waits for a peer.
    timeout: Duration,
    local_rank: usize,
    /// Whether it is the first of its process, of which there may be several where they are threads.
    leads_process: bool,
    trace: Trace,
    /// The GPU whose memory goes by NCCL.
    #[cfg(feature = "nccl")]
    nccl: Option<NcclWorld>,
}

/// How a rank reaches the others.
#[derive(Clone)]
enum Engine {
    /// There are none.
    Alone,
    /// It only goes through what it would do with them.
    Rehearsal { rank: usize, size: usize },
    /// By links between hosts or threads.
    Links(Arc<dyn Links>),
    /// By MPI.
    #[cfg(feature = "mpi")]
    Mpi(MpiWorld),
}

impl World {
    /// A world of one rank.
    pub fn alone() -> Self {
        Self::with(Engine::Alone, Duration::MAX)
    }

    /// The ranks of a world of `size` threads of this process.
    pub fn local(size: usize, timeout: Duration) -> Vec<Self> {
        let ranks = LocalLinks::world(size).into_iter().enumerate();
        let world = |links| Self::over(Arc::new(links), timeout);
        ranks.map(|(rank, links)| Self { leads_process: rank == 0, ..world(links) }).collect()
    }

    /// This process as the rank it was launched as, once all ranks have come together. A rank alone needs
    /// neither a rendezvous nor a secret.
    ///
    /// # Errors
    /// If the ranks do not come together before the deadline, and which; or what of the environment or of
    /// `options` makes no sense ([`JoinError::is_refusal`]).
    pub fn join(launch: &Launch, options: &WorldOptions) -> Result<Self, JoinError> {
        if launch.world_size == 1 {
            return Ok(Self::alone());
        }
        let world = Self::over(Arc::new(join::links(launch, options)?), options.timeout);
        Ok(Self { local_rank: launch.local_rank, ..world })
    }

    /// A rank that reaches the others over `links`.
    pub fn over(links: Arc<dyn Links>, timeout: Duration) -> Self {
        Self::with(Engine::Links(links), timeout)
    }

    /// A rank that MPI has started, and that reaches the others by MPI's own collectives. Starts MPI in this
    /// process, and waits for the other ranks. Of the options only the time-outs count.
    ///
    /// # Errors
    /// If the program was built without MPI, if MPI does not start, or if its rank and size are not those of the
    /// launch.
    #[cfg(feature = "mpi")]
    pub fn over_mpi(launch: &Launch, options: &WorldOptions) -> Result<Self, JoinError> {
        let WorldOptions { timeout, join_timeout, .. } = *options;
        let config = MpiConfig { timeout, join_timeout, limit: MpiConfig::LIMIT };
        let joined = MpiWorld::init(config).and_then(|world| world.check(launch).map(|()| world));
        let joined = joined.map(Self::of_mpi).map_err(MpiError::into_join_error)?;
        Ok(Self { local_rank: launch.local_rank, ..joined })
    }

    /// As with the feature `mpi`, without which it refuses.
    ///
    /// # Errors
    /// Always: the program was built without MPI.
    #[cfg(not(feature = "mpi"))]
    pub fn over_mpi(_: &Launch, _: &WorldOptions) -> Result<Self, JoinError> {
        Err(MpiError::NotBuilt.into_join_error())
    }

    /// A rank of MPI, which was started already.
    #[cfg(feature = "mpi")]
    pub fn of_mpi(world: MpiWorld) -> Self {
        let timeout = world.timeout();
        Self::with(Engine::Mpi(world), timeout)
    }

    fn with(engine: Engine, timeout: Duration) -> Self {
        Self {
            engine,
            timeout,
            local_rank: 0,
            leads_process: true,
            trace: Trace::default(),
            #[cfg(feature = "nccl")]
            nccl: None,
        }
    }

    /// The same rank, whose new communicators exchange the memory of this GPU by NCCL. Every rank of a host has
    /// another GPU.
    ///
    /// # Errors
    /// If the program was built without NCCL, the library is not installed, or the device is none of NVIDIA's.
    #[cfg(feature = "nccl")]
    pub fn with_nccl(&self, device: &Device) -> Result<Self, JoinError> {
        let nccl = NcclWorld::new(device, self.timeout).map_err(NcclError::into_join_error)?;
        Ok(Self { nccl: Some(nccl), ..self.clone() })
    }

    /// As with the feature `nccl`, without which it refuses.
    ///
    /// # Errors
    /// Always: the program was built without NCCL.
    #[cfg(not(feature = "nccl"))]
    pub fn with_nccl(&self, _: &Device) -> Result<Self, JoinError> {
        Err(NcclError::NotBuilt.into_join_error())
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        match &self.engine {
            Engine::Alone => 0,
            Engine::Rehearsal { rank, .. } => *rank,
            Engine::Links(links) => links.rank(),
            #[cfg(feature = "mpi")]
            Engine::Mpi(world) => world.rank(),
        }
    }

    /// This rank among the processes of its host: which device it takes. 0 for a rank alone, and for threads of one
    /// process.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Whether it is the first rank of its host: of processes, or of threads of one process.
    pub fn leads_host(&self) -> bool {
        self.local_rank == 0 && self.leads_process
    }

    /// Ranks in the world.
    pub fn size(&self) -> usize {
        match &self.engine {
            Engine::Alone => 1,
            Engine::Rehearsal { size, .. } => *size,
            Engine::Links(links) => links.world_size(),
            #[cfg(feature = "mpi")]
            Engine::Mpi(world) => world.size(),
        }
    }

    /// What this rank does, when it is asked for.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The same rank, whose new communicators wait so long for a peer.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same rank, whose communicators say nothing to the others: an operation gives at once what has the shape of an
    /// answer. One rank can go through a step so before all do.
    pub fn rehearsal(&self) -> Self {
        let engine = Engine::Rehearsal { rank: self.rank(), size: self.size() };
        let (local_rank, leads_process) = (self.local_rank, self.leads_process);
        Self { local_rank, leads_process, ..Self::with(engine, self.timeout) }
    }

    /// A communicator among `members` (ranks of the world, in order, this one included). Each of them asks
    /// for it with the same `purpose`; groups of another purpose, or of other members, do not disturb it.
    ///
    /// Those of MPI and NCCL wait for each other here; ranks in several groups ask for them in the same order. A group
    /// of one has nothing to exchange, and asks neither; but a world of one that was given NCCL goes through it.
    ///
    /// # Errors
    /// If the system has no thread left for it, or MPI or NCCL does not make it in time.
    pub fn communicator(
        &self,
        purpose: &str,
        members: &[usize],
    ) -> Result<Box<dyn Communicator>, CommError> {
        #[cfg(feature = "nccl")]
        if let Some(nccl) = &self.nccl
            && (members.len() > 1 || self.size() == 1)
        {
            let host = self.host_communicator(purpose, members)?;
            return Ok(Box::new(nccl.join(host, self.timeout)?));
        }
        match members.len() {
            0 | 1 => Ok(Box::new(OneRank)),
            _ => self.host_communicator(purpose, members),
        }
    }

    fn host_communicator(
        &self,
        purpose: &str,
        members: &[usize],
    ) -> Result<Box<dyn Communicator>, CommError> {
        let id = group_id(purpose, members);
        match &self.engine {
            Engine::Alone => Ok(Box::new(OneRank)),
            Engine::Rehearsal { rank, .. } => {
                let rank = members.iter().position(|member| member == rank).unwrap_or(0);
                Ok(Box::new(Rehearsal { rank, size: members.len() }))
            }
            Engine::Links(links) => {
                let group = Group::new(links.clone(), members.to_vec(), id, self.timeout);
                let queue = Queue::traced(group, purpose, self.trace.clone()).map_err(|error| {
                    CommError::Closed(format!("no thread for a group: {error}"))
                })?;
                Ok(Box::new(HostCommunicator::new(queue)))
            }
            #[cfg(feature = "mpi")]
            Engine::Mpi(world) => {
                let (name, trace) = (purpose.to_string(), self.trace.clone());
                let options = GroupOptions { name, trace, timeout: self.timeout };
                let group = world.group(id, members, options)?;
                Ok(Box::new(HostCommunicator::new(group)))
            }
        }
    }

    /// Sets what is called, on a thread of its own, once the world has failed; at once, if it has. Every
    /// operation that is under way fails by itself; this is for a thread that waits for none. Never called in
    /// a world of one, or of threads, or of MPI, whose launcher watches the ranks.
    pub fn on_failure(&self, hook: FailureHook) {
        if let Engine::Links(links) = &self.engine {
            links.on_failure(hook);
        }
    }

    /// Tells the other ranks that this one gives up, and why; with MPI, they learn of it when this process
    /// ends.
    pub fn abort(&self, reason: &str) {
        match &self.engine {
            Engine::Alone | Engine::Rehearsal { .. } => {}
            Engine::Links(links) => links.abort(reason),
            #[cfg(feature = "mpi")]
            Engine::Mpi(world) => world.abort(reason),
        }
    }

    /// Ends the exchange in good order, once every rank has called it.
    ///
    /// # Errors
    /// If a rank is lost, or does not call it in time.
    pub fn close(&self) -> Result<(), CommError> {
        match &self.engine {
            Engine::Alone | Engine::Rehearsal { .. } => Ok(()),
            Engine::Links(links) => links.close(),
            #[cfg(feature = "mpi")]
            Engine::Mpi(world) => world.close(),
        }
    }
}

/// The same number on all members, and another one for other members or another purpose.
fn group_id(purpose: &str, members: &[usize]) -> u64 {
    let mut hash = Sha256::new_with_prefix(purpose);
    for member in members {
        hash.update((*member as u64).to_le_bytes());
    }
    let digest = hash.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i])) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tensor;

    #[test]
    fn one_thread_leads_a_host() {
        let leads = |world: &World| [world.leads_host(), world.rehearsal().leads_host()];
        let worlds = World::local(3, Duration::from_secs(60));
        assert_eq!(Vec::from_iter(worlds.iter().map(leads)), [[true; 2], [false; 2], [false; 2]]);
        assert_eq!(leads(&World::alone()), [true; 2]);
    }

    #[test]
    fn groups_of_other_purposes_do_not_disturb_each_other() {
        let worlds = World::local(3, Duration::from_secs(60));
        let sums = std::thread::scope(|scope| {
            let rank = |world: World| {
                scope.spawn(move || {
                    let all = world.communicator("all", &[0, 1, 2]).unwrap();
                    let again = world.communicator("again", &[0, 1, 2]).unwrap();
                    let x = Tensor::<1>::full([2], world.rank() as f64 + 1.0, &Device::flex());
                    // Begun in another order on each rank.
                    let [a, b] = if world.rank() == 1 {
                        let b = again.all_reduce_sum(x.clone() * 10.0);
                        [all.all_reduce_sum(x), b]
                    } else {
                        [all.all_reduce_sum(x.clone()), again.all_reduce_sum(x * 10.0)]
                    };
                    [a, b]
                        .map(|work| work.wait().unwrap().into_data().try_into_vec::<f32>().unwrap())
                })
            };
            let ranks: Vec<_> = worlds.into_iter().map(rank).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(sums.iter().all(|rank| *rank == [vec![6.0; 2], vec![60.0; 2]]), "{sums:?}");
    }

    #[test]
    fn a_world_of_one_exchanges_nothing() {
        let world = World::alone();
        assert_eq!((world.rank(), world.size()), (0, 1));
        assert_eq!(world.communicator("all", &[0]).unwrap().size(), 1);
        world.close().unwrap();
    }
}
