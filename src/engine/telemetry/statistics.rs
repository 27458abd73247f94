//! Every statistic, defined once. `/metrics`, the report of `espocrm-websocket status --json` and
//! the table in docs/monitoring.md are generated from [`STATISTICS`].

use std::fmt::{Display, Write};
use std::time::Duration;

use super::rates;
use super::stats::{BUCKET_NAMES, End, KINDS, LimitHit, MODES, OUTCOMES, RELOADS, Stats};
use crate::engine::espocrm::submission::Rejection;
use crate::engine::json::Json;
use Value::{Group, Histogram, Number, Text, Time};

/// A statistic.
#[derive(Clone, Copy, Debug)]
pub struct Statistic {
    /// Its type in Prometheus; empty if only the report has it.
    pub kind: &'static str,
    /// Its name in Prometheus, without the prefix.
    pub metric: &'static str,
    /// The labels of the metric. Users and messages cannot choose their values.
    pub labels: &'static [&'static str],
    /// Its field in the report, as a JSON pointer; empty if it is not reported. With a slash at
    /// the end, the members of the group become fields of that object.
    pub json: &'static str,
    value: for<'a> fn(&'a Figures) -> Value<'a>,
    /// What it is, for `/metrics` and the documentation.
    pub help: &'static str,
}

/// All statistics, in the order of `/metrics`.
#[rustfmt::skip]
pub const STATISTICS: &[Statistic] = &[
    row("gauge", "build_info", &["version", "espocrm"], "",
        |it| Group(vec![(env!("CARGO_PKG_VERSION"), Group(vec![(&it.espocrm, Number(1))]))]),
        "Versions of the daemon and of EspoCRM."),
    row("gauge", "healthy", &[], "", |it| Number(it.problems.is_empty().into()),
        "Whether the daemon is healthy: 1 if /healthz returns 200."),

    row("gauge", "connections", &[], "/connections/open", |it| Number(it.connections), "Open connections of browsers."),
    row("gauge", "connections_max", &[], "/connections/max", |it| Number(it.max_connections), "Limit of open connections."),
    row("gauge", "users", &[], "/connections/users", |it| Number(it.users), "Connected users."),
    row("counter", "connections_opened_total", &[], "/connections/opened", |it| Number(it.stats.opened), "Connections accepted."),
    row("counter", "connections_refused_total", &["reason"], "/connections/refused",
        |it| counts(End::NAMES.split_at(End::REFUSALS).0, &it.stats.ends),
        "Connections rejected before they were admitted."),
    row("counter", "connections_ended_total", &["reason"], "/connections/ended",
        |it| counts(End::NAMES.split_at(End::REFUSALS).1, it.stats.ends.split_at(End::REFUSALS).1),
        "Connections that ended after they were admitted."),
    row("counter", "accept_failures_total", &[], "/connections/accept_failures", |it| Number(it.stats.accept_failures),
        "Failures to accept a connection for lack of file descriptors or memory."),
    row("gauge", "subscriptions", &["category"], "/subscriptions",
        |it| Group(it.subscriptions.iter().map(|(name, count)| (name.as_str(), Number(*count))).collect()),
        "Granted subscriptions."),
    row("counter", "limit_hits_total", &["limit"], "/limit_hits", |it| counts(LimitHit::NAMES, &it.stats.limit_hits),
        "Requests that were skipped or delayed by a limit, without closing a connection."),

    row("counter", "messages_received_total", &[], "/messages/received", |it| Number(it.stats.messages),
        "Messages received from EspoCRM."),
    row("counter", "messages_dropped_total", &["reason"], "/messages/dropped", |it| counts(Rejection::NAMES, &it.stats.dropped),
        "Messages from EspoCRM that were dropped."),
    row("counter", "deliveries_total", &[], "/messages/deliveries", |it| Number(it.stats.deliveries),
        "Events sent to connections."),
    row("gauge", "zmq_bound", &[], "", |it| Number(it.is_zmq_bound.into()), "Whether the ZeroMQ socket is bound."),
    row("counter", "zmq_restarts_total", &[], "/messages/zmq_restarts", |it| Number(it.stats.zmq_restarts),
        "Times that the ZeroMQ socket was recreated."),

    row("", "", &[], "/checks/mode", |it| Text(&it.check_mode), "How access checks run."),
    row("counter", "checks_total", &["kind", "outcome"], "/checks/",
        |it| Group(KINDS.into_iter().zip(&it.stats.checks).map(|(kind, by)| (kind, counts(&OUTCOMES, by))).collect()),
        "Finished access checks."),
    row("histogram", "check_duration_seconds", &["le"], "",
        |it| Histogram(&it.stats.check_times, Duration::from_millis(it.stats.check_millis)),
        "Duration of access checks, without time in the queue."),
    row("counter", "checks_cached_total", &[], "/checks/cached", |it| Number(it.stats.checks_cached),
        "Access checks that were answered from the check cache."),
    row("gauge", "checks_running", &[], "/checks/running", |it| Number(it.checks_running), "Access checks that are running."),
    row("gauge", "checks_queued", &[], "/checks/queued", |it| Number(it.checks_queued), "Access checks that wait in the queue."),
    row("counter", "php_runs_total", &["mode"], "/checks/runs", |it| counts(&MODES, &it.stats.runs),
        "Runs of PHP for an access check."),
    row("counter", "php_worker_failures_total", &[], "/checks/worker_failures", |it| Number(it.stats.worker_failures),
        "PHP workers that failed."),
    row("", "", &[], "/checks/count", |it| Number(it.stats.checked()), "Finished access checks, in total."),
    row("", "", &[], "/checks/milliseconds", |it| Number(it.stats.check_millis),
        "Duration of all access checks, without time in the queue."),
    row("counter", "php_cpu_seconds_total", &[], "/checks/php_cpu_milliseconds", |it| Time(it.php_cpu), "CPU time of PHP."),

    row("counter", "reloads_total", &["result"], "/reloads", |it| counts(&RELOADS, &it.stats.reloads),
        "Reloads of EspoCRM's settings."),
    row("", "", &[], "/last_minute", |it| counts(&rates::NAMES, &it.last_minute),
        "Messages, deliveries, connections and finished access checks of the last minute."),
    row("gauge", "buffered_bytes", &[], "/memory/buffered_bytes", |it| Number(it.buffered), "Buffer memory of all connections."),
    row("gauge", "memory_worst_case_bytes", &[], "/memory/worst_case_bytes", |it| Number(it.worst_case),
        "Upper bound of the daemon's memory."),

    row("gauge", "process_resident_memory_bytes", &[], "/memory/resident_bytes", |it| Number(it.resident),
        "Memory, including swapped-out pages."),
    row("counter", "process_cpu_seconds_total", &[], "/cpu_milliseconds", |it| Time(it.cpu), "CPU time, without PHP."),
    row("gauge", "process_start_time_seconds", &[], "", |it| Time(Duration::from_millis(it.started)), "Start time in seconds since 1970."),
];

/// The fields that precede the others of their object in the report.
const FIRST: [&str; 7] = [
    "/messages/received",
    "/messages/deliveries",
    "/checks/mode",
    "/checks/running",
    "/checks/queued",
    "/memory/resident_bytes",
    "/memory/worst_case_bytes",
];

/// The current values of all statistics.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "`STATISTICS` describes them")]
pub struct Figures {
    pub stats: Stats,
    pub espocrm: String,
    /// Milliseconds since 1970.
    pub started: u64,
    pub connections: u64,
    pub max_connections: u64,
    pub users: u64,
    pub subscriptions: Vec<(String, u64)>,
    pub check_mode: String,
    pub checks_running: u64,
    pub checks_queued: u64,
    pub last_minute: rates::Counts,
    pub buffered: u64,
    pub resident: u64,
    pub worst_case: u64,
    pub cpu: Duration,
    pub php_cpu: Duration,
    pub is_zmq_bound: bool,
    /// Why the daemon is unhealthy; empty if it is healthy.
    pub problems: Vec<String>,
}

enum Value<'a> {
    Number(u64),
    /// Seconds in `/metrics`, milliseconds in the report.
    Time(Duration),
    /// Only in the report.
    Text(&'a str),
    /// One value for each value of a label.
    Group(Vec<(&'a str, Value<'a>)>),
    /// Counts by [`BUCKET_NAMES`], and the sum. Only in `/metrics`.
    Histogram(&'a [u64], Duration),
}

const fn row(
    kind: &'static str,
    metric: &'static str,
    labels: &'static [&'static str],
    json: &'static str,
    value: for<'a> fn(&'a Figures) -> Value<'a>,
    help: &'static str,
) -> Statistic {
    Statistic { kind, metric, labels, json, value, help }
}

fn counts<'a>(names: &[&'a str], counts: &[u64]) -> Value<'a> {
    Group(names.iter().zip(counts).map(|(name, count)| (*name, Number(*count))).collect())
}

/// All metrics in the text format of Prometheus (version 0.0.4).
#[must_use]
pub fn metrics(figures: &Figures) -> String {
    let mut text = String::with_capacity(12 * 1024);
    for it in STATISTICS.iter().filter(|it| !it.metric.is_empty()) {
        // Names that all programs use have no prefix.
        let is_common = it.metric.starts_with("process_");
        let name = if is_common { "" } else { "espocrm_websocket_" }.to_owned() + it.metric;
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", it.help, it.kind);
        samples(&mut text, &name, it.labels, "", (it.value)(figures));
    }
    text
}

/// Adds the samples of a metric. `known`: the labels whose values are known.
fn samples(text: &mut String, name: &str, labels: &[&str], known: &str, value: Value<'_>) {
    let mut sample = |suffix: &str, labels: &str, value: &dyn Display| {
        let (begin, end) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        let _ = writeln!(text, "{name}{suffix}{begin}{labels}{end} {value}");
    };
    match value {
        Number(number) => sample("", known, &number),
        Time(time) => sample("", known, &seconds(time)),
        Text(_) => {}
        Group(members) => {
            let Some((label, labels)) = labels.split_first() else { return };
            let comma = if known.is_empty() { "" } else { "," };
            for (member, value) in members {
                let member = member.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let known = format!("{known}{comma}{label}=\"{member}\"");
                samples(text, name, labels, &known, value);
            }
        }
        Histogram(counts, time) => {
            let mut sum = 0;
            for (most, count) in BUCKET_NAMES.iter().zip(counts) {
                sum += count;
                sample("_bucket", &format!("le=\"{most}\""), &sum);
            }
            sample("_sum", "", &seconds(time));
            sample("_count", "", &sum);
        }
    }
}

/// A duration in seconds, to the millisecond.
fn seconds(time: Duration) -> String {
    format!("{}.{:03}", time.as_secs(), time.subsec_millis())
}

/// Adds all statistics to the report.
pub fn report(figures: &Figures, report: &mut Json) {
    let mut objects = Vec::new();
    for it in STATISTICS {
        match it.path() {
            Some(("", field)) => (it.value)(figures).add_to(report, field),
            Some((object, _)) if !objects.contains(&object) => {
                objects.push(object);
                let path = |it: &Statistic| it.path().filter(|path| path.0 == object);
                let fields = || STATISTICS.iter().filter_map(|it| Some((it, path(it)?.1)));
                let mut json = Json::object();
                for first in FIRST {
                    for (it, field) in fields().filter(|(it, _)| it.json == first) {
                        (it.value)(figures).add_to(&mut json, field);
                    }
                }
                for (it, field) in fields().filter(|(it, _)| !FIRST.contains(&it.json)) {
                    (it.value)(figures).add_to(&mut json, field);
                }
                report.field(object, &json.end());
            }
            _ => {}
        }
    }
}

impl Statistic {
    /// The object of the report (empty for the report itself) and the field in it.
    fn path(&self) -> Option<(&'static str, &'static str)> {
        let path = self.json.strip_prefix('/')?;
        Some(path.split_once('/').unwrap_or(("", path)))
    }
}

impl Value<'_> {
    fn add_to(self, json: &mut Json, field: &str) {
        match self {
            Number(number) => _ = json.field(field, &number),
            Time(time) => _ = json.field(field, &time.as_millis()),
            Text(text) => _ = json.text(field, text),
            Group(members) if field.is_empty() => {
                for (name, value) in members {
                    value.add_to(json, name);
                }
            }
            group @ Group(_) => {
                let mut object = Json::object();
                group.add_to(&mut object, "");
                json.field(field, &object.end());
            }
            Histogram(..) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_the_conventions_and_are_unique() {
        let (mut metrics, mut fields) = (BTreeSet::new(), BTreeSet::new());
        let figures = Figures::default();
        for it in STATISTICS {
            assert!(it.metric.is_empty() || metrics.insert(it.metric), "{it:?}");
            assert!(it.json.is_empty() || fields.insert(it.json), "{it:?}");
            assert_eq!(it.metric.is_empty(), it.kind.is_empty(), "{it:?}");
            assert_eq!(it.metric.ends_with("_total"), it.kind == "counter", "{it:?}");
            assert!(it.help.ends_with('.'), "{it:?}");
            if let Time(_) = (it.value)(&figures) {
                assert!(it.metric.trim_end_matches("_total").ends_with("_seconds"), "{it:?}");
                assert!(it.json.is_empty() || it.json.ends_with("_milliseconds"), "{it:?}");
            }
        }
        assert!(FIRST.iter().all(|first| fields.contains(first)));
    }
}
