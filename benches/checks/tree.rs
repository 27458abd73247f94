//! A process and its descendants, according to `/proc`.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The processor time of a process, of its ended children, and of its living children.
pub fn cpu(pid: u32) -> Duration {
    let own = Stat::read(pid).unwrap();
    let children = descendants(pid).into_iter().filter_map(Stat::read);
    let ticks = own.ticks + own.ended_ticks + children.map(|child| child.ticks).sum::<u64>();
    // 10 ms on every current Linux.
    Duration::from_millis(10 * ticks)
}

/// The peak resource usage of a process and its descendants.
pub struct Peak {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, usize)>,
}

impl Peak {
    pub fn watch(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut memory, mut count) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let children = descendants(pid);
                count = count.max(children.len());
                memory = memory.max(pss(pid) + children.into_iter().map(pss).sum::<u64>());
                std::thread::sleep(Duration::from_millis(20));
            }
            (memory, count)
        });
        Self { stop, thread }
    }

    /// Bytes (shared memory is divided among its users), and the number of descendants.
    pub fn end(self) -> (u64, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

struct Stat {
    parent: u32,
    ticks: u64,
    ended_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may contain any character.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            ticks: number(11)? + number(12)?,
            ended_ticks: number(13)? + number(14)?,
        })
    }
}

fn descendants(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for child in pids {
        if let Some(stat) = Stat::read(child) {
            children.entry(stat.parent).or_default().push(child);
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![pid]);
    while let Some(parent) = next.pop() {
        let of_parent = children.remove(&parent).unwrap_or_default();
        found.extend(&of_parent);
        next.extend(of_parent);
    }
    found
}

fn pss(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    1024 * kib.unwrap_or(0)
}
