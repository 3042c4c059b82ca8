//! Memory that two processes of one host share: two one-way lanes of slots, each with a message.
//!
//! Only on Linux; elsewhere nothing is offered. The memory has no name in any file system (`memfd_create`): the one who makes it tells the other where
//! the system shows it (`/proc/<process>/fd/<number>`), which opens it there. It is gone with its last
//! user, however that one ends. It cannot be made smaller, so no access to it ends in a signal. All
//! unsafe code of the links is here.

use std::fs::File;
use std::io::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use memmap2::MmapRaw;
use serde::{Deserialize, Serialize};

use super::super::frame::HEADER;
use super::super::segments::SEGMENT;
use super::protocol::damaged;

/// Slots of a lane.
pub const SLOTS: usize = 16;

/// Longest payload of a slot.
pub const LONGEST: usize = SEGMENT;

/// Words before the slots, on a page of their own.
const WORDS: usize = 1024;

/// Bytes before a slot's payload, of which the header takes most.
const MARGIN: usize = 128;

const SLOT: usize = MARGIN + LONGEST;
const LANE: usize = WORDS * 4 + SLOTS * SLOT;
const BYTES: u64 = 2 * LANE as u64;

/// Where the words of a lane are: those that different processes write are in different cache lines.
const SENT: usize = 0;
const RESTING: usize = 16;
const SECRET: usize = 32;
const STATES: usize = 64;
const ORDER: usize = 128;

/// What a rank tells another of memory that it has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The running system that it is on.
    boot: String,
    /// Its process there.
    process: u32,
    /// The file there.
    file: i32,
    /// What is written in the memory.
    secret: [u32; 4],
}

/// The memory.
#[derive(Debug)]
pub struct Memory {
    map: MmapRaw,
}

impl Memory {
    /// Makes memory. The offer holds as long as the file is open.
    ///
    /// # Errors
    /// If the system has none.
    pub fn make() -> Result<(Arc<Self>, Offer, File)> {
        let (file, number) = system::make(BYTES)?;
        let memory = Arc::new(Self { map: MmapRaw::map_raw(&file)? });
        let mut secret = [0; 4];
        for (word, at) in secret.iter_mut().zip(SECRET..) {
            *word = getrandom::u32().map_err(|error| Error::other(error.to_string()))?;
            Lane { memory: memory.clone(), start: 0 }.word(at).store(*word, Release);
        }
        let (boot, process) = (system::boot()?, std::process::id());
        Ok((memory, Offer { boot, process, file: number, secret }, file))
    }

    /// The memory that another process offers.
    ///
    /// # Errors
    /// If it cannot be reached from here: another host, container or user.
    pub fn open(offer: &Offer) -> Result<Arc<Self>> {
        if system::boot()? != offer.boot {
            return Err(damaged("the memory of another host".to_string()));
        }
        let file = system::open(offer, BYTES)?;
        let memory = Arc::new(Self { map: MmapRaw::map_raw(&file)? });
        let lane = Lane { memory: memory.clone(), start: 0 };
        let same = |(word, at)| lane.word(at).load(Acquire) == word;
        if !offer.secret.into_iter().zip(SECRET..).all(same) {
            return Err(damaged("not the memory that was offered".to_string()));
        }
        Ok(memory)
    }

    /// The lane from the process that has made the memory, or to it.
    pub fn lane(self: &Arc<Self>, from_maker: bool) -> Lane {
        Lane { memory: self.clone(), start: if from_maker { 0 } else { LANE } }
    }
}

/// One direction.
#[derive(Debug, Clone)]
pub struct Lane {
    memory: Arc<Memory>,
    /// In bytes.
    start: usize,
}

impl Lane {
    /// Messages that were sent ever; wraps.
    pub fn sent(&self) -> &AtomicU32 {
        self.word(SENT)
    }

    /// Not 0, where the receiver wants to be told of the next message.
    pub fn resting(&self) -> &AtomicU32 {
        self.word(RESTING)
    }

    /// Not 0, where the slot belongs to the receiver.
    pub fn taken(&self, slot: usize) -> &AtomicU32 {
        assert!(slot < SLOTS, "a slot");
        self.word(STATES + slot)
    }

    /// The slot of the message with this number.
    pub fn order(&self, number: u32) -> &AtomicU32 {
        self.word(ORDER + number as usize % SLOTS)
    }

    /// Fills a slot that belongs to this process, which sends.
    pub fn fill(&self, slot: usize, header: &[u8; HEADER], payload: &[u8]) {
        assert!(payload.len() <= LONGEST, "a payload of one slot");
        let to = self.slot(slot);
        // SAFETY: `slot` is the start of SLOT bytes of the map, of which these are the first
        // MARGIN and no more than LONGEST after them; the peer does not touch a slot that belongs to the
        // sender, and within this process only the one who sends (one at a time) does.
        unsafe {
            to.copy_from_nonoverlapping(header.as_ptr(), HEADER);
            to.add(MARGIN).copy_from_nonoverlapping(payload.as_ptr(), payload.len());
        }
    }

    /// The header in a slot that belongs to this process, which receives.
    pub fn header(&self, slot: usize) -> [u8; HEADER] {
        // SAFETY: as `slot`; a header is bytes, which may have any value.
        unsafe { self.slot(slot).cast::<[u8; HEADER]>().read() }
    }

    /// The first bytes of the payload in a slot that belongs to this process, which receives.
    fn payload(&self, slot: usize, length: usize) -> &[u8] {
        assert!(length <= LONGEST, "a payload of one slot");
        // SAFETY: within the slot, as in `fill`; the map lives as long as `self`. Nobody writes there until
        // the slot is given back, which `Slot` does when it is dropped, after the last borrow.
        unsafe { std::slice::from_raw_parts(self.slot(slot).add(MARGIN), length) }
    }

    fn slot(&self, slot: usize) -> *mut u8 {
        assert!(slot < SLOTS, "a slot");
        // SAFETY: the map has two lanes, and a lane has SLOTS slots after its words.
        unsafe { self.memory.map.as_mut_ptr().add(self.start + WORDS * 4 + slot * SLOT) }
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at < WORDS, "a word");
        // SAFETY: within the map, which begins at a page, so it is aligned; it lives as long as `self`; these
        // words are only ever used as atomics, in both processes.
        unsafe { AtomicU32::from_ptr(self.memory.map.as_mut_ptr().add(self.start + at * 4).cast()) }
    }
}

/// A message's payload where the peer has put it. The peer gets the slot back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    lane: Lane,
    slot: usize,
    length: usize,
}

impl Slot {
    /// The first bytes of the payload in a slot that has become this process's.
    ///
    /// # Panics
    /// If there is no such slot, or it has not so many bytes.
    pub fn new(lane: Lane, slot: usize, length: usize) -> Self {
        assert!(slot < SLOTS && length <= LONGEST, "a part of a slot");
        Self { lane, slot, length }
    }
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        self.lane.payload(self.slot, self.length)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.lane.taken(self.slot).store(0, Release);
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;
    use std::io::{Error, Result};
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::fs::OpenOptionsExt;

    use super::super::protocol::damaged;
    use super::Offer;

    /// Its size stays as it is.
    const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

    /// Makes a file without a name, and says its number.
    pub fn make(bytes: u64) -> Result<(File, i32)> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name ends with a zero, and the call touches no other memory.
        let number = unsafe { libc::memfd_create(c"burn-titan".as_ptr(), flags) };
        if number < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the system has just made this file for us alone.
        let file = unsafe { File::from_raw_fd(number) };
        file.set_len(bytes)?;
        // SAFETY: the call takes numbers only.
        if unsafe { libc::fcntl(number, libc::F_ADD_SEALS, SEALS) } < 0 {
            return Err(Error::last_os_error());
        }
        Ok((file, number))
    }

    /// Opens the file of another process, if it is of this kind and size.
    pub fn open(offer: &Offer, bytes: u64) -> Result<File> {
        let mut options = File::options();
        // Whatever it may be there: not to wait for it.
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(format!("/proc/{}/fd/{}", offer.process, offer.file))?;
        // SAFETY: the call takes numbers only.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & SEALS != SEALS || file.metadata()?.len() != bytes {
            return Err(damaged("not the memory that was offered".to_string()));
        }
        Ok(file)
    }

    /// The running system: another one after each start of the host.
    pub fn boot() -> Result<String> {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::fs::File;
    use std::io::{ErrorKind, Result};

    use super::Offer;

    pub fn make(_: u64) -> Result<(File, i32)> {
        Err(ErrorKind::Unsupported.into())
    }

    pub fn open(_: &Offer, _: u64) -> Result<File> {
        Err(ErrorKind::Unsupported.into())
    }

    pub fn boot() -> Result<String> {
        Err(ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_writes_the_other_reads() {
        let (made, offer, file) = Memory::make().unwrap();
        let opened = Memory::open(&offer).unwrap();
        assert!(file.set_len(1).is_err(), "nobody can take the memory away");
        drop(file);
        for from_maker in [true, false] {
            let (to, from) = (made.lane(from_maker), opened.lane(from_maker));
            let last = SLOTS - 1;
            let payload: Vec<u8> = (0..LONGEST).map(|i| (i % 251) as u8).collect();
            to.fill(last, &[7; HEADER], &payload);
            to.taken(last).store(1, Release);
            assert_eq!(from.header(last), [7; HEADER]);
            let slot = Slot::new(from, last, LONGEST);
            assert!(slot.as_ref() == payload);
            drop(slot);
            assert_eq!(to.taken(last).load(Acquire), 0, "the slot is given back");
        }
    }

    #[test]
    fn what_is_not_offered_is_not_opened() {
        let (_memory, offer, file) = Memory::make().unwrap();
        let refused = |wrong: Offer| assert!(Memory::open(&wrong).is_err(), "{wrong:?}");
        refused(Offer { boot: "another start".to_string(), ..offer.clone() });
        refused(Offer { secret: [0; 4], ..offer.clone() });
        refused(Offer { process: 0, ..offer.clone() });
        refused(Offer { file: -1, ..offer.clone() });
        // The number of a file that is something else.
        refused(Offer { file: 0, ..offer.clone() });
        assert!(Memory::open(&offer).is_ok());
        drop(file);
        refused(offer);
    }
}
