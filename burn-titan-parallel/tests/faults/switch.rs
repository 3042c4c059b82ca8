//! A network of TAP interfaces, between which this process forwards the frames: late, slowly, or not at all.
//!
//! The kernel's own means for that (netem) are not in every kernel.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// The name of the interface on every host.
pub const INTERFACE: &str = "link0";

/// Longest frame: 1500 bytes after the Ethernet header.
const FRAME: usize = 1514;

/// What the cables are like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cable {
    /// How long a frame is under way.
    pub delay: Duration,
    /// How many of a thousand frames are lost.
    pub lost_of_1000: u64,
    /// Bytes that a host receives in a second.
    pub bytes_per_second: Option<f64>,
}

/// What the threads of the network share.
#[derive(Debug, Default)]
pub struct Switch {
    cable: Cable,
    /// Between whom nothing is forwarded.
    cut: Mutex<HashSet<(usize, usize)>>,
    frames: AtomicU64,
    lost: AtomicU64,
}

impl Switch {
    /// Forwards frames between the interfaces until the process ends.
    pub fn start(taps: Vec<File>, cable: Cable) -> Result<Arc<Self>> {
        let switch = Arc::new(Self { cable, ..Self::default() });
        let mut ways = Vec::new();
        for tap in &taps {
            let (sender, frames) = channel();
            let tap = tap.try_clone()?;
            spawn(move || deliver(tap, &frames, cable.bytes_per_second));
            ways.push(sender);
        }
        for (from, tap) in taps.into_iter().enumerate() {
            let (switch, ways) = (switch.clone(), ways.clone());
            spawn(move || switch.forward(from, tap, &ways));
        }
        Ok(switch)
    }

    /// Forwards nothing more between these two.
    pub fn cut(&self, one: usize, other: usize) {
        self.cut.lock().unwrap().extend([(one, other), (other, one)]);
    }

    /// Frames that were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn forward(&self, from: usize, mut tap: File, ways: &[Sender<(Instant, Vec<u8>)>]) {
        let mut buffer = [0; FRAME];
        while let Ok(length @ 14..) = tap.read(&mut buffer) {
            let frame = &buffer[..length];
            let due = Instant::now() + self.cable.delay;
            for (to, way) in ways.iter().enumerate() {
                if to != from && is_for(to, frame) && self.passes(from, to) {
                    way.send((due, frame.to_vec())).unwrap();
                }
            }
        }
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        if self.cut.lock().unwrap().contains(&(from, to)) {
            return false;
        }
        let number = self.frames.fetch_add(1, Ordering::Relaxed);
        let lost = crate::splitmix(number) % 1000 < self.cable.lost_of_1000;
        self.lost.fetch_add(lost.into(), Ordering::Relaxed);
        !lost
    }
}

/// Writes frames when they are due, as fast as the link is.
fn deliver(mut tap: File, frames: &Receiver<(Instant, Vec<u8>)>, bytes_per_second: Option<f64>) {
    let mut free = Instant::now();
    while let Ok((due, frame)) = frames.recv() {
        let takes = bytes_per_second.map_or(0.0, |rate| frame.len() as f64 / rate);
        free = free.max(due) + Duration::from_secs_f64(takes);
        sleep(free.saturating_duration_since(Instant::now()));
        // Nothing can be written to an interface that is down.
        let _ = tap.write(&frame);
    }
}

/// The Ethernet address of a host.
pub fn hardware_address(host: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, host as u8]
}

fn is_for(host: usize, frame: &[u8]) -> bool {
    frame[..6] == hardware_address(host) || frame[..6] == [0xFF; 6]
}

/// Makes the interface in the namespace of the calling thread.
pub fn tap() -> Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is valid for this call, which keeps no pointer to it.
    match unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(tap),
        _ => Err(Error::last_os_error()),
    }
}
