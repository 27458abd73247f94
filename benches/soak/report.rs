//! Whether the run succeeded, and the table of its results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::sampler::{Sample, percentile, to_text};
use crate::site::Site;
use crate::tab::Balance;
use crate::tally::Tally;

type Of = fn(&Sample) -> u64;

/// The results of the whole run.
pub struct Report {
    pub seconds: u64,
    pub seed: u64,
    pub text: String,
}

/// The lowest memory may be higher in the last third by this many KiB, or by a twentieth.
const LOWEST_MEMORY: u64 = 512;

/// The same for the median: glibc returns free memory in large steps, and sometimes keeps a MiB or
/// two.
const MEDIAN_MEMORY: u64 = 1024;

/// Processes start and end with checks.
const PROCESSES: u64 = 3;

/// Descriptors of connections: the daemon, or a proxy, may see a close later than the client.
const DESCRIPTORS: u64 = 6;

impl Report {
    pub fn new(seconds: u64, seed: u64) -> Self {
        Self { seconds, seed, text: format!("\nSoak of {seconds} s, SEED={seed}\n") }
    }

    pub fn traffic(&mut self, tally: &mut Tally, sites: &[Site], balances: &[Balance]) {
        let sum = |of: fn(&Balance) -> u64| balances.iter().map(of).sum::<u64>();
        let (expected, received) = (sum(|it| it.expected), sum(|it| it.received));
        let sent: usize = sites.iter().map(|site| site.sent_log.total()).sum();
        let missing = balances.iter().flat_map(|balance| &balance.missing);
        for what in missing {
            tally.violation(what.clone());
        }
        let opened = |prefix: &str| {
            let these = tally.opened.iter().filter(|(name, _)| name.starts_with(prefix));
            let these: Vec<_> = these.collect();
            let total = these.iter().map(|(_, count)| **count).sum::<u64>();
            let parts = these.iter().map(|(name, count)| format!("{count} {name}"));
            (total, parts.collect::<Vec<_>>().join(", "))
        };
        let (connections, by_plan) = opened("to ");
        let (_, by_endpoint) = opened("at ");
        self.line("connections", &format!("{connections}: {by_endpoint}"));
        self.line("", &by_plan);
        self.line("messages sent", &sent.to_string());
        self.line(
            "deliveries",
            &format!("{} in all, {:.1} MB", tally.delivered, tally.bytes as f64 / 1e6),
        );
        let permanent = balances.len();
        self.line(
            "to permanent clients",
            &format!("{received} of {expected} expected, {permanent} connections at the end"),
        );
        for (name, count) in &tally.counts {
            self.line(name, &count.to_string());
        }
    }

    /// The resources that a daemon used in each third of the run.
    pub fn resources(&mut self, tally: &mut Tally, site: &Site, samples: &[Sample]) {
        let third = Duration::from_secs(self.seconds) / 3;
        let in_third = |number: u32| {
            let these = samples
                .iter()
                .filter(move |it| it.at >= third * number && it.at < third * (number + 1));
            these.copied().collect::<Vec<_>>()
        };
        let thirds = [in_third(0), in_third(1), in_third(2)];
        let _ = writeln!(
            self.text,
            "\n{:<28}{:>12}{:>12}{:>12}",
            format!("Daemon ({})", site.name),
            "1st third",
            "2nd third",
            "3rd third"
        );
        let rows: [(&str, Of, usize, Option<u64>); 8] = [
            ("private memory, KiB", |it| it.dirty, 50, Some(MEDIAN_MEMORY)),
            // The memory that it does not return when there is less traffic.
            ("  lowest tenth", |it| it.dirty, 10, Some(LOWEST_MEMORY)),
            ("resident, KiB", |it| it.rss, 50, None),
            ("descriptors", |it| it.descriptors, 50, None),
            ("  other", |it| it.spare, 50, Some(DESCRIPTORS)),
            ("children", |it| it.children, 50, Some(PROCESSES)),
            ("  not reaped", |it| it.zombies, 50, Some(0)),
            ("threads", |it| it.threads, 50, Some(0)),
        ];
        for (name, of, rank, tolerance) in rows {
            let [first, second, last] =
                [0, 1, 2].map(|number| percentile(&thirds[number], of, rank));
            let _ = writeln!(self.text, "{name:<28}{first:>12}{second:>12}{last:>12}");
            // Memory may also grow by a twentieth.
            let allowance =
                tolerance.map(|it| if it >= LOWEST_MEMORY { it.max(first / 20) } else { it });
            if allowance.is_some_and(|allowance| last > first + allowance) {
                tally.violation(format!("{name} of {}: {first}, then {last}", site.name));
            }
        }
        let cpu = thirds.map(|samples| match (samples.first(), samples.last()) {
            (Some(first), Some(last)) => last.cpu - first.cpu,
            _ => 0,
        });
        let [first, second, last] = cpu.map(|millis| format!("{:.1}", millis as f64 / 1e3));
        let _ = writeln!(self.text, "{:<28}{first:>12}{second:>12}{last:>12}", "processor time, s");
    }

    /// Checks a daemon's log for forbidden lines, and summarizes its warnings.
    pub fn log(&mut self, tally: &mut Tally, site: &Site, log: &[String], permitted_errors: u64) {
        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        let mut errors = 0;
        for line in log {
            // 2026-01-31T12:34:56.789Z [WARN ] Text of the line.
            let text = line.split_once("Z [").map_or(line.as_str(), |(_, text)| text);
            let (level, text) = text.split_once("] ").unwrap_or(("", text));
            let level = level.trim_end();
            if level != "INFO" {
                *kinds.entry(format!("{level} {}", kind(text))).or_default() += 1;
            }
            let is_permitted = text.contains("Keeping the previous settings.");
            errors += u64::from(is_permitted && level == "ERROR");
            if (level == "ERROR" && !is_permitted) || text.contains("panicked") {
                tally.violation(format!("in the log of {}: {text}", site.name));
            }
            if text.contains("tok-") {
                tally.violation(format!("the log of {} contains a token", site.name));
            }
        }
        if errors > permitted_errors {
            tally.violation(format!("{errors} errors in the log of {}", site.name));
        }
        let rest = log.len() as u64 - kinds.values().sum::<u64>();
        let _ = writeln!(
            self.text,
            "\nLog of the daemon ({}), without {rest} information lines",
            site.name
        );
        for (kind, count) in kinds {
            let _ = writeln!(self.text, "{count:>7} {kind}");
        }
    }

    pub fn verdict(&mut self, tally: &Tally) {
        let count = tally.violations.len() as u64 + tally.more_violations;
        let _ = writeln!(self.text);
        for violation in &tally.violations {
            let _ = writeln!(self.text, "VIOLATION {violation}");
        }
        let _ = match count {
            0 => writeln!(self.text, "Verdict: good."),
            count => writeln!(self.text, "Verdict: {count} violations. SEED={}", self.seed),
        };
    }

    fn line(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.text, "{name:<44} {value}");
    }
}

/// A log line without its variable parts.
fn kind(text: &str) -> String {
    let mut kind = String::new();
    for char in text.chars() {
        let char = if char.is_ascii_digit() { '#' } else { char };
        if char != '#' || !kind.ends_with('#') {
            kind.push(char);
        }
    }
    kind.chars().take(130).collect()
}

/// Writes the samples of the last run, and the end of the log if the run failed.
pub fn keep(dir: &std::path::Path, name: &str, samples: &[Sample], log: &[String]) {
    let name = name.replace([' ', ','], "-");
    std::fs::write(dir.join(format!("{name}.samples")), to_text(samples)).unwrap();
    let tail = log.len().saturating_sub(50);
    std::fs::write(dir.join(format!("{name}.log")), log[tail..].join("\n")).unwrap();
}
