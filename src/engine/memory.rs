//! The memory that connections buffer: when it is short, and which connections are evicted.

mod trim;

use std::time::Duration;

use super::id::ConnId;
use super::limits::MAX_BUFFERED_AT_PACE;
use super::time::Time;
use trim::Trim;

/// Enforces the limit of bytes that all connections buffer together, and decides when freed memory
/// is returned to the system.
#[derive(Debug)]
pub struct Memory {
    /// The limit of buffered bytes.
    limit: usize,
    /// No connection is evicted before this time.
    next_eviction: Time,
    /// When to return freed memory to the kernel.
    trim: Trim,
}

/// What a connection buffers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The connection.
    pub id: ConnId,
    /// Partial input, queued output, subscriptions and prefixes.
    pub total: usize,
    /// Queued output only.
    pub output: usize,
}

/// Pause between evictions when connections that keep pace exceed the limit.
const EVICTION_PAUSE: Duration = Duration::from_millis(100);

impl Memory {
    /// Allows `limit` buffered bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, next_eviction: Time::default(), trim: Trim::default() }
    }

    /// Changes the limit.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Whether buffered bytes exceed half of the limit.
    #[must_use]
    pub fn is_short(&self, buffered: usize) -> bool {
        buffered > self.limit / 2
    }

    /// Whether connections are to be evicted.
    #[must_use]
    pub fn is_exceeded(&self, now: Time, buffered: usize) -> bool {
        buffered > self.limit && now >= self.next_eviction
    }

    /// The connections to be evicted, the largest first: as many as are needed to free a quarter of
    /// the limit. Connections that keep pace are not evicted for their output.
    #[must_use]
    pub fn evict(
        &mut self,
        now: Time,
        buffered: usize,
        connections: impl Iterator<Item = Usage>,
        keeps_pace: impl Fn(ConnId) -> bool,
    ) -> Vec<Usage> {
        if !self.is_exceeded(now, buffered) {
            return Vec::new();
        }
        let mut candidates: Vec<Usage> = connections
            .filter(|it| {
                let is_usual = it.total.saturating_sub(it.output) <= MAX_BUFFERED_AT_PACE;
                it.total > 0 && !(is_usual && keeps_pace(it.id))
            })
            .collect();
        candidates.sort_unstable_by_key(|it| (it.total, it.id));
        let mut evicted = Vec::new();
        let mut left = buffered;
        while left > self.limit / 4 * 3
            && let Some(largest) = candidates.pop()
        {
            left = left.saturating_sub(largest.total);
            evicted.push(largest);
        }
        if left > self.limit {
            // The others keep pace. Repeating this at each read would cost too much.
            self.next_eviction = now.after(EVICTION_PAUSE);
        }
        evicted
    }

    /// Updates the number of bytes in use, of the whole process.
    pub fn update(&mut self, now: Time, used: usize) {
        self.trim.update(now, used);
    }

    /// When [`take_trim`](Self::take_trim) must be called.
    #[must_use]
    pub fn next_trim(&self) -> Option<Time> {
        self.trim.next_due()
    }

    /// Whether unused memory is to be returned to the system now, some seconds after the load has
    /// dropped.
    pub fn take_trim(&mut self, now: Time, used: usize) -> bool {
        self.trim.take_due(now, used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 4_000_000;
    const NOW: Time = Time::from_millis(1_000);

    fn usage(number: u32, total: usize, output: usize) -> Usage {
        Usage { id: ConnId::new(number, number), total, output }
    }

    /// The connections that are evicted, of those that buffer this much output and nothing else.
    fn evicted(memory: &mut Memory, now: Time, output: &[usize], at_pace: &[u32]) -> Vec<u32> {
        let all = output
            .iter()
            .enumerate()
            .map(|(index, output)| usage(u32::try_from(index).unwrap(), *output, *output));
        let keeps_pace = |id: ConnId| at_pace.contains(&id.serial());
        let evicted = memory.evict(now, output.iter().sum(), all, keeps_pace);
        evicted.iter().map(|it| it.id.serial()).collect()
    }

    #[test]
    fn memory_is_short_above_half_of_the_limit() {
        let mut memory = Memory::new(LIMIT);
        assert!(!memory.is_short(LIMIT / 2) && memory.is_short(LIMIT / 2 + 1));
        memory.set_limit(2 * LIMIT);
        assert!(!memory.is_short(LIMIT));
    }

    #[test]
    fn nothing_is_evicted_at_the_limit() {
        let mut memory = Memory::new(LIMIT);
        assert_eq!(evicted(&mut memory, NOW, &[LIMIT], &[]), [0; 0]);
        assert_eq!(evicted(&mut memory, NOW, &[LIMIT, 1], &[]), [0]);
    }

    #[test]
    fn the_largest_are_evicted_until_a_quarter_is_free() {
        let mut memory = Memory::new(LIMIT);
        let mib = 1_000_000;
        assert_eq!(evicted(&mut memory, NOW, &[mib, 0, mib, 2 * mib, mib], &[]), [3]);
        let output = [mib, mib + 1, mib + 2, mib + 3, 2 * mib];
        assert_eq!(evicted(&mut memory, NOW, &output, &[]), [4, 3, 2]);
        memory.set_limit(0);
        assert_eq!(evicted(&mut memory, NOW, &[1, 0, 2], &[]), [2, 0]);
    }

    #[test]
    fn connections_that_keep_pace_are_not_evicted_for_their_output() {
        let mut memory = Memory::new(LIMIT);
        let output = [LIMIT, 10, 20, 30];
        assert_eq!(evicted(&mut memory, NOW, &output, &[0, 2]), [3, 1]);
        // The rest is above the limit, so the next eviction waits.
        let later = NOW.after(EVICTION_PAUSE);
        assert_eq!(evicted(&mut memory, NOW, &output, &[2]), [0; 0]);
        assert_eq!(evicted(&mut memory, later, &output, &[2]), [0]);
    }

    #[test]
    fn a_connection_that_keeps_pace_is_evicted_for_anything_else() {
        let mut memory = Memory::new(LIMIT);
        let all = [
            usage(1, LIMIT, LIMIT - MAX_BUFFERED_AT_PACE),
            usage(2, LIMIT, LIMIT - MAX_BUFFERED_AT_PACE - 1),
        ];
        let evicted = memory.evict(NOW, 2 * LIMIT, all.into_iter(), |_| true);
        assert_eq!(evicted, [all[1]]);
    }
}
