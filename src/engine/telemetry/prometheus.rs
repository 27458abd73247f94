//! The Prometheus text format (version 0.0.4), following its naming conventions. No label value can
//! be chosen by users or messages.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::stats::{BUCKETS, End, KINDS, LimitHit, MODES, OUTCOMES, RELOADS, Stats};
use crate::engine::espocrm::submission::Rejection;
use crate::engine::telemetry::rates::Counts;

/// Current values: the gauges, and counters that [`Stats`] does not have.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// EspoCRM's version.
    pub espocrm: String,
    /// Start of the daemon, in milliseconds since 1970.
    pub started: u64,
    /// Connections in any phase.
    pub connections: usize,
    /// The limit of connections.
    pub max_connections: usize,
    /// Connected users.
    pub users: usize,
    /// Granted subscriptions by category.
    pub subscriptions: Vec<(String, u64)>,
    /// Checks that are running.
    pub checks_running: usize,
    /// Checks that wait to be started.
    pub checks_queued: usize,
    /// Counts of the last minute.
    pub last_minute: Counts,
    /// Buffer memory of all connections in bytes, beyond their fixed cost.
    pub buffered: usize,
    /// Resident memory in bytes.
    pub resident: usize,
    /// Upper bound of the daemon's memory in bytes.
    pub worst_case: usize,
    /// CPU time of the daemon.
    pub cpu: Duration,
    /// CPU time of PHP.
    pub php_cpu: Duration,
    /// Whether the ZeroMQ socket is bound.
    pub is_zmq_bound: bool,
    /// Reasons why the daemon is unhealthy; empty if it is healthy.
    pub problems: Vec<String>,
}

/// Renders all metrics.
#[must_use]
pub fn text(stats: &Stats, now: &Figures) -> String {
    let mut text = Text::default();
    text.family("build_info", GAUGE, "Versions of the daemon and of EspoCRM.");
    let versions = [("version", env!("CARGO_PKG_VERSION")), ("espocrm", &now.espocrm)];
    text.sample("build_info", &versions, &1);
    text.gauge("healthy", "Whether the daemon is healthy: 1 if /healthz returns 200.", {
        usize::from(now.problems.is_empty())
    });

    text.gauge("connections", "Open connections of browsers.", now.connections);
    text.gauge("connections_max", "Limit of open connections.", now.max_connections);
    text.gauge("users", "Connected users.", now.users);
    text.counter("connections_opened_total", "Connections accepted.", stats.opened);
    let (refused, ended) = End::NAMES.split_at(End::REFUSALS);
    text.counters(
        "connections_refused_total",
        "Connections rejected before they were admitted.",
        "reason",
        refused.iter().copied().zip(stats.ends),
    );
    text.counters(
        "connections_ended_total",
        "Connections that ended after they were admitted.",
        "reason",
        ended.iter().copied().zip(stats.ends.into_iter().skip(End::REFUSALS)),
    );
    text.counter(
        "accept_failures_total",
        "Failures to accept a connection for lack of file descriptors or memory.",
        stats.accept_failures,
    );
    text.family("subscriptions", GAUGE, "Granted subscriptions.");
    for (category, count) in &now.subscriptions {
        text.sample("subscriptions", &[("category", category)], count);
    }
    text.counters(
        "limit_hits_total",
        "Requests that were skipped or delayed by a limit, without closing a connection.",
        "limit",
        LimitHit::NAMES.iter().copied().zip(stats.limit_hits),
    );

    text.counter("messages_received_total", "Messages received from EspoCRM.", stats.messages);
    text.counters(
        "messages_dropped_total",
        "Messages from EspoCRM that were dropped.",
        "reason",
        Rejection::NAMES.iter().copied().zip(stats.dropped),
    );
    text.counter("deliveries_total", "Events sent to connections.", stats.deliveries);
    text.gauge("zmq_bound", "Whether the ZeroMQ socket is bound.", {
        usize::from(now.is_zmq_bound)
    });
    text.counter(
        "zmq_restarts_total",
        "Times that the ZeroMQ socket was recreated.",
        stats.zmq_restarts,
    );

    text.family("checks_total", COUNTER, "Finished access checks.");
    for (kind, counts) in KINDS.iter().zip(stats.checks) {
        for (outcome, count) in OUTCOMES.iter().zip(counts) {
            text.sample("checks_total", &[("kind", kind), ("outcome", outcome)], &count);
        }
    }
    text.check_times(stats);
    text.counter(
        "checks_cached_total",
        "Access checks that were answered from the check cache.",
        stats.checks_cached,
    );
    text.gauge("checks_running", "Access checks that are running.", now.checks_running);
    text.gauge("checks_queued", "Access checks that wait in the queue.", now.checks_queued);
    text.counters(
        "php_runs_total",
        "Runs of PHP for an access check.",
        "mode",
        MODES.into_iter().zip(stats.runs),
    );
    text.counter("php_worker_failures_total", "PHP workers that failed.", stats.worker_failures);
    text.family("php_cpu_seconds_total", COUNTER, "CPU time of PHP.");
    text.sample("php_cpu_seconds_total", &[], &Seconds(now.php_cpu));

    text.counters(
        "reloads_total",
        "Reloads of EspoCRM's settings.",
        "result",
        RELOADS.into_iter().zip(stats.reloads),
    );
    text.gauge("buffered_bytes", "Buffer memory of all connections.", now.buffered);
    text.gauge("memory_worst_case_bytes", "Upper bound of the daemon's memory.", now.worst_case);

    // Names that all programs use.
    text.prefix = "process_";
    text.gauge("resident_memory_bytes", "Memory, including swapped-out pages.", now.resident);
    text.family("cpu_seconds_total", COUNTER, "CPU time, without PHP.");
    text.sample("cpu_seconds_total", &[], &Seconds(now.cpu));
    text.family("start_time_seconds", GAUGE, "Start time in seconds since 1970.");
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
        self.family(name, "histogram", "Duration of access checks, without time in the queue.");
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

/// A duration in seconds, to the millisecond.
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
    fn every_line_belongs_to_a_family_with_help() {
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
            assert!(name.starts_with(&family), "{line} is not in family {family}");
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
