//! What the administrator asks at the control socket.

use log::{info, warn};
use mio::Token;

use super::Server;
use crate::core::control::{self, Request};
use crate::core::json::Json;
use crate::core::submission::{Rejection, Submission};
use crate::shell::clock;
use crate::shell::control::Asker;

impl Server {
    /// Opens what is set of control socket and metrics' port.
    pub(super) fn open_control(&mut self) {
        for warning in self.control.open(self.poll.registry(), &self.settings) {
            warn!("{warning}");
        }
        if let Some(path) = self.control.path() {
            info!("The control socket is {}.", path.display());
        }
        if let Some(address) = self.control.port() {
            info!("Metrics are told at http://{address}/metrics.");
        }
    }

    pub(super) fn control_ready(&mut self, token: Token) {
        if let Some((asker, request)) = self.control.ready(self.now, token) {
            self.answer(asker, request);
        }
    }

    fn answer(&mut self, asker: Asker, request: Request) {
        let response = match request {
            Request::Status => control::response("200 OK", "application/json", &self.report()),
            Request::Tail => return self.control.watch(self.now, asker),
            _ => control::Refusal::NotFound.response(),
        };
        self.control.answer(self.now, asker, &response);
    }

    /// Shows a message to those who watch.
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

    /// The same for one that was dropped.
    pub(super) fn show_rejection(&mut self, rejection: Rejection) {
        if !self.control.is_watched() {
            return;
        }
        let mut json = Json::object();
        json.text("at", &clock::date()).text("rejected", &rejection.to_string());
        self.control.show(self.now, &(json.end() + "\n"));
    }

    /// All that `espocrm-websocket status` shows.
    fn report(&mut self) -> String {
        let mut json = Json::object();
        json.text("version", env!("CARGO_PKG_VERSION"));
        json.field("pid", &std::process::id());
        json.text("listen", &self.address().to_string());
        json.text("zeromq", self.endpoint());
        json.end()
    }
}
