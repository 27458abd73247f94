//! The resources that a daemon uses, second by second.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::site::Site;
use crate::tally::Tally;

/// The resources of a daemon at one moment.
#[derive(Clone, Copy)]
pub struct Sample {
    pub at: Duration,
    /// KiB that the process has written. Not `Private_Dirty`, which is the same except while a
    /// child is being started, when these pages are shared.
    pub dirty: u64,
    pub rss: u64,
    pub descriptors: u64,
    /// Descriptors that are neither for connections of the clients nor for children.
    pub spare: u64,
    pub children: u64,
    pub zombies: u64,
    pub threads: u64,
    /// Milliseconds of processor time so far.
    pub cpu: u64,
}

/// Descriptors per child: its two outputs, and the connection to a worker.
pub const PER_CHILD: u64 = 3;

pub struct Sampler {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Vec<Sample>>>>,
}

impl Sampler {
    pub fn start(sites: &Arc<Vec<Site>>, tally: &Arc<Mutex<Tally>>) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (sites, tally, ended) = (Arc::clone(sites), Arc::clone(tally), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            let mut all: Vec<Vec<Sample>> = vec![Vec::new(); sites.len()];
            while !ended.load(Ordering::Relaxed) {
                for (site, samples) in sites.iter().zip(&mut all) {
                    if let Some(sample) = Sample::take(site, start.elapsed()) {
                        samples.push(sample);
                    } else {
                        let what = format!("the daemon exited: {}", site.name);
                        tally.lock().unwrap().violation(what);
                        return all;
                    }
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            all
        });
        Self { end, thread: Some(thread) }
    }

    /// All samples of each site.
    pub fn end(mut self) -> Vec<Vec<Sample>> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

impl Sample {
    /// `None` if the daemon has exited.
    pub fn take(site: &Site, at: Duration) -> Option<Self> {
        let pid = site.daemon.pid();
        if !site.is_up() {
            return None;
        }
        let connections = site.open() as u64;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        let (mut threads, mut nanoseconds) = (0, 0);
        for task in tasks {
            threads += 1;
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanoseconds += stat.split(' ').next().and_then(|it| it.parse().ok()).unwrap_or(0_u64);
        }
        let children = site.daemon.children();
        Some(Self {
            at,
            dirty: number(&rollup, "Anonymous:")?,
            rss: number(&rollup, "Rss:")?,
            descriptors,
            spare: descriptors.saturating_sub(connections + PER_CHILD * children.len() as u64),
            children: children.len() as u64,
            zombies: children.iter().filter(|child| child.state == 'Z').count() as u64,
            threads,
            cpu: nanoseconds / 1_000_000,
        })
    }
}

/// As the text of a file for later analysis.
pub fn to_text(samples: &[Sample]) -> String {
    let mut text = "seconds dirty rss descriptors spare children zombies threads cpu\n".to_owned();
    for Sample { at, dirty, rss, descriptors, spare, children, zombies, threads, cpu } in samples {
        let _ = writeln!(
            text,
            "{:.1} {dirty} {rss} {descriptors} {spare} {children} {zombies} {threads} {cpu}",
            at.as_secs_f64()
        );
    }
    text
}

/// The percentile of the values that `of` returns for the samples.
pub fn percentile(samples: &[Sample], of: impl Fn(&Sample) -> u64, rank: usize) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values.get(values.len() * rank / 100).copied().unwrap_or(0)
}

fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
