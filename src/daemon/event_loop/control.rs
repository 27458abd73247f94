//! Requests to the control socket and to the metrics port.

use log::{info, log};

use super::{Backend, Server};
use crate::daemon::control::RequestId;
use crate::engine::connection::Phase;
use crate::engine::espocrm::submission::{Rejection, Submission};
use crate::engine::json::Json;
use crate::engine::printable::{Printable, plural};
use crate::engine::protocol::control;
use crate::engine::protocol::control::{List, Refusal, Request};
use crate::engine::telemetry::statistics;
use crate::engine::telemetry::stats::End;
use crate::platform::clock;

const JSON: &str = "application/json";
const PLAIN: &str = "text/plain";

/// The text format of Prometheus.
const METRICS: &str = "text/plain; version=0.0.4";

impl Server {
    /// Opens the control socket and the metrics port, as configured.
    pub(super) fn open_control(&mut self) {
        for (level, text) in self.control.open(self.poll.registry(), &self.settings) {
            log!(level, "{text}");
        }
        if let Some(path) = self.control.path() {
            info!("The control socket is {}.", path.display());
        }
        if let Some(address) = self.control.port() {
            info!("Serving metrics at http://{address}/metrics.");
        }
    }

    pub(super) fn control_ready(&mut self, source: usize) {
        if let Some((request_id, request)) = self.control.ready(self.now, source) {
            self.answer(request_id, request);
        }
    }

    fn answer(&mut self, request_id: RequestId, request: Request) {
        let ok = |kind: &str, body: &str| control::response("200 OK", kind, body);
        let response = match request {
            Request::Metrics => ok(METRICS, &statistics::metrics(&self.figures())),
            Request::Health => match self.problems() {
                problems if problems.is_empty() => ok(PLAIN, "ok\n"),
                problems => {
                    let body = problems.join("\n") + "\n";
                    control::response("503 Service Unavailable", PLAIN, &body)
                }
            },
            Request::Status => ok(JSON, &self.report()),
            Request::List(list, limit) => ok(JSON, &self.list(list, limit)),
            Request::Kick(user) => ok(JSON, &self.kick(&user)),
            Request::Send(message) => match self.inject(&message) {
                Ok(receivers) => {
                    let mut json = Json::object();
                    json.field("receivers", &receivers);
                    ok(JSON, &json.end())
                }
                Err(rejection) => Refusal::Rejected(rejection).response(),
            },
            Request::Tail => return self.control.watch(self.now, request_id),
            Request::Reload => {
                self.control.wait_for_reload(self.now, request_id);
                return self.reload();
            }
        };
        self.control.answer(self.now, request_id, &response);
    }

    /// Reasons why the daemon is not healthy, one sentence each. Answering at all proves that the
    /// event loop runs.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.zmq.is_bound() {
            problems.push(format!("EspoCRM's messages are not received at {}.", self.endpoint()));
        }
        if self.checks.rejects_clients() {
            let reason = "EspoCRM accepts any token: all clients are rejected until the self-check \
                       passes. See the log.";
            problems.push(reason.to_owned());
        }
        if self.accepting.paused_until().is_some() {
            let reason = "Connections cannot be accepted: out of file descriptors or memory.";
            problems.push(reason.to_owned());
        }
        if self.checks.are_failing(self.now) {
            problems.push("All access checks have failed for more than a minute.".to_owned());
        }
        let limit = self.settings.max_connections.value;
        if self.conns.len() >= limit {
            let limit = plural(limit as u64, "connection", "connections");
            problems.push(format!("The limit of {limit} is reached."));
        }
        problems
    }

    /// Ends the connections of a user. Browsers reconnect, and their logins are checked again.
    fn kick(&mut self, user: &str) -> String {
        let conns = self.hub.connections(user);
        for id in &conns {
            self.end(*id, End::Kicked);
        }
        self.checks.forget_user(user);
        let count = conns.len();
        if count > 0 {
            info!(
                "The administrator ended {} of user {}. Browsers will reconnect and are checked again.",
                plural(count as u64, "connection", "connections"),
                Printable(user)
            );
        }
        let mut json = Json::object();
        json.text("user", user).field("connections", &count);
        json.end()
    }

    /// Publishes a message of the administrator as if EspoCRM had sent it.
    fn inject(&mut self, message: &[u8]) -> Result<u64, Rejection> {
        // Apply pending verdicts first.
        self.carry_out();
        self.telemetry.stats.messages += 1;
        let published = self.publish(message);
        match published {
            Ok(receivers) => {
                let receivers = plural(receivers, "connection", "connections");
                info!("The administrator published a message to {receivers}.");
            }
            Err(rejection) => {
                self.telemetry.stats.drop(rejection);
                self.show_rejection(rejection);
            }
        }
        published
    }

    /// The first `limit` users, topics or connections.
    fn list(&self, list: List, limit: usize) -> String {
        match list {
            List::Users => {
                let (total, users) = most(self.hub.users().collect(), limit);
                let pair = |(user, count)| pair("user", user, "connections", count);
                named_list("users", total, users.map(pair))
            }
            List::Topics => {
                let (total, topics) = most(self.hub.topics().collect(), limit);
                let pair = |(topic, count)| pair("topic", topic, "receivers", count);
                named_list("topics", total, topics.map(pair))
            }
            List::Connections => self.list_connections(limit),
        }
    }

    fn list_connections(&self, limit: usize) -> String {
        let mut conns: Vec<_> = self.conns.iter().collect();
        let total = conns.len();
        conns.sort_unstable_by_key(|conn| {
            std::cmp::Reverse((conn.state.since(), conn.id().serial()))
        });
        let second = self.now.as_seconds();
        let conns = conns.into_iter().take(limit).map(|conn| {
            let id = conn.id();
            let user = self.hub.user(id);
            let stage = match conn.state.phase() {
                Phase::Handshake => "handshake",
                Phase::Open if user.is_none() => "login",
                Phase::Open => "open",
                Phase::Closing | Phase::Finishing | Phase::Draining | Phase::Ended => "closing",
            };
            let mut json = Json::object();
            json.field("id", &id);
            match user {
                Some(user) => json.text("user", user),
                None => json.field("user", &"null"),
            };
            match conn.state.client() {
                Some(client) => json.text("address", &client.to_string()),
                None => json.field("address", &"null"),
            };
            json.text("stage", stage);
            json.field("seconds", &second.saturating_sub(conn.state.since()));
            json.field("subscriptions", &self.hub.subscriptions(id));
            json.field("buffered_bytes", &(conn.buffered() + self.hub.buffered_by(id)));
            json.end()
        });
        named_list("connections", total, conns)
    }

    /// Sends a summary of a message to the clients of `tail`.
    pub(super) fn show_message(&mut self, submission: &Submission<'_>, receivers: u64) {
        if !self.control.is_watched() {
            return;
        }
        let mut json = Json::object();
        json.text("at", &clock::date()).text("topic", &submission.topic);
        match &submission.user {
            Some(user) => json.text("user", user),
            None => json.field("user", &"null"),
        };
        json.field("receivers", &receivers).field("bytes", &submission.json.len());
        self.control.show(self.now, &(json.end() + "\n"));
    }

    /// Sends the reason of a dropped message to the clients of `tail`.
    pub(super) fn show_rejection(&mut self, rejection: Rejection) {
        if !self.control.is_watched() {
            return;
        }
        let mut json = Json::object();
        json.text("at", &clock::date()).text("rejected", &rejection.to_string());
        self.control.show(self.now, &(json.end() + "\n"));
    }

    /// EspoCRM's root directory.
    pub(super) fn root(&self) -> String {
        match &self.backend {
            Backend::Espocrm(installation) => installation.root().display().to_string(),
            Backend::Demo(_) => "the demo".to_owned(),
        }
    }
}

/// The total number of items, and the items with the largest counts.
fn most(
    mut items: Vec<(&str, usize)>,
    limit: usize,
) -> (usize, impl Iterator<Item = (&str, usize)>) {
    items.sort_unstable_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    (items.len(), items.into_iter().take(limit))
}

fn pair(name: &str, value: &str, counted: &str, count: usize) -> String {
    let mut json = Json::object();
    json.text(name, value).field(counted, &count);
    json.end()
}

fn named_list(name: &str, total: usize, items: impl Iterator<Item = String>) -> String {
    let mut list = Json::list();
    for item in items {
        list.element(&item);
    }
    let mut json = Json::object();
    json.field("total", &total).field(name, &list.end());
    json.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::event_loop::accept::Accepting;
    use crate::daemon::listener::Listener;
    use crate::daemon::script::{Arrivals, Entry, Journal, Messages, Random};
    use crate::daemon::seam::{Clock, Signals, TcpListener, ZmqReceiver};
    use crate::daemon::zmq::Zmq;
    use crate::engine::checks::check::{Check, Ticket, Urgency};
    use crate::engine::checks::verdict::{Failure, Verdict};
    use crate::engine::id::ConnId;
    use crate::engine::time::Time;
    use crate::espocrm::{EspoSettings, Installation};
    use crate::settings::{CheckMode, Layers, Overrides, Settings};

    fn server(journal: &Journal) -> Server {
        let espo_settings = EspoSettings::new(serde_json::Map::new(), &serde_json::Value::Null);
        let mut settings =
            Settings::resolve(&Layers::of_flags(Overrides::default()), &espo_settings).unwrap();
        settings.check_mode.value = CheckMode::Plain("");
        let random = || Random::new(1);
        let arrivals = TcpListener::Scripted(Arrivals::new(journal, random()));
        let messages = ZmqReceiver::scripted(Messages::new(journal, random()));
        let server = Server::assemble(
            settings,
            Backend::Espocrm(Installation::scripted()),
            None,
            Signals::Scripted,
            mio::Poll::new().unwrap(),
            Accepting::new(Listener::of(vec![arrivals]).unwrap(), None),
            Zmq::of(messages),
        );
        server.checks.children().record(journal);
        server
    }

    fn set_clock(server: &mut Server, seconds: u64) {
        server.now = Time::from_millis(seconds * 1_000);
        server.clock = Clock(server.now);
    }

    /// Runs a check at this second.
    fn check(server: &mut Server, journal: &Journal, seconds: u64, verdict: &Verdict) {
        set_clock(server, seconds);
        let id = ConnId::new(0, u32::try_from(seconds).unwrap());
        let ticket = Ticket { conn: id, serial: Ticket::AUTHENTICATION };
        let check = Check::authentication("token", "user");
        server.request_check(ticket, Urgency::Login, check);
        server.start_checks();
        let started = journal.borrow_mut().pop_back();
        let Some(Entry::Started(job, _)) = started else { panic!("{started:?}") };
        server.checks.children().answer(job, verdict.clone());
        server.reap_children();
    }

    #[test]
    fn an_outage_is_reported_after_a_minute_and_until_it_expires() {
        let failed = Verdict::Failed(Failure::TimedOut);
        let journal = Journal::default();
        let mut server = server(&journal);
        let check = |server: &mut Server, seconds, verdict: &Verdict| {
            check(server, &journal, seconds, verdict);
        };
        check(&mut server, 100, &failed);
        assert_eq!(server.problems(), [""; 0]);
        // No further check.
        set_clock(&mut server, 200);
        assert_eq!(server.problems(), [""; 0]);
        check(&mut server, 159, &failed);
        assert_eq!(server.problems(), [""; 0]);
        check(&mut server, 160, &failed);
        let problem = "All access checks have failed for more than a minute.";
        assert_eq!(server.problems(), [problem]);
        set_clock(&mut server, 459);
        assert_eq!(server.problems(), [problem]);
        // Without recent checks, the state is unknown.
        set_clock(&mut server, 460);
        assert_eq!(server.problems(), [""; 0]);
        check(&mut server, 461, &failed);
        assert_eq!(server.problems(), [problem]);
        // A denial ends the outage.
        check(&mut server, 462, &Verdict::Denied);
        assert_eq!(server.problems(), [""; 0]);
        check(&mut server, 463, &failed);
        assert_eq!(server.problems(), [""; 0]);
        assert_eq!(server.telemetry.stats.checks[0], [0, 1, 5]);
    }
}
