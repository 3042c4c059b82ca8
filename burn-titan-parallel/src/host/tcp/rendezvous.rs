//! How the ranks find each other: all register with the store on rank 0, and get the table of all.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::error::Peer;
use super::TcpConfig;
use super::auth::{self, HANDSHAKE, Stranger};
use super::error::{JoinError, Refusal};
use super::listener::Listener;
use super::protocol::{self, Control, Entry, describe};

/// Refusals that are remembered for the error of rank 0.
const REMEMBERED: usize = 16;

/// A process that wants to be a rank.
struct Applicant {
    rank: usize,
    world_size: usize,
    entry: Entry,
    stream: TcpStream,
}

/// Who has joined, by rank; rank 0 has no connection to itself.
struct Seats {
    entries: Vec<Option<Entry>>,
    streams: Vec<Option<TcpStream>>,
}

impl Seats {
    /// Gives the applicant the seat, or says why not.
    fn claim(&mut self, applicant: Applicant) -> Result<(), (Refusal, TcpStream)> {
        let Applicant { rank, world_size: theirs, entry, stream } = applicant;
        let (ours, host) = (self.entries.len(), entry.host.clone());
        let reason = if theirs != ours {
            Refusal::WorldSize { rank, host, ours, theirs }
        } else if rank == 0 || rank >= ours {
            Refusal::NoSuchRank { rank, host, world_size: ours }
        } else if let Some(holder) = &self.entries[rank] {
            let holder = Peer { rank, host: holder.host.clone() };
            Refusal::Taken { holder, claimant: host }
        } else {
            self.entries[rank] = Some(entry);
            self.streams[rank] = Some(stream);
            return Ok(());
        };
        Err((reason, stream))
    }

    /// Frees the seats of those who have gone again.
    fn vacate(&mut self) {
        for (entry, stream) in self.entries.iter_mut().zip(&mut self.streams).skip(1) {
            // Nobody has anything to say before the table: what can be read is the end.
            let quiet = |stream: &TcpStream| {
                let read = stream.try_read(&mut [0]);
                matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
            };
            if !stream.as_ref().is_some_and(quiet) {
                (*entry, *stream) = (None, None);
            }
        }
    }

    fn missing(&self) -> Vec<usize> {
        (0..self.entries.len()).filter(|rank| self.entries[*rank].is_none()).collect()
    }
}

/// On rank 0: the table, and the connections to the ranks from 1, once all have come.
pub async fn lead(
    store: Listener,
    config: &TcpConfig,
    own: Entry,
    deadline: Instant,
) -> Result<(Vec<Entry>, Vec<TcpStream>), JoinError> {
    let mut applicants = open(store, config)?;
    let mut seats = Seats {
        entries: (0..config.world_size).map(|_| None).collect(),
        streams: (0..config.world_size).map(|_| None).collect(),
    };
    seats.entries[0] = Some(own);
    let mut refused = Vec::new();
    while !seats.missing().is_empty() {
        match timeout_at(deadline, applicants.recv()).await {
            Ok(Some(applicant)) => {
                seats.vacate();
                if let Err((reason, stream)) = seats.claim(applicant) {
                    refuse(stream, &reason, config).await;
                    refused.push(reason);
                    refused.truncate(REMEMBERED);
                }
            }
            Ok(None) | Err(_) => return Err(give_up(seats, refused, config).await),
        }
    }
    let entries: Vec<Entry> = seats.entries.iter().flatten().cloned().collect();
    let mut streams = Vec::new();
    for mut stream in std::mem::take(&mut seats.streams).into_iter().flatten() {
        // Who cannot be told is lost, which will be noticed with the first sign of life.
        let table = Control::Table(entries.clone());
        let _ = timeout(HANDSHAKE, protocol::write(&mut stream, &table)).await;
        streams.push(stream);
    }
    let config = config.clone();
    tokio::spawn(async move {
        while let Some(applicant) = applicants.recv().await {
            if let Err((reason, stream)) = seats.claim(applicant) {
                refuse(stream, &reason, &config).await;
            }
        }
    });
    Ok((entries, streams))
}

/// Opens the store.
fn open(store: Listener, config: &TcpConfig) -> Result<mpsc::Receiver<Applicant>, JoinError> {
    let (sender, applicants) = mpsc::channel(16);
    let log = config.log.clone();
    let welcome = move |mut stream: TcpStream| {
        let (sender, log) = (sender.clone(), log.clone());
        async move {
            match timeout(HANDSHAKE, protocol::read(&mut stream)).await {
                Ok(Ok(Control::Register { rank, world_size, entry })) => {
                    // Nobody may be waiting any more.
                    let _ = sender.send(Applicant { rank, world_size, entry, stream }).await;
                }
                other => log(&format!("refused a rank that does not register: {other:?}")),
            }
        }
    };
    store.serve(config.token.clone(), config.log.clone(), welcome).map_err(|error| {
        JoinError::System { what: "a listening socket", cause: error.to_string() }
    })?;
    Ok(applicants)
}

async fn refuse(mut stream: TcpStream, reason: &Refusal, config: &TcpConfig) {
    (config.log)(&format!("refused a rank: {reason}"));
    let refusal = Control::Refused(reason.clone());
    let _ = timeout(HANDSHAKE, protocol::write(&mut stream, &refusal)).await;
}

/// Tells those who have come who is missing.
async fn give_up(seats: Seats, refused: Vec<Refusal>, config: &TcpConfig) -> JoinError {
    let (ranks, after) = (seats.missing(), config.join_timeout);
    let reason = Refusal::Missing { ranks: ranks.clone(), after };
    for stream in seats.streams.into_iter().flatten() {
        refuse(stream, &reason, config).await;
    }
    JoinError::Missing { ranks, after, refused }
}

/// On the other ranks: the table, and the connection to rank 0, once all have come.
pub async fn join(
    address: &str,
    config: &TcpConfig,
    listener: &Listener,
    deadline: Instant,
) -> Result<(Vec<Entry>, TcpStream), JoinError> {
    let no_store = |cause: String| JoinError::NoStore {
        address: address.to_string(),
        cause,
        after: config.join_timeout,
    };
    let rank = config.rank;
    let refused = |reason| JoinError::Refused { rank, address: address.to_string(), reason };
    let mut stream = match connect(address, config, deadline).await {
        Ok(stream) => stream,
        Err(Stranger::Refused(reason)) => return Err(refused(reason)),
        Err(other) => return Err(no_store(other.to_string())),
    };
    let own = listener.advertised(stream.local_addr().ok());
    let entry = Entry { host: config.host.clone(), address: own };
    let register = Control::Register { rank, world_size: config.world_size, entry };
    let failed = |error: std::io::Error| no_store(describe(&error));
    protocol::write(&mut stream, &register).await.map_err(failed)?;
    // Rank 0 knows who is missing, and gets the time to say so.
    let answer = timeout_at(deadline + HANDSHAKE, protocol::read(&mut stream)).await;
    match answer.map_err(|_| no_store("it does not answer".to_string()))?.map_err(failed)? {
        Control::Table(mut table) if table.len() == config.world_size => {
            // Rank 0 may not know its own address, but this rank has just used it.
            if let (true, Ok(store)) = (table[0].address.ip().is_unspecified(), stream.peer_addr())
            {
                table[0].address = SocketAddr::new(store.ip(), table[0].address.port());
            }
            Ok((table, stream))
        }
        Control::Refused(reason) => Err(refused(reason)),
        other => Err(refused(Refusal::Unexpected(format!("{other:?}")))),
    }
}

/// Connects and shakes hands; tries again until the deadline, but not where it is refused.
pub async fn connect(
    address: &str,
    config: &TcpConfig,
    deadline: Instant,
) -> Result<TcpStream, Stranger> {
    let mut pause = Duration::from_millis(20);
    loop {
        let attempt = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            auth::connect(&mut stream, &config.token).await?;
            Ok(stream)
        };
        let outcome = timeout_at(deadline, attempt).await.unwrap_or(Err(Stranger::Slow));
        let last = Instant::now() + pause >= deadline;
        match outcome {
            Err(Stranger::Refused(reason)) => return Err(Stranger::Refused(reason)),
            Err(_) if !last => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}
