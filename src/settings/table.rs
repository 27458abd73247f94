//! The output of `espocrm-websocket config`.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::definitions::SETTINGS;
use super::{CheckMode, Settings, Source, Sourced, Span};
use crate::engine::espocrm::category::SubscribePolicy;
use crate::engine::printable::{Printable, printable};

/// A setting in force. A row without a name continues the previous one.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    value: String,
    source: String,
}

/// The table of `espocrm-websocket config`.
#[derive(Debug, Default)]
pub(super) struct Rows(Vec<Row>);

impl Settings {
    /// The settings that differ from `old`, as a list; empty if none does.
    #[must_use]
    pub fn changes_from(&self, old: &Self) -> String {
        let before = old.rows();
        let rows = self.rows().into_iter().filter(|row| !before.contains(row));
        let changes = rows.map(|Row { name, value, source }| format!("{name} {value} ({source})"));
        changes.collect::<Vec<_>>().join(", ").trim_start().to_owned()
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Rows::default();
        for setting in SETTINGS {
            (setting.show)(self, &mut rows);
        }
        rows.0
    }
}

impl Rows {
    pub(super) fn add(
        &mut self,
        name: &'static str,
        value: &dyn fmt::Display,
        source: &dyn fmt::Display,
    ) {
        self.0.push(Row { name, value: value.to_string(), source: source.to_string() });
    }

    pub(super) fn sourced<T: fmt::Display>(&mut self, name: &'static str, setting: &Sourced<T>) {
        self.add(name, &setting.value, &setting.source);
    }

    /// A limit for which 0 means none.
    pub(super) fn limit(&mut self, name: &'static str, limit: &Sourced<usize>) {
        match limit.value {
            0 => self.add(name, &"none", &limit.source),
            value => self.add(name, &value, &limit.source),
        }
    }

    pub(super) fn list<T: fmt::Display>(
        &mut self,
        name: &'static str,
        list: &Sourced<Vec<T>>,
        empty: &str,
    ) {
        let items: Vec<_> = list.value.iter().map(ToString::to_string).collect();
        let text = if items.is_empty() { empty.to_owned() } else { items.join(" ") };
        self.add(name, &text, &list.source);
    }

    pub(super) fn span(&mut self, name: &'static str, span: &Sourced<Duration>) {
        self.add(name, &Span::from(span.value), &span.source);
    }

    pub(super) fn path(&mut self, name: &'static str, path: &Path, source: &dyn fmt::Display) {
        self.add(name, &Printable(path.to_string_lossy()), source);
    }

    /// The daemon's own TLS, which is set in EspoCRM's configuration only.
    pub(super) fn tls(&mut self, settings: &Settings) {
        let Some(files) = &settings.tls.value else {
            return self.add("tls", &"no", &settings.tls.source);
        };
        self.path("tls", &files.certificate, &"EspoCRM: webSocketSslCertificateFile");
        if let Some(key) = &files.key {
            self.path("", key, &"EspoCRM: webSocketSslCertificateLocalPrivateKey");
        }
        if files.passphrase.is_some() {
            self.add("", &"passphrase set", &"EspoCRM: webSocketSslCertificatePassphrase");
        }
    }
}

/// The table that `espocrm-websocket config` prints.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { name, value, source } in self.rows() {
            writeln!(f, "{name:<18}{value:<35} {source}")?;
        }
        writeln!(f, "\ncategories")?;
        for (name, category) in self.categories.iter() {
            let segments = category.parameters.iter().map(|parameter| format!(".<{parameter}>"));
            let topic = printable(&(name.to_owned() + &segments.collect::<String>()));
            match &category.access {
                SubscribePolicy::Everyone => writeln!(f, "  {topic:<34}open to every user")?,
                SubscribePolicy::Checked(_, command) => {
                    writeln!(f, "  {topic:<34}{}", Printable(command))?;
                }
                SubscribePolicy::Invalid(error) => writeln!(f, "  {topic:<34}NOT SERVED: {error}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for CheckMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workers(1) => f.write_str("a warm PHP worker"),
            Self::Workers(limit) => write!(f, "up to {limit} warm PHP workers"),
            Self::Plain(reason) => write!(f, "a PHP process each ({reason})"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Espocrm(parameter) => write!(f, "EspoCRM: {parameter}"),
            Self::File => f.write_str("configuration file"),
            Self::Flag => f.write_str("command line"),
            Self::Systemd => f.write_str("systemd's socket"),
        }
    }
}

/// A number of bytes, rounded up.
#[must_use]
pub fn megabytes(bytes: usize) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}
