//! Memory of this process and of its machine.

/// Resident memory of this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Now.
    pub current_bytes: u64,
    /// At most since the process began.
    pub peak_bytes: u64,
}

impl MemoryUse {
    /// The peak, in GiB.
    pub fn peak_gib(self) -> f64 {
        self.peak_bytes as f64 / (1u64 << 30) as f64
    }
}

/// Resident memory of this process as Linux counts it (`VmRSS` and `VmHWM` of
/// [`/proc/self/status`](https://man7.org/linux/man-pages/man5/proc_pid_status.5.html)); `None` on
/// other systems.
pub fn memory_use() -> Option<MemoryUse> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Physical memory of the machine, in bytes, as Linux counts it (`MemTotal` of
/// [`/proc/meminfo`](https://man7.org/linux/man-pages/man5/proc_meminfo.5.html)); `None` on other
/// systems.
pub fn physical_memory() -> Option<u64> {
    bytes_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

fn parse(status: &str) -> Option<MemoryUse> {
    let bytes = |key| bytes_of(status, key);
    Some(MemoryUse { current_bytes: bytes("VmRSS")?, peak_bytes: bytes("VmHWM")? })
}

/// The bytes that a line `key: 123 kB` says.
fn bytes_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        let status = "Name:\tx\nVmPeak:\t  900 kB\nVmHWM:\t  20 kB\nVmRSS:\t  16 kB\n";
        assert_eq!(parse(status), Some(MemoryUse { current_bytes: 16_384, peak_bytes: 20_480 }));
        for broken in ["", "VmHWM:\t20 kB\n", "VmHWM: 20 kB\nVmRSS: x kB\n", "VmHWM 2\nVmRSS: 3"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_has_more_than_the_process() {
        assert!(physical_memory().unwrap() > memory_use().unwrap().current_bytes);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn grows_with_what_is_touched() {
        let before = memory_use().unwrap();
        // Without the black box the compiler leaves the block away.
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = memory_use().unwrap();
        assert!(after.peak_bytes >= before.current_bytes + (32 << 20), "{before:?} {after:?}");
        assert!(after.peak_bytes >= after.current_bytes && block[1] == 1);
    }
}
