//! The text that Prometheus reads (its text format, version 0.0.4), by its conventions for names. No
//! label has a value that users or messages could choose.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::stats::{BUCKETS, End, KINDS, LimitHit, MODES, OUTCOMES, RELOADS, Stats};
use crate::engine::espocrm::submission::Rejection;
use crate::engine::telemetry::rates::Counts;

/// How things are at this moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// EspoCRM's version.
    pub espocrm: String,
    /// When the daemon has started, in milliseconds since 1970.
    pub started: u64,
    /// Connections, however far they have come.
    pub connections: usize,
    /// How many there may be.
    pub max_connections: usize,
    /// Users who are connected.
    pub users: usize,
    /// Granted subscriptions by category.
    pub subscriptions: Vec<(String, u64)>,
    /// Checks that run.
    pub checks_running: usize,
    /// Checks that wait to be run.
    pub checks_queued: usize,
    /// Counts of the last minute.
    pub last_minute: Counts,
    /// Bytes that connections hold beyond their fixed cost.
    pub held: usize,
    /// Bytes of memory.
    pub resident: usize,
    /// Bytes of memory that it may come to.
    pub worst_case: usize,
    /// Processor time of the daemon.
    pub cpu: Duration,
    /// Processor time of PHP.
    pub php_cpu: Duration,
    /// EspoCRM's messages are received.
    pub is_zmq_bound: bool,
    /// Why it is not really serving.
    pub problems: Vec<String>,
}

/// All metrics.
#[must_use]
pub fn text(stats: &Stats, now: &Figures) -> String {
    let mut text = Text::default();
    text.family("build_info", GAUGE, "Versions of the daemon and of EspoCRM.");
    let versions = [("version", env!("CARGO_PKG_VERSION")), ("espocrm", &now.espocrm)];
    text.sample("build_info", &versions, &1);
    text.gauge("healthy", "Whether it is really serving: what /healthz says.", {
        usize::from(now.problems.is_empty())
    });

    text.gauge("connections", "Connections of browsers.", now.connections);
    text.gauge("connections_max", "How many there may be.", now.max_connections);
    text.gauge("users", "Users who are connected.", now.users);
    text.counter("connections_opened_total", "Connections accepted.", stats.opened);
    let (refused, ended) = End::NAMES.split_at(End::REFUSALS);
    text.counters(
        "connections_refused_total",
        "Connections that were not let in.",
        "reason",
        refused.iter().copied().zip(stats.ends),
    );
    text.counters(
        "connections_ended_total",
        "Connections that have ended after they had been let in.",
        "reason",
        ended.iter().copied().zip(stats.ends.into_iter().skip(End::REFUSALS)),
    );
    text.counter(
        "accept_failures_total",
        "Times that a connection could not be accepted, for want of descriptors or memory.",
        stats.accept_failures,
    );
    text.family("subscriptions", GAUGE, "Subscriptions that were granted.");
    for (category, count) in &now.subscriptions {
        text.sample("subscriptions", &[("category", category)], count);
    }
    text.counters(
        "limit_hits_total",
        "What was left out because a limit was hit, without anybody being disconnected.",
        "limit",
        LimitHit::NAMES.iter().copied().zip(stats.limit_hits),
    );

    text.counter("messages_received_total", "Messages of EspoCRM.", stats.messages);
    text.counters(
        "messages_dropped_total",
        "Messages that were dropped.",
        "reason",
        Rejection::NAMES.iter().copied().zip(stats.dropped),
    );
    text.counter(
        "deliveries_total",
        "Times that a message was told to a connection.",
        stats.deliveries,
    );
    text.gauge("zmq_bound", "Whether EspoCRM's messages are received.", {
        usize::from(now.is_zmq_bound)
    });
    text.counter(
        "zmq_restarts_total",
        "Times that the socket for EspoCRM's messages was opened anew.",
        stats.zmq_restarts,
    );

    text.family("checks_total", COUNTER, "Access checks that have ended.");
    for (kind, counts) in KINDS.iter().zip(stats.checks) {
        for (outcome, count) in OUTCOMES.iter().zip(counts) {
            text.sample("checks_total", &[("kind", kind), ("outcome", outcome)], &count);
        }
    }
    text.check_times(stats);
    text.counter(
        "checks_cached_total",
        "Access checks that were answered from a moment ago.",
        stats.checks_cached,
    );
    text.gauge("checks_running", "Access checks that are running.", now.checks_running);
    text.gauge("checks_queued", "Access checks that wait to be run.", now.checks_queued);
    text.counters(
        "php_runs_total",
        "Times that PHP was asked for an access check.",
        "mode",
        MODES.into_iter().zip(stats.runs),
    );
    text.counter("php_worker_failures_total", "PHP workers that failed.", stats.worker_failures);
    text.family("php_cpu_seconds_total", COUNTER, "Processor time of PHP.");
    text.sample("php_cpu_seconds_total", &[], &Seconds(now.php_cpu));

    text.counters(
        "reloads_total",
        "Times that EspoCRM's settings were read again.",
        "result",
        RELOADS.into_iter().zip(stats.reloads),
    );
    text.gauge("buffered_bytes", "What connections hold beyond their fixed cost.", now.held);
    text.gauge("memory_worst_case_bytes", "What memory may come to at most.", now.worst_case);

    // By the names that all programs use.
    text.prefix = "process_";
    text.gauge("resident_memory_bytes", "Memory, swapped out or not.", now.resident);
    text.family("cpu_seconds_total", COUNTER, "Processor time, without PHP's.");
    text.sample("cpu_seconds_total", &[], &Seconds(now.cpu));
    text.family("start_time_seconds", GAUGE, "When it has started, since 1970.");
    text.sample("start_time_seconds", &[], &Seconds(Duration::from_millis(now.started)));
    text.text
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

struct Text {
    text: String,
    prefix: &'static str,
}

impl Default for Text {
    fn default() -> Self {
        Self { text: String::with_capacity(12 * 1024), prefix: "espocrm_websocket_" }
    }
}

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let name = format!("{}{name}", self.prefix);
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: &dyn Display) {
        self.text.push_str(self.prefix);
        self.text.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{separator}{label}=\"{value}\"");
            separator = ',';
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.family(name, GAUGE, help);
        self.sample(name, &[], &value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, COUNTER, help);
        self.sample(name, &[], &value);
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counts: impl Iterator<Item = (&'static str, u64)>,
    ) {
        self.family(name, COUNTER, help);
        for (value, count) in counts {
            self.sample(name, &[(label, value)], &count);
        }
    }

    fn check_times(&mut self, stats: &Stats) {
        let name = "check_duration_seconds";
        self.family(name, "histogram", "How long access checks took, from their start.");
        let mut sum = 0;
        for (most, count) in BUCKETS.into_iter().map(Some).chain([None]).zip(stats.check_times) {
            sum += count;
            let most = most.map_or("+Inf".to_owned(), |millis| {
                let seconds = Seconds(Duration::from_millis(millis)).to_string();
                seconds.trim_end_matches('0').trim_end_matches('.').to_owned()
            });
            self.sample("check_duration_seconds_bucket", &[("le", &most)], &sum);
        }
        let took = Seconds(Duration::from_millis(stats.check_millis));
        self.sample("check_duration_seconds_sum", &[], &took);
        self.sample("check_duration_seconds_count", &[], &sum);
    }
}

/// A length of time in seconds, to the millisecond.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checks::check::Urgency;
    use crate::engine::checks::verdict::Verdict;

    #[test]
    fn every_line_is_of_a_family_that_is_explained() {
        let mut stats = Stats::default();
        stats.end(End::Kicked);
        stats.check(Urgency::Authentication, &Verdict::Granted, 40);
        stats.check(Urgency::Recheck, &Verdict::Denied, 6_000);
        let figures = Figures {
            espocrm: "9.\"2\\\n".to_owned(),
            subscriptions: vec![("a.b".to_owned(), 7)],
            ..Figures::default()
        };
        let text = text(&stats, &figures);
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                family = rest.split(' ').nth(1).unwrap().to_owned();
                continue;
            }
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&family), "{line} is not of {family}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
        for line in [
            "espocrm_websocket_build_info{version=\"0.1.0\",espocrm=\"9.\\\"2\\\\\\n\"} 1",
            "espocrm_websocket_healthy 1",
            "espocrm_websocket_connections_refused_total{reason=\"origin\"} 0",
            "espocrm_websocket_connections_ended_total{reason=\"kicked\"} 1",
            "espocrm_websocket_subscriptions{category=\"a.b\"} 7",
            "espocrm_websocket_checks_total{kind=\"recheck\",outcome=\"denied\"} 1",
            "espocrm_websocket_check_duration_seconds_bucket{le=\"0.01\"} 0",
            "espocrm_websocket_check_duration_seconds_bucket{le=\"0.05\"} 1",
            "espocrm_websocket_check_duration_seconds_bucket{le=\"5\"} 1",
            "espocrm_websocket_check_duration_seconds_bucket{le=\"+Inf\"} 2",
            "espocrm_websocket_check_duration_seconds_sum 6.040",
            "process_start_time_seconds 0.000",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
    }
}
