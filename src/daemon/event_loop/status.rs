//! The state of the daemon: its statistics, its line in `systemctl status`, and the report of
//! `espocrm-websocket status` as JSON. They never contain tokens.

use super::Server;
use crate::engine::json::Json;
use crate::engine::printable::plural;
use crate::engine::telemetry::statistics;
use crate::engine::telemetry::statistics::Figures;
use crate::engine::time::Date;
use crate::platform::{clock, logging, process_stats, sys};
use crate::settings::Span;

impl Server {
    /// The current values of all statistics.
    pub(super) fn figures(&mut self) -> Figures {
        let mut subscriptions: Vec<_> =
            self.hub.categories().iter().map(|(name, _)| (name.to_owned(), 0)).collect();
        for (topic, count) in self.hub.topics() {
            let category = self.hub.categories().name_of(topic).unwrap_or_default();
            // Categories are sorted.
            let index = subscriptions.binary_search_by(|(name, _)| name.as_str().cmp(category));
            if let Some((_, sum)) = index.ok().and_then(|index| subscriptions.get_mut(index)) {
                *sum += count as u64;
            }
        }
        let figures = Figures {
            espocrm: self.settings.version.to_string(),
            started: clock::unix_millis().saturating_sub(self.now.as_millis()),
            connections: self.conns.len() as u64,
            max_connections: self.settings.max_connections.value as u64,
            users: self.hub.users().count() as u64,
            subscriptions,
            check_mode: self.settings.check_mode.value.to_string(),
            checks_running: self.checks.queue().running() as u64,
            checks_queued: self.checks.queue().queued() as u64,
            buffered: (self.conns.buffered() + self.hub.buffered()) as u64,
            resident: process_stats::resident_memory() as u64,
            worst_case: self.settings.worst_case() as u64,
            cpu: sys::cpu_time(),
            php_cpu: self.checks.cpu_time(),
            is_zmq_bound: self.zmq.is_bound(),
            problems: self.problems(),
            ..Figures::default()
        };
        self.telemetry.complete(figures)
    }

    /// One line for `systemctl status`.
    pub(super) fn status(&self) -> String {
        format!(
            "Serving {}, EspoCRM sends to {}. {}, {} received.",
            self.address(),
            self.endpoint(),
            plural(self.conns.len() as u64, "connection", "connections"),
            plural(self.telemetry.stats.messages, "message", "messages"),
        )
    }

    /// The report of `espocrm-websocket status`.
    pub(super) fn report(&mut self) -> String {
        let now = self.figures();
        let settings = &self.settings;
        let mut json = Json::object();
        json.text("version", env!("CARGO_PKG_VERSION"));
        json.field("pid", &std::process::id());
        json.text("started", &Date(now.started).to_string());
        json.field("uptime_seconds", &(self.now.as_millis() / 1_000));
        json.text("espocrm", &now.espocrm).text("root", &self.root());
        json.text("listen", &self.address().to_string());
        json.field("tls", &settings.tls.value.is_some());
        json.text("zeromq", self.endpoint());
        json.field("problems", &texts(&now.problems));

        statistics::report(&now, &mut json);

        let mut shown = Json::object();
        shown.field("max_connections", &settings.max_connections.value);
        shown.field("max_per_address", &settings.max_per_address.value);
        shown.field("max_per_user", &settings.max_per_user.value);
        shown.field("max_checks", &settings.max_checks.value);
        for (name, span) in [
            ("check_timeout", &settings.check_timeout),
            ("recheck_interval", &settings.recheck_interval),
            ("ping_interval", &settings.ping_interval),
            ("check_cache", &settings.check_cache),
        ] {
            shown.text(name, &Span::from(span.value).to_string());
        }
        shown.field("debug", &settings.debug.value);
        json.field("settings", &shown.end());

        let mut lines = Json::list();
        for line in logging::last() {
            let mut json = Json::object();
            json.text("at", &Date(line.at).to_string()).text("level", line.level.as_str());
            json.text("text", &line.text);
            lines.element(&json.end());
        }
        json.field("warnings", &lines.end());
        json.end()
    }
}

fn texts(texts: &[String]) -> String {
    let mut json = Json::list();
    for text in texts {
        json.item(text);
    }
    json.end()
}
