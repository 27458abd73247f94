//! What `espocrm-websocket config` prints.

use std::fmt;
use std::path::Path;

use super::{CheckMode, Settings, Size, Source, Sourced, Span};
use crate::engine::espocrm::category::SubscribePolicy;
use crate::engine::printable::{Printable, printable};

/// A setting in force. One that goes on with the one before it has no name.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    value: String,
    source: String,
}

impl Settings {
    /// What is in force by these and was not by `old`; empty if nothing is.
    #[must_use]
    pub fn changes_from(&self, old: &Self) -> String {
        let before = old.rows();
        let rows = self.rows().into_iter().filter(|row| !before.contains(row));
        let told = rows.map(|Row { name, value, source }| format!("{name} {value} ({source})"));
        told.collect::<Vec<_>>().join(", ").trim_start().to_owned()
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut row = |name, value: &dyn fmt::Display, source: &dyn fmt::Display| {
            rows.push(Row { name, value: value.to_string(), source: source.to_string() });
        };
        let Self { php, address, port, zeromq, tls, debug, .. } = self;
        row("espocrm", &self.version, &"EspoCRM: version");
        row("enabled", &self.enabled, &"EspoCRM: useWebSocket");
        row("php", &escaped(&php.value), &php.source);
        row("address", &address.value, &address.source);
        row("port", &port.value, &port.source);
        row("zeromq", &Printable(&zeromq.value), &zeromq.source);
        match &tls.value {
            None => row("tls", &"no", &tls.source),
            Some(files) => {
                let source = "EspoCRM: webSocketSslCertificateFile";
                row("tls", &escaped(&files.certificate), &source);
                if let Some(key) = &files.key {
                    let source = "EspoCRM: webSocketSslCertificateLocalPrivateKey";
                    row("", &escaped(key), &source);
                }
                if files.passphrase.is_some() {
                    row("", &"passphrase set", &"EspoCRM: webSocketSslCertificatePassphrase");
                }
            }
        }
        row("debug", &debug.value, &debug.source);
        match &self.log_file.value {
            None => row("log_file", &"standard error", &self.log_file.source),
            Some(file) => row("log_file", &escaped(file), &self.log_file.source),
        }
        row("max_connections", &self.max_connections.value, &self.max_connections.source);
        let limit = |limit: &Sourced<usize>| match limit.value {
            0 => "none".to_owned(),
            limit => limit.to_string(),
        };
        let of_address = &self.max_per_address;
        row("max_per_address", &limit(of_address), &of_address.source);
        row("max_per_user", &limit(&self.max_per_user), &self.max_per_user.source);
        let proxies = &self.trusted_proxies;
        row("trusted_proxies", &list(&proxies.value, "none"), &proxies.source);
        row("proxy_protocol", &self.proxy_protocol.value, &self.proxy_protocol.source);
        row("origins", &list(&self.origins.value, "all"), &self.origins.source);
        let buffered = &self.max_buffered;
        row("max_buffered", &Size::bytes(buffered.value), &buffered.source);
        row("memory at most", &megabytes(self.worst_case()), &"docs/limits.md");
        row("max_checks", &self.max_checks.value, &self.max_checks.source);
        let (timeout, interval) = (&self.check_timeout, &self.ping_interval);
        row("check_timeout", &Span::from(timeout.value), &timeout.source);
        let recheck = &self.recheck_interval;
        row("recheck_interval", &Span::from(recheck.value), &recheck.source);
        row("ping_interval", &Span::from(interval.value), &interval.source);
        let reuse = &self.check_cache;
        row("check_cache", &Span::from(reuse.value), &reuse.source);
        row("checks by", &self.check_mode.value, &self.check_mode.source);
        row("control", &self.control.value, &self.control.source);
        match &self.metrics.value {
            None => row("metrics", &"off", &self.metrics.source),
            Some(address) => row("metrics", address, &self.metrics.source),
        }
        rows
    }
}

/// The table that `espocrm-websocket config` prints.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { name, value, source } in self.rows() {
            writeln!(f, "{name:<16}{value:<35} {source}")?;
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
            Self::Plain(reason) => write!(f, "a PHP process for each ({reason})"),
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

fn list(items: &[impl fmt::Display], none: &str) -> String {
    if items.is_empty() {
        return none.to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn escaped(path: &Path) -> String {
    printable(&path.to_string_lossy())
}
