//! The state of a daemon, on a screen of at most 80 columns and 24 lines.

use std::time::Duration;

use serde_json::Value as Json;

use super::lists::span;
use super::{grouped, number, printable, text};

/// The size of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub lines: usize,
}

impl Size {
    /// One column less than a terminal has, because some terminals wrap after the last column; and
    /// one line less, for the prompt.
    pub(super) const DEFAULT: Self = Self { columns: 79, lines: 23 };

    /// The usable size of a terminal, at most the usual size.
    pub(super) fn of_terminal(columns: usize, lines: usize) -> Self {
        Self {
            columns: columns.saturating_sub(1).clamp(1, Self::DEFAULT.columns),
            lines: lines.saturating_sub(1).clamp(1, Self::DEFAULT.lines),
        }
    }
}

/// Columns of the label of each row.
const LABEL: usize = 14;

/// Minimum columns of a row's text. Longer lines are cut.
const MIN_ROOM: usize = 10;

/// The lines of the screen.
struct Screen {
    lines: Vec<String>,
    size: Size,
}

/// The screen for a status. `before`: an earlier status and its age, to compute rates; without it,
/// the rates are those of the last minute.
pub(super) fn screen(status: &Json, before: Option<(&Json, Duration)>, size: Size) -> Vec<String> {
    let with_rate = |name: &str, pointer: &str| {
        format!("{} ({})", count(status, pointer), rate(status, before, name, pointer))
    };
    let item = |name: &str, pointer: &str| format!("{name} {}", count(status, pointer));
    let bytes = |pointer: &str| megabytes(number(status, pointer));
    let counted = |pointer: &str, others: &[(&str, &str)]| {
        let others = others.iter().filter_map(|(name, at)| some(name, number(status, at)));
        counted(status, pointer).into_iter().chain(others).collect::<Vec<_>>()
    };
    let mut screen = Screen { lines: Vec::new(), size };
    screen.head(status);

    let max = count(status, "/connections/max");
    screen.row(
        "Connections",
        &[
            format!("{} of {max}", count(status, "/connections/open")),
            item("users", "/connections/users"),
            format!("opened {}", with_rate("connections", "/connections/opened")),
        ],
    );
    let others = [("no_descriptor", "/connections/accept_failures")];
    screen.row("  refused", &or_none(counted("/connections/refused", &others)));
    screen.row("  ended", &or_none(counted("/connections/ended", &[])));
    screen.row("Subscriptions", &or_none(counted("/subscriptions", &[])));
    screen.row(
        "Messages",
        &[
            format!("received {}", with_rate("messages", "/messages/received")),
            format!("deliveries {}", with_rate("deliveries", "/messages/deliveries")),
        ],
    );
    let others = [("zmq_restarts", "/messages/zmq_restarts")];
    screen.row("  dropped", &or_none(counted("/messages/dropped", &others)));

    let mode = text(status, "/checks/mode");
    let checks = number(status, "/checks/count");
    let average = number(status, "/checks/milliseconds").checked_div(checks).unwrap_or(0);
    screen.row(
        "Checks",
        &[
            with_rate("checks", "/checks/count"),
            format!("by {}", mode.split(" (").next().unwrap_or_default()),
            item("running", "/checks/running"),
            item("queued", "/checks/queued"),
        ],
    );
    screen.row_if_any("  login", &counted("/checks/login", &[]));
    screen.row_if_any("  topic", &counted("/checks/subscription", &[]));
    screen.row_if_any("  recheck", &counted("/checks/recheck", &[]));
    let php = number(status, "/checks/php_cpu_milliseconds");
    screen.row(
        "  cost",
        &[
            format!("{average} ms each"),
            item("by workers", "/checks/runs/worker"),
            item("by plain commands", "/checks/runs/plain"),
            item("cached", "/checks/cached"),
            format!("PHP CPU time {} s", tenths(u128::from(php / 100))),
        ],
    );
    let others =
        [("failed_workers", "/checks/worker_failures"), ("failed_reloads", "/reloads/failed")];
    screen.row_if_any("Limits hit", &counted("/limit_hits", &others));
    let (resident, most) = (bytes("/memory/resident_bytes"), bytes("/memory/worst_case_bytes"));
    let buffered = bytes("/memory/buffered_bytes");
    screen.row(
        "Memory",
        &[format!("{resident} of at most {most}"), format!("buffered by connections {buffered}")],
    );
    screen.row(
        "Settings",
        &[
            item("per user", "/settings/max_per_user"),
            item("per address", "/settings/max_per_address"),
            item("checks", "/settings/max_checks"),
            format!("rechecks {}", text(status, "/settings/recheck_interval")),
            format!("pings {}", text(status, "/settings/ping_interval")),
        ],
    );
    screen.warnings(status);
    screen.lines.truncate(size.lines);
    let cut = |line: &String| cut(line, size.columns).trim_end().to_owned();
    screen.lines.iter().map(cut).collect()
}

/// The most important numbers, in one line.
pub(super) fn line(status: &Json, before: Option<(&Json, Duration)>) -> String {
    let rate = |name: &str, pointer: &str| rate(status, before, name, pointer);
    let problems = status.get("problems").and_then(Json::as_array).map_or(0, Vec::len);
    [
        format!("connections {}", count(status, "/connections/open")),
        format!("messages {}", rate("messages", "/messages/received")),
        format!("deliveries {}", rate("deliveries", "/messages/deliveries")),
        format!("dropped {}", grouped(status.pointer("/messages/dropped").map_or(0, sum))),
        format!("checks {}", rate("checks", "/checks/count")),
        format!("queued {}", count(status, "/checks/queued")),
        format!("memory {}", megabytes(number(status, "/memory/resident_bytes"))),
        if problems == 0 { "serving".to_owned() } else { text(status, "/problems/0") },
    ]
    .join(", ")
}

impl Screen {
    fn head(&mut self, status: &Json) {
        let left = format!(
            "espocrm-websocket {}, EspoCRM {} in {}",
            text(status, "/version"),
            text(status, "/espocrm"),
            text(status, "/root")
        );
        let right = format!("up {}", span(number(status, "/uptime_seconds")));
        let room = self.size.columns.saturating_sub(right.chars().count() + 2);
        self.lines.push(match room {
            ..MIN_ROOM => left,
            _ => format!("{:<room$}  {right}", cut(&left, room)),
        });
        let tls = status.get("tls").and_then(Json::as_bool).unwrap_or(false);
        let scheme = if tls { "wss" } else { "ws" };
        let addresses = format!(
            "{scheme}://{}, EspoCRM sends to {}",
            text(status, "/listen"),
            text(status, "/zeromq")
        );
        let problems: Vec<&str> = status
            .get("problems")
            .and_then(Json::as_array)
            .map(|problems| problems.iter().filter_map(Json::as_str).collect())
            .unwrap_or_default();
        if problems.is_empty() {
            self.row("Serving", &[addresses]);
        } else {
            for problem in problems {
                self.row("PROBLEM", &[printable(problem)]);
            }
            self.row("Listening", &[addresses]);
        }
        self.lines.push(String::new());
    }

    fn row_if_any(&mut self, label: &str, items: &[String]) {
        if !items.is_empty() {
            self.row(label, items);
        }
    }

    /// Adds a row of a few items, on at most two lines.
    fn row(&mut self, label: &str, items: &[String]) {
        let room = self.size.columns.saturating_sub(LABEL).max(MIN_ROOM);
        let mut lines = vec![String::new()];
        for (number, item) in items.iter().enumerate() {
            let comma = if number + 1 < items.len() { "," } else { "" };
            let item = format!("{item}{comma}");
            for word in pieces(&item, room) {
                let Some(last) = lines.last_mut() else { break };
                if last.is_empty() {
                    *last = word;
                } else if last.chars().count() + 1 + word.chars().count() <= room {
                    *last = format!("{last} {word}");
                } else {
                    lines.push(word);
                }
            }
        }
        if lines.len() > 2 {
            lines.truncate(2);
            if let Some(last) = lines.last_mut() {
                *last = cut(last, room - 4) + " ...";
            }
        }
        for (number, line) in lines.iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            self.lines.push(format!("{label:<LABEL$}{line}").trim_end().to_owned());
        }
    }

    /// Adds the last warnings that fit, the latest first.
    fn warnings(&mut self, status: &Json) {
        let empty = Vec::new();
        let lines = status.get("warnings").and_then(Json::as_array).unwrap_or(&empty);
        for (number, line) in lines.iter().rev().enumerate() {
            let label = if number == 0 { "Warnings" } else { "" };
            let at = text(line, "/at").replace('T', " ");
            let at = at.get(5..16).unwrap_or_default();
            let what = text(line, "/text");
            let before = self.lines.len();
            self.row(label, &[format!("{at} UTC {what}")]);
            if self.lines.len() > self.size.lines {
                self.lines.truncate(before);
                return;
            }
        }
    }
}

/// The words of an item. A short item is not split.
fn pieces(item: &str, room: usize) -> Vec<String> {
    if item.chars().count() <= 30 {
        return vec![item.to_owned()];
    }
    item.split(' ').map(|word| cut(word, room)).collect()
}

fn cut(text: &str, length: usize) -> String {
    text.chars().take(length).collect()
}

fn count(status: &Json, pointer: &str) -> String {
    grouped(number(status, pointer))
}

/// The counters by name, the largest first, without zeros.
fn counted(status: &Json, pointer: &str) -> Vec<String> {
    let counts = status.pointer(pointer).and_then(Json::as_object).into_iter().flatten();
    let mut counts: Vec<_> =
        counts.filter_map(|(name, count)| Some((name.as_str(), count.as_u64()?))).collect();
    // The linker merges this with the sort of the control socket's lists.
    counts.sort_unstable_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    counts.into_iter().filter_map(|(name, count)| some(name, count)).collect()
}

fn some(name: &str, count: u64) -> Option<String> {
    (count > 0).then(|| format!("{} {}", printable(name), grouped(count)))
}

fn or_none(items: Vec<String>) -> Vec<String> {
    if items.is_empty() { vec!["none".to_owned()] } else { items }
}

fn sum(counts: &Json) -> u64 {
    counts.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

/// `12.3/s`
fn rate(status: &Json, before: Option<(&Json, Duration)>, name: &str, pointer: &str) -> String {
    let (events, time) = if let Some((before, ago)) = before {
        (number(status, pointer).saturating_sub(number(before, pointer)), ago)
    } else {
        let seconds = number(status, "/uptime_seconds").clamp(1, 60);
        (number(status, &format!("/last_minute/{name}")), Duration::from_secs(seconds))
    };
    let millis = time.as_millis().max(1);
    format!("{}/s", tenths((u128::from(events) * 10_000 + millis / 2) / millis))
}

fn tenths(tenths: u128) -> String {
    let whole = u64::try_from(tenths / 10).unwrap_or(u64::MAX);
    format!("{}.{}", grouped(whole), tenths % 10)
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", tenths(u128::from(bytes / 100_000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A status with a different value in each field.
    const STATUS: &str = include_str!("../../../tests/statistics/status.json");

    fn status() -> Json {
        serde_json::from_str(STATUS).unwrap()
    }

    /// A status in which every number and text is large.
    fn busy() -> Json {
        fn enlarge(json: &mut Json) {
            match json {
                Json::Number(number) => *number = 123_456_789_012_u64.into(),
                Json::String(text) => *text = "x".repeat(400),
                Json::Array(items) => items.iter_mut().for_each(enlarge),
                Json::Object(fields) => fields.values_mut().for_each(enlarge),
                Json::Null | Json::Bool(_) => {}
            }
        }
        let mut status = status();
        status["subscriptions"]["x".repeat(400)] = json!(1);
        enlarge(&mut status);
        let warning = json!({"at": "2026-01-31T12:59:59.999Z", "text": "x".repeat(400)});
        status["warnings"] = json!(vec![warning; 10]);
        status
    }

    #[test]
    fn the_screen_is_that_of_the_example() {
        let shown = [Size::DEFAULT, Size { columns: 200, lines: 100 }]
            .map(|size| screen(&status(), None, size).join("\n") + "\n");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/statistics/screen.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(file, shown.join("\n")).unwrap();
        }
        assert_eq!(shown.join("\n"), std::fs::read_to_string(file).unwrap());
    }

    #[test]
    fn the_status_has_every_field_that_the_screen_shows() {
        let (code, _) = include_str!("screen.rs").split_once("#[cfg(test)]").unwrap();
        let pointers = code.split('"').filter(|text| text.starts_with('/') && !text.contains('{'));
        // Texts of a warning.
        let pointers = pointers.filter(|pointer| !["/at", "/text"].contains(pointer));
        assert!(pointers.clone().count() > 30);
        for pointer in pointers {
            assert!(status().pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn every_status_fits_a_terminal() {
        let sizes = [(1, 1), (2, 1), (15, 3), (20, 5), (40, 10), (79, 24), (80, 24), (200, 60)];
        for status in [busy(), json!({}), json!({"warnings": busy()["warnings"]})] {
            for (columns, lines) in sizes {
                let shown = screen(&status, None, Size::of_terminal(columns, lines));
                assert!(shown.len() <= lines.saturating_sub(1).clamp(1, 23), "{shown:?}");
                for line in &shown {
                    assert!(
                        line.chars().count() <= columns.saturating_sub(1).clamp(1, 79),
                        "{line}"
                    );
                    assert_eq!(line.trim_end(), line);
                }
            }
        }
    }

    #[test]
    fn problems_come_first_and_the_latest_warning_precedes_earlier_ones() {
        let warning = |text: &str| json!({"at": "2026-01-31T12:59:59.999Z", "text": text});
        let status = json!({
            "problems": ["The limit is reached."], "warnings": [warning("a"), warning("b\n")],
        });
        let lines = screen(&status, None, Size::DEFAULT);
        assert_eq!(lines[1], "PROBLEM       The limit is reached.");
        assert_eq!(lines[lines.len() - 2], "Warnings      01-31 12:59 UTC b\\n");
        assert_eq!(lines[lines.len() - 1], "              01-31 12:59 UTC a");
    }

    #[test]
    fn rates_are_those_of_the_last_minute_or_since_an_earlier_status() {
        let now = json!({"uptime_seconds": 3_600, "last_minute": {"messages": 90},
            "messages": {"received": 1_000}});
        let rate = |before| rate(&now, before, "messages", "/messages/received");
        assert_eq!(rate(None), "1.5/s");
        let before = json!({"messages": {"received": 900}});
        assert_eq!(rate(Some((&before, Duration::from_millis(1_500)))), "66.7/s");
        assert_eq!(rate(Some((&json!({}), Duration::ZERO))), "1,000,000.0/s");
    }
}
