//! Reloads the settings when they have changed or the administrator requests it.

use std::io;
use std::process::Command;

use log::{debug, error};

use super::seam::SettingsReader;
use super::settings_reader::Probed;
use crate::engine::espocrm::version::Version;
use crate::engine::reload::{Action, Files, Reload};
use crate::engine::time::Time;
use crate::espocrm::process::Finished;
use crate::settings::Settings;

/// Executes the decisions of [`Reload`] that concern files and the probe. The others are returned by
/// [`poll`](Self::poll), to be called after each input.
pub(crate) struct Reloader {
    reload: Reload,
    reader: SettingsReader,
    /// Printed by the last probe, until it is applied.
    probed: Probed,
}

/// What the caller has to do.
pub(crate) enum Event {
    /// Settings are being read. Start no access check until [`Ended`](Self::Ended).
    Begun,
    Apply {
        settings: Box<Settings>,
        requested: bool,
    },
    /// The previous settings stay in force, but EspoCRM may have this version now.
    Kept {
        error: String,
        version: Option<Version>,
    },
    Ended,
}

pub(crate) const KEEPING: &str = "Keeping the previous settings.";

impl Reloader {
    #[must_use]
    pub(crate) fn new(reader: SettingsReader) -> Self {
        Self { reload: Reload::default(), reader, probed: Probed::Nothing }
    }

    /// Begins a turn of the event loop, in which files are checked once.
    pub(crate) fn begin_turn(&mut self) {
        self.reload.begin_turn();
    }

    /// The administrator requests a reload.
    pub(crate) fn request(&mut self) {
        self.reload.request();
    }

    /// Checks whether the files have changed, at most once per turn.
    pub(crate) fn check_files(&mut self, now: Time) {
        self.reload.check_files(now);
    }

    /// Checks the files if that is due.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        self.reload.handle_timeout(now);
    }

    /// Takes the result of the probe.
    pub(crate) fn handle_probe(&mut self, now: Time, finished: &Finished) {
        let (outcome, probed) = self.reader.read(finished);
        self.probed = probed;
        self.reload.handle_probe_result(now, outcome);
    }

    /// Returns the next event. Starts the probe with `spawn`.
    pub(crate) fn poll(
        &mut self,
        now: Time,
        mut spawn: impl FnMut(Command) -> io::Result<()>,
    ) -> Option<Event> {
        loop {
            match self.reload.poll()? {
                Action::CheckFiles => {
                    let files = if self.reader.take_change() {
                        debug!(
                            "EspoCRM's configuration, metadata or certificate has changed. \
                             Reloading."
                        );
                        Files::Changed
                    } else {
                        Files::Unchanged
                    };
                    self.reload.handle_file_check(now, files);
                }
                Action::Begin => {
                    self.reader.record_files();
                    return Some(Event::Begun);
                }
                Action::Probe(php) => {
                    if let Err(error) = self.reader.start_probe(php, &mut spawn) {
                        self.reload.handle_probe_not_started(now, error.to_string());
                    }
                }
                Action::Apply { requested } => {
                    if let Probed::Settings(settings) = self.take_probed() {
                        return Some(Event::Apply { settings, requested });
                    }
                }
                Action::Keep { error, should_log } => {
                    let version = match self.take_probed() {
                        Probed::Invalid(version) => Some(version),
                        _ => None,
                    };
                    if should_log {
                        // Invalid settings may be quoted in several lines.
                        let text = if version.is_some() { one_line(&error) } else { error.clone() };
                        error!("{text} {KEEPING}");
                    }
                    return Some(Event::Kept { error, version });
                }
                Action::Report => return Some(Event::Ended),
            }
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) while clients are connected.
    #[must_use]
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.reload.poll_timeout()
    }

    /// Whether a reload is running.
    #[must_use]
    pub(crate) fn is_running(&self) -> bool {
        self.reload.is_running()
    }

    /// Whether EspoCRM's version may differ from that of the settings in force.
    #[must_use]
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.reload.is_in_doubt() || self.reader.has_pending_change()
    }

    fn take_probed(&mut self) -> Probed {
        std::mem::replace(&mut self.probed, Probed::Nothing)
    }
}

/// Joins the lines of an error that quotes a file.
pub(crate) fn one_line(error: &str) -> String {
    error.split_whitespace().collect::<Vec<_>>().join(" ")
}
