//! Memory and processor time of processes, from `/proc`.

use std::fs::read_to_string;
use std::time::Duration;

/// Bytes of memory that this process uses, including swap; 0 if unknown.
#[must_use]
pub(crate) fn resident_memory() -> usize {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().filter_map(|line| {
        let value = line.strip_prefix("VmRSS:").or_else(|| line.strip_prefix("VmSwap:"))?;
        value.split_whitespace().next()?.parse::<usize>().ok()
    });
    kilobytes.sum::<usize>() * 1024
}

/// Processor time of a running process without its children; zero if unknown.
#[must_use]
pub(crate) fn cpu_time_of(process: u32) -> Duration {
    let stat = read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name is in parentheses and may contain any character.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = rest.split(' ').skip(11).take(2).filter_map(|time| time.parse::<u64>().ok());
    // The kernel reports hundredths of a second (USER_HZ) on all common architectures.
    Duration::from_millis(10 * ticks.sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_memory() {
        let bytes = resident_memory();
        assert!((500_000..10_000_000_000).contains(&bytes), "{bytes}");
    }
}
