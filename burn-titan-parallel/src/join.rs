//! How a process joins the ranks it was launched with: where it listens, where it finds rank 0, and the secret
//! that it shows.
//!
//! Ranks of one host meet at its loopback address. Where the rendezvous names another host, rank 0 listens on
//! the address that the name has, and every other rank on the address from which it reaches rank 0; no rank
//! listens anywhere else unless [`WorldOptions::listen`] says so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::host::tcp::{JoinError, Listener, Log, TcpConfig, TcpLinks, Token};
use crate::launch::{Launch, Rendezvous, TOKEN};

/// Pause between two attempts to find rank 0's name, or to listen there.
const PAUSE: Duration = Duration::from_millis(200);

/// How ranks that are processes reach each other.
#[derive(Clone)]
pub struct WorldOptions {
    /// How long an operation waits for a peer. Equal on all ranks.
    pub timeout: Duration,
    /// How long the ranks wait for each other at the start.
    pub join_timeout: Duration,
    /// Where this rank listens; `None` for the address that leads to its peers (see the module).
    pub listen: Option<IpAddr>,
    /// The secret that all ranks of the run know; `None` takes it from the variable [`TOKEN`].
    pub token: Option<String>,
    /// Whether ranks of one host exchange through shared memory.
    pub shared_memory: bool,
    /// An artificial link, for experiments: bytes that this rank sends in a second, all peers together. Ranks
    /// then share no memory.
    pub bytes_per_second: Option<f64>,
    /// Where notes about refused strangers and ranks go.
    pub log: Log,
}

impl Default for WorldOptions {
    /// Five minutes for everything, and notes on standard error.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            join_timeout: Duration::from_secs(300),
            listen: None,
            token: None,
            shared_memory: true,
            bytes_per_second: None,
            log: Arc::new(|note| eprintln!("{note}")),
        }
    }
}

/// The links of a launched process, once all ranks have come together over TCP.
///
/// # Errors
/// If they do not before the deadline, and which; or what of the environment or of `options` makes no sense
/// ([`JoinError::is_refusal`]).
pub fn links(launch: &Launch, options: &WorldOptions) -> Result<TcpLinks, JoinError> {
    let rendezvous = launch.rendezvous().map_err(|error| JoinError::Config(error.to_string()))?;
    let config = TcpConfig {
        rank: launch.rank,
        world_size: launch.world_size,
        host: host_name(),
        token: token(options)?,
        timeout: options.timeout,
        join_timeout: options.join_timeout,
        shared_memory: options.shared_memory,
        bytes_per_second: options.bytes_per_second,
        log: options.log.clone(),
    };
    let deadline = Instant::now() + options.join_timeout;
    if launch.rank == 0 {
        let store = store(launch, rendezvous, options, deadline)?;
        let peers = Listener::bind((store.address().ip(), 0).into())?;
        TcpLinks::lead(store, peers, config)
    } else {
        let address = match options.listen {
            Some(address) => address,
            None => own_address(rendezvous, deadline, options)?,
        };
        let peers = Listener::bind((address, 0).into())?;
        TcpLinks::join(&rendezvous.to_string(), peers, config)
    }
}

fn token(options: &WorldOptions) -> Result<Token, JoinError> {
    let secret = match &options.token {
        Some(token) => Some(token.clone().into_bytes()),
        None => std::env::var_os(TOKEN).map(std::ffi::OsString::into_encoded_bytes),
    };
    match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => Token::new(secret),
        None => Err(JoinError::Config(format!(
            "{TOKEN} is not set: ranks show each other this secret; set it to the same value for all of them"
        ))),
    }
}

/// On rank 0: listens where the others look for it.
///
/// The name of a host that has just been started may still lead nowhere, or to its last address: it is looked
/// up again until the deadline.
fn store(
    launch: &Launch,
    rendezvous: &Rendezvous,
    options: &WorldOptions,
    deadline: Instant,
) -> Result<Listener, JoinError> {
    if let Some(address) = options.listen {
        return Listener::bind((address, rendezvous.port).into());
    }
    let mut told = false;
    loop {
        let bound = look_up(rendezvous, deadline, options).and_then(|addresses| {
            let mut last = nowhere(rendezvous, options, "it has no address".to_string());
            for address in addresses {
                match Listener::bind(address) {
                    Ok(listener) => return Ok(listener),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        let error = match bound {
            Ok(listener) => return reachable(listener, launch, rendezvous, options),
            Err(JoinError::Listen { address, cause }) => JoinError::Listen {
                address,
                cause: format!(
                    "{cause}; rank 0 listens at the rendezvous ({rendezvous}), or where comm.listen_address says"
                ),
            },
            Err(error) => error,
        };
        let is_name = rendezvous.host.parse::<IpAddr>().is_err();
        if !is_name || Instant::now() + PAUSE >= deadline {
            return Err(error);
        }
        if !told {
            (options.log)(&format!("{error}; tried again"));
            told = true;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Refuses, or notes, an address that only this host can reach where ranks are on others: systems like to give
/// a host's own name such a one.
fn reachable(
    listener: Listener,
    launch: &Launch,
    rendezvous: &Rendezvous,
    options: &WorldOptions,
) -> Result<Listener, JoinError> {
    let own = listener.address().ip();
    if !own.is_loopback() || rendezvous.is_loopback() {
        return Ok(listener);
    }
    let cause = format!(
        "rank 0 would listen on {own}, which is what `{}` means on this host: no other host can reach it; say where with comm.listen_address, for example 0.0.0.0 for all interfaces",
        rendezvous.host
    );
    match launch.local_size {
        Some(local) if local == launch.world_size => Ok(listener),
        Some(_) => Err(JoinError::Config(cause)),
        None => {
            (options.log)(&cause);
            Ok(listener)
        }
    }
}

/// The address of this host from which rank 0 is reached.
fn own_address(
    rendezvous: &Rendezvous,
    deadline: Instant,
    options: &WorldOptions,
) -> Result<IpAddr, JoinError> {
    loop {
        let found = look_up(rendezvous, deadline, options).and_then(|addresses| {
            let mut last = "it has no address".to_string();
            for address in addresses {
                match route(address) {
                    Ok(own) => return Ok(own),
                    Err(error) => last = error.to_string(),
                }
            }
            Err(nowhere(rendezvous, options, last))
        });
        if found.is_ok() || Instant::now() + PAUSE >= deadline {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The address that the system would send from. Nothing is sent.
fn route(to: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// The addresses of the rendezvous. The system's own patience with a name is not ours, so a thread asks it.
fn look_up(
    rendezvous: &Rendezvous,
    deadline: Instant,
    options: &WorldOptions,
) -> Result<Vec<SocketAddr>, JoinError> {
    let (sender, found) = channel();
    let (host, port) = (rendezvous.host.clone(), rendezvous.port);
    let asking = std::thread::Builder::new().name("look-up".to_string()).spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs().map(Vec::from_iter);
        // Nobody may be waiting any more.
        let _ = sender.send(addresses);
    });
    asking.map_err(|error| JoinError::System { what: "a thread", cause: error.to_string() })?;
    match found.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(nowhere(rendezvous, options, error.to_string())),
        Err(_) => Err(nowhere(rendezvous, options, "the name service does not answer".into())),
    }
}

fn nowhere(rendezvous: &Rendezvous, options: &WorldOptions, cause: String) -> JoinError {
    JoinError::NoStore { address: rendezvous.to_string(), cause, after: options.join_timeout }
}

/// This host, as errors name it.
#[cfg(unix)]
fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: writes at most so many bytes; the last one stays 0 even if the name was cut.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    match String::from_utf8_lossy(&name[..end]) {
        name if failed || name.is_empty() => "this host".to_string(),
        name => name.into_owned(),
    }
}

/// This host, as errors name it.
#[cfg(not(unix))]
fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "this host".to_string())
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::host::{Element, Exchange, Group, Links, Queue, Reduction};
    use crate::launch::local::free_port;
    use crate::launch::{Family, Source};

    fn launch(rank: usize, world_size: usize, host: &str, port: u16) -> Launch {
        Launch {
            rank,
            world_size,
            local_rank: rank,
            local_size: None,
            rendezvous: Some(Rendezvous { host: host.to_string(), port }),
            source: Source { family: Family::Flags, settings: Vec::new() },
        }
    }

    fn options(token: &str) -> (WorldOptions, Arc<Mutex<Vec<String>>>) {
        let notes = Arc::<Mutex<Vec<String>>>::default();
        let log = notes.clone();
        let options = WorldOptions {
            timeout: Duration::from_secs(60),
            join_timeout: Duration::from_secs(60),
            token: Some(token.to_string()),
            log: Arc::new(move |note| log.lock().unwrap().push(note.to_string())),
            ..WorldOptions::default()
        };
        (options, notes)
    }

    #[test]
    fn ranks_meet_at_the_rendezvous_and_exchange() {
        let hosts = [("localhost", None), ("127.0.0.1", None), ("127.0.0.1", Some("0.0.0.0"))];
        for (host, listen) in hosts {
            let port = free_port().unwrap();
            let ranks: Vec<_> = (0..3)
                .map(|rank| {
                    let launch = launch(rank, 3, host, port);
                    let (mut options, _) = options("secret");
                    options.listen = listen.map(|address| address.parse().unwrap());
                    std::thread::spawn(move || {
                        let links: Arc<dyn Links> = Arc::new(links(&launch, &options).unwrap());
                        let group = Group::new(links.clone(), vec![0, 1, 2], 1, options.timeout);
                        let one = 1_f32.to_le_bytes().to_vec();
                        let sum = Queue::new(group).unwrap().all_reduce(
                            one,
                            Element::F32,
                            Reduction::Sum,
                        );
                        assert_eq!(sum.wait().unwrap(), 3_f32.to_le_bytes(), "{host}");
                        links.close().unwrap();
                    })
                })
                .collect();
            ranks.into_iter().for_each(|rank| rank.join().unwrap());
        }
    }

    #[test]
    fn what_cannot_be_joined_is_told_with_the_remedy() {
        let (quick, _) = options("secret");
        let quick = WorldOptions { join_timeout: Duration::from_millis(300), ..quick };
        let message = |launch: &Launch, options: &WorldOptions| {
            links(launch, options).err().expect("no links").to_string()
        };
        let nowhere = Launch { rendezvous: None, ..launch(1, 2, "", 1) };
        assert!(message(&nowhere, &quick).contains("set MASTER_ADDR and MASTER_PORT"));
        let secretless = WorldOptions { token: Some(String::new()), ..quick.clone() };
        let told = message(&launch(0, 2, "127.0.0.1", 1), &secretless);
        assert!(told.starts_with("BURN_TITAN_TOKEN is not set: "), "{told}");
        for rank in [0, 1] {
            let told = message(&launch(rank, 2, "no-such-host.invalid", 1), &quick);
            assert!(
                told.starts_with(
                    "rank 0 cannot be reached at no-such-host.invalid:1 within 0.3 s: "
                ),
                "{told}"
            );
        }
        // An address for documentation (RFC 5737), which no host has.
        let told = message(&launch(0, 2, "192.0.2.1", 29500), &quick);
        assert!(told.starts_with("cannot listen on 192.0.2.1:29500: "), "{told}");
        assert!(told.ends_with("or where comm.listen_address says"), "{told}");
    }

    #[test]
    fn a_name_that_means_loopback_here_is_refused_where_ranks_are_elsewhere() {
        let listener = || Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let rendezvous = Rendezvous { host: "node001".to_string(), port: 1 };
        let asked = |local_size| {
            let launch = Launch { local_size, ..launch(0, 4, "node001", 1) };
            let (options, notes) = options("secret");
            let told = reachable(listener(), &launch, &rendezvous, &options).err();
            (told.map(|error| error.to_string()), notes.lock().unwrap().len())
        };
        let (told, _) = asked(Some(2));
        assert!(told.unwrap().contains("127.0.0.1, which is what `node001` means"));
        assert_eq!(asked(Some(4)), (None, 0));
        assert_eq!(asked(None), (None, 1));
    }
}
