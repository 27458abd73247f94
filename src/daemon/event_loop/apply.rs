//! Reloads: applies new settings to the running daemon.

use log::{error, info, warn};

use super::{Backend, EventSource, Server, accept};
use crate::daemon::listener::Listener;
use crate::daemon::reload::{Event, KEEPING, Reloader, one_line};
use crate::daemon::tls::Acceptor;
use crate::engine::printable::plural;
use crate::engine::protocol::control;
use crate::espocrm::process::Finished;
use crate::platform::exit::{Exit, Result};
use crate::platform::logging;
use crate::settings::{Settings, Source};

impl Backend {
    /// The TLS acceptor, if TLS is configured.
    pub(super) fn acceptor(&self, settings: &Settings) -> Result<Option<Acceptor>> {
        match (self, &settings.tls.value) {
            (Self::Espocrm(installation), Some(files)) => {
                Acceptor::load(installation.root(), files, installation.identity()).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl Server {
    /// Whether a reload is running.
    pub(super) fn is_reloading(&self) -> bool {
        self.reloader.as_ref().is_some_and(Reloader::is_running)
    }

    /// Reloads the settings if EspoCRM's files have changed. Checks the files once per turn.
    pub(super) fn check_for_changes(&mut self) {
        if let Some(reloader) = &mut self.reloader {
            reloader.check_files(self.now);
            self.continue_reload();
        }
    }

    /// Checks the files periodically while clients are connected.
    pub(super) fn check_for_changes_if_due(&mut self) {
        if let Some(reloader) = self.reloader.as_mut().filter(|_| !self.conns.is_empty()) {
            reloader.handle_timeout(self.now);
            self.continue_reload();
        }
    }

    /// Reloads the settings at the administrator's request.
    pub(super) fn reload(&mut self) {
        self.systemd.reloading();
        if let Some(file) = &self.settings.log_file.value
            && let Err(error) = logging::reopen(file)
        {
            error!("{error}");
        }
        info!("Reloading EspoCRM's settings.");
        self.checks.announce_self_check();
        match &mut self.reloader {
            Some(reloader) => reloader.request(),
            None => return self.report_reload(&[]),
        }
        self.continue_reload();
    }

    /// Handles the result of the probe.
    pub(super) fn finish_reload(&mut self, finished: &Finished) {
        if let Some(reloader) = &mut self.reloader {
            reloader.handle_probe(self.now, finished);
            self.continue_reload();
        }
    }

    /// Executes what the reloader has decided.
    pub(super) fn continue_reload(&mut self) {
        // Why settings could not be applied.
        let mut errors = Vec::new();
        while let Some(event) = self.next_reload_event() {
            match event {
                Event::Begun => {
                    errors.clear();
                    self.hub.begin_reload();
                }
                Event::Apply { settings, requested } => {
                    self.telemetry.stats.reload(true);
                    self.apply(*settings, requested, &mut errors);
                    self.request_self_check();
                }
                Event::Kept { error, version } => {
                    self.telemetry.stats.reload(false);
                    errors.push(error);
                    // The version still determines how PHP's answers are interpreted.
                    if let Some(version) = version {
                        self.settings.version = version;
                    }
                    self.hub.reload(None);
                    self.request_self_check();
                }
                Event::Ended => self.report_reload(&errors),
            }
            self.update_check_pause();
        }
    }

    fn next_reload_event(&mut self) -> Option<Event> {
        let (registry, now) = (self.poll.registry(), self.now);
        self.reloader.as_mut()?.poll(now, |command| self.checks.start_probe(now, registry, command))
    }

    /// Reports the end of a reload to systemd and to the clients of the control socket that wait
    /// for it.
    fn report_reload(&mut self, errors: &[String]) {
        if self.systemd.is_reloading() {
            self.systemd.ready(&self.status());
        }
        let response = if errors.is_empty() {
            control::response("200 OK", "application/json", "{\"reloaded\":true}")
        } else {
            let text = format!("{} {KEEPING}\n", errors.join("\n"));
            control::response("500 Internal Server Error", "text/plain", &text)
        };
        self.control.answer_reload(self.now, &response);
    }

    /// Applies new settings without closing connections. Settings that cannot be applied keep their
    /// previous values.
    fn apply(&mut self, mut new: Settings, requested: bool, errors: &mut Vec<String>) {
        new.log_doubts();
        if new.check_mode.value != self.settings.check_mode.value {
            new.log_mode();
        }
        new.categories = new.categories.or_previous(&self.settings.categories);
        // Even if the setting is unchanged, since a certificate is renewed under the same name.
        match self.backend.acceptor(&new) {
            Ok(acceptor) => self.accepting.replace_acceptor(acceptor),
            Err(error) => {
                errors.push(keep_previous(&error));
                new.tls = self.settings.tls.clone();
            }
        }
        if new.log_file != self.settings.log_file {
            warn!("The setting log_file has changed. Restart the daemon to apply it.");
            new.log_file = self.settings.log_file.clone();
        }
        if self.settings.port.source == Source::Systemd {
            new.listens_at(self.settings.listen());
        }
        if new.listen() != self.settings.listen()
            && let Err(error) = self.listen(&new)
        {
            errors.push(keep_previous(&error));
            new.address = self.settings.address.clone();
            new.port = self.settings.port.clone();
        }
        if new.zeromq.value != self.settings.zeromq.value {
            match self.zmq.rebind(self.now, &new.zeromq.value) {
                Ok(()) => info!("EspoCRM's messages are received at {}.", self.zmq.endpoint()),
                Err(error) => {
                    error!(
                        "{} Keeping the previous socket at {}.",
                        one_line(&error.to_string()),
                        self.zmq.endpoint()
                    );
                    errors.push(error.to_string());
                    new.zeromq = self.settings.zeromq.clone();
                }
            }
        }
        accept::limit_to_open_files(&mut new);
        self.zmq.limit_senders(accept::affordable_senders(&new));
        if let Backend::Espocrm(installation) = &mut self.backend {
            *installation = installation.with_php(&new.php.value);
        }
        self.checks.apply(&new);
        if new != self.settings {
            let count = new.categories.iter().count() as u64;
            let count = plural(count, "category", "categories");
            let changes = new.changes_from(&self.settings);
            let changes = if changes.is_empty() { changes } else { format!(" Now: {changes}.") };
            let version = &new.version;
            info!("EspoCRM's settings have changed: EspoCRM {version}, {count}.{changes}");
        } else if requested {
            info!("EspoCRM's settings have not changed.");
        }
        self.hub.reload(Some(new.categories.clone()));
        let endpoints = |settings: &Settings| (settings.control.clone(), settings.metrics.clone());
        let endpoints_changed = endpoints(&new) != endpoints(&self.settings);
        self.settings = new;
        if endpoints_changed {
            self.open_control();
        }
        self.apply_to_hub();
        self.apply_limits();
        // max_buffered may be lower now.
        self.evict_largest();
    }

    fn listen(&mut self, settings: &Settings) -> Result<()> {
        // An overlapping address, such as 0.0.0.0:8080 after 127.0.0.1:8080, requires closing the
        // old socket first.
        let overlaps = settings.port.value == self.accepting.address().port();
        if overlaps {
            self.accepting.close_listener();
        }
        let bound = self.bind(settings);
        if bound.is_err() && overlaps {
            let old = self.settings.clone();
            self.bind(&old)?;
        }
        bound?;
        info!("Browsers are served at {}.", self.accepting.address());
        Ok(())
    }

    fn bind(&mut self, settings: &Settings) -> Result<()> {
        let mut listener = Listener::bind(settings)?;
        let registered = listener.register(self.poll.registry(), EventSource::Listener.token());
        registered.map_err(|error| Exit::error(error.to_string()))?;
        self.accepting.replace_listener(listener);
        Ok(())
    }
}

/// Logs why a setting keeps its previous value, and returns it.
fn keep_previous(error: &Exit) -> String {
    let error = error.to_string();
    error!("{} {KEEPING}", one_line(&error));
    error
}
