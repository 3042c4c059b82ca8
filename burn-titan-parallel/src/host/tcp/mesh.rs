//! A connection between every two ranks: the higher rank connects to the lower.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::error::Peer;
use super::auth::HANDSHAKE;
use super::error::{JoinError, Refusal};
use super::listener::Listener;
use super::memory::{Lane, Memory};
use super::protocol::{self, Control, Entry, describe};
use super::{TcpConfig, rendezvous};

/// A connection to a peer.
pub struct Link {
    /// The socket.
    pub stream: TcpStream,
    /// The lanes to the peer and from it, where both are on one host.
    pub memory: Option<(Lane, Lane)>,
}

type Linked = Result<(usize, Link), JoinError>;

/// The connections that a rank's listener and its own attempts make.
pub struct Mesh {
    sender: mpsc::Sender<Linked>,
    linked: mpsc::Receiver<Linked>,
    listening: JoinHandle<()>,
}

impl Mesh {
    /// Listens for the higher ranks.
    pub fn open(listener: Listener, config: &TcpConfig) -> Result<Self, JoinError> {
        let (sender, linked) = mpsc::channel(64);
        let (welcomed, own) = (sender.clone(), config.clone());
        let welcome = move |stream| {
            let (config, sender) = (own.clone(), welcomed.clone());
            async move {
                match timeout(HANDSHAKE, accept(stream, &config)).await {
                    // Nobody may be waiting any more.
                    Ok(Ok(linked)) => drop(sender.send(Ok(linked)).await),
                    Ok(Err(error)) => (config.log)(&format!("refused a peer: {error}")),
                    Err(_) => (config.log)("refused a peer: it does not say who it is"),
                }
            }
        };
        let listening = listener.serve(config.token.clone(), config.log.clone(), welcome);
        let listening = listening.map_err(|error| JoinError::System {
            what: "a listening socket",
            cause: error.to_string(),
        })?;
        Ok(Self { sender, linked, listening })
    }

    /// The connections to all other ranks, by rank. Gives up at the deadline, or once `lost`.
    pub async fn connect(
        mut self,
        table: &[Entry],
        config: &TcpConfig,
        deadline: Instant,
        lost: impl Fn() -> bool,
    ) -> Result<Vec<(usize, Link)>, JoinError> {
        for (to, entry) in table[..config.rank].iter().cloned().enumerate() {
            let (sender, config) = (self.sender.clone(), config.clone());
            tokio::spawn(async move {
                let linked = link(to, &entry, &config, deadline).await;
                drop(sender.send(linked.map(|link| (to, link))).await);
            });
        }
        let mut links: Vec<Option<Link>> = table.iter().map(|_| None).collect();
        while let Some(rank) =
            (0..table.len()).find(|rank| *rank != config.rank && links[*rank].is_none())
        {
            let next = Instant::now() + Duration::from_millis(100);
            match timeout_at(next, self.linked.recv()).await {
                // A second connection comes from a peer that has given up the first.
                Ok(Some(linked)) => {
                    let (from, link) = linked?;
                    links[from] = Some(link);
                }
                Ok(None) | Err(_) if lost() || Instant::now() > deadline => {
                    let peer = Peer { rank, host: table[rank].host.clone() };
                    return Err(JoinError::Absent { peer, after: config.join_timeout });
                }
                Ok(None) | Err(_) => {}
            }
        }
        let links = links.into_iter().enumerate();
        Ok(links.filter_map(|(rank, link)| Some((rank, link?))).collect())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Connects to a lower rank.
async fn link(
    to: usize,
    entry: &Entry,
    config: &TcpConfig,
    deadline: Instant,
) -> Result<Link, JoinError> {
    let failed = |cause: String| JoinError::NoPeer {
        peer: Peer { rank: to, host: entry.host.clone() },
        address: entry.address,
        cause,
    };
    loop {
        let connected = rendezvous::connect(&entry.address.to_string(), config, deadline).await;
        let mut stream = connected.map_err(|stranger| failed(stranger.to_string()))?;
        // The file is closed once the peer has answered; it needs no more than the memory.
        let made = if config.may_share_memory() { Memory::make().ok() } else { None };
        let offer = made.as_ref().map(|(_, offer, _)| offer.clone());
        let talk = async {
            let link = Control::Link { from: config.rank, to, memory: offer };
            protocol::write(&mut stream, &link).await?;
            protocol::read(&mut stream).await
        };
        match timeout_at(deadline, timeout(HANDSHAKE, talk)).await {
            Ok(Ok(Ok(Control::Linked { memory }))) => {
                let memory = made.filter(|_| memory);
                let memory = memory.map(|(memory, ..)| (memory.lane(true), memory.lane(false)));
                return Ok(Link { stream, memory });
            }
            Ok(Ok(Ok(Control::Refused(reason)))) => return Err(failed(reason.to_string())),
            Ok(Ok(Ok(other))) => return Err(failed(format!("it says {other:?}"))),
            Ok(Ok(Err(error))) if Instant::now() >= deadline => {
                return Err(failed(describe(&error)));
            }
            Err(_) => return Err(failed("it does not answer".to_string())),
            // A connection that broke or fell silent while it was made is tried again.
            Ok(Ok(Err(_)) | Err(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Hears who has connected.
async fn accept(mut stream: TcpStream, config: &TcpConfig) -> std::io::Result<(usize, Link)> {
    let said = protocol::read(&mut stream).await?;
    match said {
        Control::Link { from, to, memory }
            if to == config.rank && from > config.rank && from < config.world_size =>
        {
            let offer = memory.filter(|_| config.may_share_memory());
            // What cannot be opened is on another host, or kept apart from this process.
            let memory = offer.and_then(|offer| Memory::open(&offer).ok());
            let linked = Control::Linked { memory: memory.is_some() };
            protocol::write(&mut stream, &linked).await?;
            let memory = memory.map(|memory| (memory.lane(false), memory.lane(true)));
            Ok((from, Link { stream, memory }))
        }
        other => {
            let reason = Refusal::Unexpected(format!("{other:?} to rank {}", config.rank));
            protocol::write(&mut stream, &Control::Refused(reason.clone())).await?;
            Err(protocol::damaged(reason.to_string()))
        }
    }
}
