//! A connection that does something bad after some MiB.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;

/// Bytes that pass before the fault.
const HEALTHY: usize = 10 << 20;

/// What happens to the bytes that come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A bit flips.
    Flip,
    /// Some bytes are left out.
    Drop,
    /// The connection is closed.
    Cut,
    /// Nothing comes any more, in either direction.
    Hold,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Flip, Self::Drop, Self::Cut, Self::Hold]
            .into_iter()
            .find(|fault| format!("{fault:?}") == text)
            .ok_or_else(|| format!("no fault {text}"))
    }
}

/// Starts a proxy before `address`, and returns where it listens. Only the first connection has the fault.
pub fn start(address: SocketAddr, fault: Fault) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let own = listener.local_addr()?;
    std::thread::spawn(move || -> std::io::Result<()> {
        let mut fault = Some(fault);
        for incoming in listener.incoming() {
            let (outside, inside) = (incoming?, TcpStream::connect(address)?);
            let (back_from, back_to) = (inside.try_clone()?, outside.try_clone()?);
            let fault = fault.take();
            std::thread::spawn(move || forward(outside, inside, fault));
            let hold = fault.filter(|fault| *fault == Fault::Hold);
            std::thread::spawn(move || forward(back_from, back_to, hold));
        }
        Ok(())
    });
    Ok(own)
}

fn forward(mut from: TcpStream, mut to: TcpStream, fault: Option<Fault>) {
    let mut buffer = vec![0; 64 << 10];
    let (mut passed, mut fault, mut told) = (0, fault, false);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let mut bytes = &mut buffer[..read];
        passed += read;
        if passed > HEALTHY {
            if fault.is_some() && !told {
                println!("{}", crate::rank::SAYS_FAULT);
                told = true;
            }
            match fault {
                Some(Fault::Flip) => bytes[read / 2] ^= 4,
                Some(Fault::Drop) => bytes = &mut bytes[..read - 1],
                Some(Fault::Cut) => break,
                // Reads on, so that nobody is held up by more than silence.
                Some(Fault::Hold) => continue,
                None => {}
            }
            fault = None;
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
