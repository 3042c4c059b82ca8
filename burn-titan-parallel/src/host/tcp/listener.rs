//! A port that only those get past who know the token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::Log;
use super::auth::{self, Token};
use super::error::JoinError;

/// Connections that may be proving themselves at once; further ones wait in the system's queue.
const PROVING: usize = 256;

/// A bound port: the store's on rank 0, or the one where a rank's peers connect.
#[derive(Debug)]
pub struct Listener {
    inner: std::net::TcpListener,
    address: SocketAddr,
    advertised: Option<SocketAddr>,
}

impl Listener {
    /// Listens on this address and no other; port 0 takes a free one.
    ///
    /// # Errors
    /// If it is taken, or not one of this host's.
    pub fn bind(address: SocketAddr) -> Result<Self, JoinError> {
        let listen = || {
            let inner = std::net::TcpListener::bind(address)?;
            inner.set_nonblocking(true)?;
            let address = inner.local_addr()?;
            Ok(Self { inner, address, advertised: None })
        };
        listen().map_err(|error: std::io::Error| JoinError::Listen {
            address,
            cause: error.to_string(),
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has peers connect to another address, which leads here: that of a gateway or a container's host.
    pub fn advertise(self, address: SocketAddr) -> Self {
        Self { advertised: Some(address), ..self }
    }

    /// The address that peers are told. Where this listens on every interface, `own` is the one to use.
    pub(super) fn advertised(&self, own: Option<SocketAddr>) -> SocketAddr {
        match (self.advertised, own) {
            (Some(address), _) => address,
            (None, Some(own)) if self.address.ip().is_unspecified() => {
                SocketAddr::new(own.ip(), self.address.port())
            }
            _ => self.address,
        }
    }

    /// Hands over every connection that proves to know the token, for as long as the runtime lives.
    /// Strangers are refused and logged.
    pub(super) fn serve<F>(
        self,
        token: Token,
        log: Log,
        welcome: impl Fn(TcpStream) -> F + Clone + Send + Sync + 'static,
    ) -> std::io::Result<JoinHandle<()>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = tokio::net::TcpListener::from_std(self.inner)?;
        Ok(tokio::spawn(async move {
            let proving = Arc::new(Semaphore::new(PROVING));
            while let Ok(permit) = proving.clone().acquire_owned().await {
                let (mut stream, address) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, for example: others may be freed.
                        log(&format!("no connection can be accepted: {error}"));
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                };
                let (token, log, welcome) = (token.clone(), log.clone(), welcome.clone());
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    match auth::accept(&mut stream, &token).await {
                        Ok(()) => {
                            drop(permit);
                            welcome(stream).await;
                        }
                        Err(reason) => log(&format!("refused a connection of {address}: {reason}")),
                    }
                });
            }
        }))
    }
}
