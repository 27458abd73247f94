//! The report of `espocrm-websocket status`, as JSON. It never contains tokens.

use super::Server;
use crate::engine::espocrm::submission::Rejection;
use crate::engine::json::Json;
use crate::engine::telemetry::rates;
use crate::engine::telemetry::stats::{End, KINDS, LimitHit, MODES, OUTCOMES, RELOADS};
use crate::engine::time::Date;
use crate::platform::logging;
use crate::settings::Span;

impl Server {
    pub(super) fn report(&mut self) -> String {
        let now = self.figures();
        let (stats, settings) = (&self.stats, &self.settings);
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

        let mut connections = Json::object();
        connections.field("open", &now.connections).field("max", &now.max_connections);
        connections.field("users", &now.users).field("opened", &stats.opened);
        let (refused, ended) = End::NAMES.split_at(End::REFUSALS);
        connections.field("refused", &counts(refused, &stats.ends));
        connections.field("ended", &counts(ended, stats.ends.get(End::REFUSALS..).unwrap_or(&[])));
        connections.field("accept_failures", &stats.accept_failures);
        json.field("connections", &connections.end());

        let mut subscriptions = Json::object();
        for (category, count) in &now.subscriptions {
            subscriptions.field(category, count);
        }
        json.field("subscriptions", &subscriptions.end());
        json.field("limit_hits", &counts(LimitHit::NAMES, &stats.limit_hits));

        let mut messages = Json::object();
        messages.field("received", &stats.messages).field("deliveries", &stats.deliveries);
        messages.field("dropped", &counts(Rejection::NAMES, &stats.dropped));
        messages.field("zmq_restarts", &stats.zmq_restarts);
        json.field("messages", &messages.end());

        let mut checks = Json::object();
        checks.text("mode", &settings.check_mode.value.to_string());
        checks.field("running", &now.checks_running).field("queued", &now.checks_queued);
        for (kind, outcomes) in KINDS.iter().zip(&stats.checks) {
            checks.field(kind, &counts(&OUTCOMES, outcomes));
        }
        checks.field("cached", &stats.checks_cached).field("runs", &counts(&MODES, &stats.runs));
        checks.field("worker_failures", &stats.worker_failures);
        checks.field("count", &stats.checked()).field("milliseconds", &stats.check_millis);
        checks.field("php_cpu_milliseconds", &now.php_cpu.as_millis());
        json.field("checks", &checks.end());

        json.field("reloads", &counts(&RELOADS, &stats.reloads));
        json.field("last_minute", &counts(&rates::NAMES, &now.last_minute));

        let mut memory = Json::object();
        memory.field("resident_bytes", &now.resident).field("worst_case_bytes", &now.worst_case);
        memory.field("buffered_bytes", &now.held);
        json.field("memory", &memory.end());
        json.field("cpu_milliseconds", &now.cpu.as_millis());

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

fn counts(names: &[&str], counts: &[u64]) -> String {
    let mut json = Json::object();
    for (name, count) in names.iter().zip(counts) {
        json.field(name, count);
    }
    json.end()
}
