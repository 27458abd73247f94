//! Reading the configuration file and values of the command line.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml_span::Value;
use toml_span::value::ValueInner;

use super::Size;
use super::definitions::{Overrides, SETTINGS, Setting};
use crate::engine::limits::MIN_BUFFERED;
use crate::engine::printable::{Printable, printable};
use crate::engine::protocol::origin::{InvalidOrigin, Origin};
use crate::platform::exit::{Exit, Result};
use crate::platform::regular_file;
use crate::settings::suggest::did_you_mean;

/// The location of the control socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ControlAt {
    /// In the runtime directory that systemd provides, or the one of the package.
    #[default]
    Default,
    /// Disabled.
    Off,
    /// This path.
    Path(PathBuf),
}

/// An address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: IpAddr,
    /// The port, if it is not the one of EspoCRM's configuration.
    pub port: Option<u16>,
}

/// Pages that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Those with the origin of EspoCRM's `siteUrl`.
    SameSite,
    /// Those with this origin.
    Origin(Origin),
}

/// The result of reading a value.
pub(super) type Parsed = std::result::Result<(), String>;

/// The configuration file if the command line names no other one.
pub const DEFAULT_FILE: &str = "/etc/espocrm-websocket/config.toml";

impl Overrides {
    /// Reads the configuration file: `named`, or else [`DEFAULT_FILE`] if it exists.
    ///
    /// # Errors
    /// If the file cannot be read or is invalid: where, and why.
    pub fn from_file(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        match Self::text_of(path) {
            Ok(text) => Self::from_toml(&text).map_err(|mistakes| {
                let line = |mistake: &str| format!("{}: {mistake}", Printable(path.display()));
                Exit::error_lines(mistakes.lines().map(line).collect::<Vec<_>>().join("\n"))
            }),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(Exit::error(format!("Cannot read {}: {error}.", path.display()))),
        }
    }

    /// The text of a configuration file. `/dev/null` stands for an empty one.
    ///
    /// # Errors
    /// If it cannot be read, is not a regular file, or larger than 1 MiB.
    pub fn text_of(path: &Path) -> std::io::Result<String> {
        if path == Path::new("/dev/null") {
            return Ok(String::new());
        }
        regular_file::read_to_string(path)
    }

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// Every mistake, in a line with its place.
    pub fn from_toml(text: &str) -> std::result::Result<Self, String> {
        let at = |offset: usize, error: &str| {
            let line = text.get(..offset).unwrap_or_default().split('\n').count();
            format!("line {line}: {error}")
        };
        let mut own = Self::default();
        let mut file = toml_span::parse(text).map_err(|error| {
            // It repeats what it does not understand.
            let text = printable(&error.to_string());
            at(error.span.start, &text)
        })?;
        let ValueInner::Table(table) = file.take() else { return Ok(own) };
        let mut mistakes = Vec::new();
        for (key, value) in table {
            if let Err(mistake) = own.set_value(&key.name, value) {
                mistakes.push((key.span.start, mistake));
            }
        }
        if mistakes.is_empty() {
            return Ok(own);
        }
        mistakes.sort_unstable();
        let lines = mistakes.iter().map(|(offset, mistake)| at(*offset, mistake));
        Err(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Sets a setting to the value of a text. A list gets one more item.
    ///
    /// # Errors
    /// If the text is not a valid value, or no setting has this name.
    pub fn set(&mut self, name: &str, text: &str) -> std::result::Result<(), String> {
        (setting(name)?.parse)(self, text).map_err(|error| format!("{name}: {error}"))
    }

    fn set_value(&mut self, name: &str, mut value: Value<'_>) -> std::result::Result<(), String> {
        let clear = setting(name)?.clear;
        let odd = |kind: &str| format!("{name}: {kind} is not expected");
        match (value.take(), clear) {
            (ValueInner::Array(items), Some(clear)) => {
                clear(self);
                items
                    .into_iter()
                    .try_for_each(|mut item| self.set(name, &text(item.take()).map_err(odd)?))
            }
            (other, _) => self.set(name, &text(other).map_err(odd)?),
        }
    }
}

/// The text of a value, or its type if that is not a valid one.
fn text(value: ValueInner<'_>) -> std::result::Result<String, &'static str> {
    match value {
        ValueInner::String(text) => Ok(text.into_owned()),
        ValueInner::Integer(number) => Ok(number.to_string()),
        ValueInner::Boolean(truth) => Ok(truth.to_string()),
        other => Err(other.type_str()),
    }
}

fn setting(name: &str) -> std::result::Result<&'static Setting, String> {
    SETTINGS.iter().find(|setting| setting.name == name).ok_or_else(|| {
        if ["webSocket", "useWebSocket", "siteUrl", "phpExecutablePath"]
            .iter()
            .any(|begin| name.starts_with(begin))
        {
            return format!(
                "\"{}\" is a parameter of EspoCRM: set it in EspoCRM's data/config.php; the daemon reads it \
                 from there",
                Printable(name)
            );
        }
        let names = SETTINGS.iter().map(|setting| setting.name);
        let meant = did_you_mean(&name.replace('-', "_"), names.clone());
        if meant.is_empty() {
            let names: Vec<_> = names.collect();
            let names = names.join(", ");
            return format!("there is no setting \"{}\"; the settings are {names}", Printable(name));
        }
        format!("there is no setting \"{}\"{meant}", Printable(name))
    })
}

pub(super) fn one<T>(place: &mut Option<T>, text: &str) -> Parsed
where
    T: FromStr<Err: fmt::Display>,
{
    *place = Some(text.parse().map_err(|error| format!("\"{}\": {error}", Printable(text)))?);
    Ok(())
}

pub(super) fn add<T>(place: &mut Option<Vec<T>>, text: &str) -> Parsed
where
    T: FromStr<Err: fmt::Display>,
{
    let mut item = None;
    one(&mut item, text)?;
    place.get_or_insert_default().extend(item);
    Ok(())
}

pub(super) fn limit(place: &mut Option<usize>, text: &str) -> Parsed {
    one(place, text)?;
    if *place == Some(0) { Err("it must be at least 1".to_owned()) } else { Ok(()) }
}

pub(super) fn buffered(place: &mut Option<Size>, text: &str) -> Parsed {
    one(place, text)?;
    let enough = place.is_some_and(|size| usize::from(size) >= MIN_BUFFERED);
    if enough { Ok(()) } else { Err(format!("it must be at least {}", Size::bytes(MIN_BUFFERED))) }
}

pub(super) fn address(place: &mut Option<SocketAddr>, text: &str) -> Parsed {
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    *place = Some(address.ok_or_else(|| {
        let text = Printable(text);
        format!("\"{text}\": an address with a port is expected, such as 127.0.0.1:9170")
    })?);
    Ok(())
}

impl FromStr for ControlAt {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "" | "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::Path(path.into())),
            _ => Err("an absolute path of a socket is expected, or off".to_owned()),
        }
    }
}

impl fmt::Display for ControlAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("in the runtime directory"),
            Self::Off => f.write_str("off"),
            Self::Path(path) => Printable(path.to_string_lossy()).fmt(f),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { address: address.ip(), port: Some(address.port()) });
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self { address, port: None }),
            Err(_) => {
                Err("an IP address is expected, with or without a port: 127.0.0.1, 0.0.0.0:8080, [::]:8080"
                    .into())
            }
        }
    }
}

impl FromStr for Allowed {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidOrigin> {
        if text == "same-site" { Ok(Self::SameSite) } else { Origin::of(text).map(Self::Origin) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::definitions::DOCUMENTATION;
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_setting_can_be_set() {
        let own = Overrides::from_toml(
            "espocrm = '/srv/crm'\nphp = '/usr/bin/php8.2'\nlisten = '[::1]:9000'\n\
             zeromq = 'tcp://127.0.0.1:5556'\ndebug = true\nlog_file = 'data/logs/websocket.log'\nmax_connections = 500\n\
             max_per_address = 100\nmax_per_user = 0\ntrusted_proxies = ['10.0.0.0/8', '::1']\n\
             proxy_protocol = true\norigins = ['same-site', 'https://portal.example.com/']\n\
             max_buffered = '16MiB'\nmax_checks = 1\ncheck_timeout = '10s'\nrecheck_interval = 0\n\
             ping_interval = 20\ncheck_cache = 0\nworker = false\n\
             control = '/run/a/control.sock'\nmetrics = '127.0.0.1:9170'\n",
        );
        let expected = Overrides {
            espocrm: Some("/srv/crm".into()),
            php: Some("/usr/bin/php8.2".into()),
            listen: Some(Listen { address: "::1".parse().unwrap(), port: Some(9000) }),
            zeromq: Some("tcp://127.0.0.1:5556".into()),
            log_file: Some("data/logs/websocket.log".into()),
            debug: Some(true),
            max_connections: Some(500),
            max_per_address: Some(100),
            max_per_user: Some(0),
            trusted_proxies: Some(vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()]),
            proxy_protocol: Some(true),
            origins: Some(vec![
                Allowed::SameSite,
                Allowed::Origin(Origin::of("https://portal.example.com").unwrap()),
            ]),
            max_buffered: Some(Size::bytes(16 << 20)),
            max_checks: Some(1),
            check_timeout: Some(Duration::from_secs(10).into()),
            recheck_interval: Some(Duration::ZERO.into()),
            ping_interval: Some(Duration::from_secs(20).into()),
            check_cache: Some(Duration::ZERO.into()),
            worker: Some(false),
            control: Some(ControlAt::Path("/run/a/control.sock".into())),
            metrics: Some("127.0.0.1:9170".parse().unwrap()),
        };
        assert_eq!(own, Ok(expected));
        assert_eq!(Overrides::from_toml(""), Ok(Overrides::default()));
    }

    #[test]
    fn the_shipped_file_sets_espocrm_alone() {
        const SHIPPED: &str = include_str!("../../packaging/config.toml");
        let espocrm = Some("/var/www/html".into());
        let expected = Overrides { espocrm, ..Overrides::default() };
        assert_eq!(Overrides::from_toml(SHIPPED), Ok(expected));
    }

    #[test]
    fn documented_values_are_valid() {
        for (setting, docs) in SETTINGS.iter().zip(DOCUMENTATION) {
            let overrides = Overrides::from_toml(&format!("{} = {}", setting.name, docs.value));
            assert!(overrides.is_ok_and(|it| it != Overrides::default()), "{}", setting.name);
        }
    }

    #[test]
    fn mistakes_are_reported_with_their_line() {
        for (text, mistake) in [
            ("\nlisten = 'localhost'", "\"localhost\": an IP address"),
            ("\nlisten = \"it's\"", "\"it's\": an IP address"),
            ("\n\"it's\" = 1", "there is no setting \"it's\""),
            ("\nmax_checks = 0", "at least 1"),
            ("\nmax_checks = -1", "max_checks"),
            ("\nmax_checks = [1]", "max_checks: array is not expected"),
            ("\nping_interval = 1.5", "ping_interval: float"),
            ("\norigins = [[]]", "origins"),
            ("\ndebug = 'maybe'", "debug"),
            ("debug = true\ndebug = true", "duplicate key: `debug`"),
            ("\nping_interval = 0", "a length of time is expected"),
            ("\nrecheck_interval = 'off'", "a length of time is expected"),
            ("\nping_interval = 'soon'", "a length of time is expected"),
            ("\ntrusted_proxies = ['proxy']", "proxy"),
            ("\norigins = ['*']", "expected an origin"),
            ("\ncontrol = 'here'", "an absolute path of a socket"),
            ("\nmetrics = '9170'", "an address with a port"),
            ("\nmetrics = '127.0.0.1:0'", "an address with a port"),
            ("\nport = 8080", "there is no setting \"port\"; the settings are espocrm, php"),
            ("\nmax_conections = 5", "did you mean max_connections?"),
            ("\nping-interval = 5", "did you mean ping_interval?"),
            ("\nwebSocketPort = 8080", "a parameter of EspoCRM"),
            ("\nmax_buffered = '1MiB'", "at least 4MiB"),
            ("\nmax_buffered = 'much'", "a number of bytes"),
            ("\nx", "line 2"),
            ("\nphp = '\u{1b}[2J'", "\\u{1b}"),
        ] {
            let error = Overrides::from_toml(text).unwrap_err();
            assert!(error.contains(mistake) && error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let text = "worker = 1\nphp = 'x'\nlistne = '::'\nmax_connections = 10_000\ndebug = 'no'";
        let mistakes = Overrides::from_toml(text).unwrap_err();
        let lines: Vec<_> = mistakes.lines().map(|line| line.split_once(": ").unwrap().0).collect();
        assert_eq!(lines, ["line 1", "line 3", "line 5"], "{mistakes}");
    }
}
