//! The settings that EspoCRM's configuration does not have: each is defined here, once.
//!
//! The parser of the configuration file and of the command line, `--help` and the table of
//! `espocrm-websocket config` use these definitions. `UPDATE=1 cargo test --test settings` generates
//! from them the shipped configuration file, the manual pages, docs/configuration.md and the
//! completions.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::overrides::{Parsed, add, address, buffered, limit, one};
use super::table::{Rows, megabytes};
use super::{Allowed, ControlAt, Listen, Settings, Size, Span, SpanOrZero};
use crate::engine::printable::Printable;
use crate::engine::protocol::client_address::Network;

/// A setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in the configuration file.
    pub name: &'static str,
    /// Its flag on the command line, without dashes.
    pub flag: &'static str,
    /// The placeholder of the flag's value in `--help`; empty if the flag has none.
    pub value: &'static str,
    /// What it sets, in a few words.
    pub help: &'static str,
    /// Its default, as text.
    pub default: &'static str,
    /// Sets it to the parsed text; a list gets one item more.
    pub(super) parse: fn(&mut Overrides, &str) -> Parsed,
    /// Empties a list. Only a list has this: its flag may be repeated.
    pub(super) clear: Option<fn(&mut Overrides)>,
    /// Adds its value in force to the table of `espocrm-websocket config`.
    pub(super) show: fn(&Settings, &mut Rows),
}

/// The documentation of a setting. The program does not need it.
#[derive(Clone, Copy, Debug)]
pub struct Documentation {
    /// Its value in the shipped file: the default, or an example if that has a text instead.
    pub value: &'static str,
    /// What it does: sentences.
    pub text: &'static str,
    /// Whether a reload applies it.
    pub applies: Applies,
}

/// When a changed setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// After a reload, without disconnecting clients.
    OnReload,
    /// After a restart.
    OnRestart,
}

impl Setting {
    /// Whether it is a list: its flag may be repeated.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.clear.is_some()
    }
}

macro_rules! clear {
    (add $name:ident) => {
        Some(|overrides| overrides.$name = Some(Vec::new()))
    };
    ($parse:ident $name:ident) => {
        None
    };
}

macro_rules! settings {
    ($($name:ident: $type:ty = $parse:ident, $flag:literal $value:literal, default $default:literal {
        help: $help:literal,
        show: $show:expr,
        docs: $example:literal $text:literal $applies:ident,
    })*) => {
        /// The settings of the configuration file, or of the command line, as far as it has them.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Overrides {
            $(#[doc = concat!("The setting `", stringify!($name), "`.")] pub $name: Option<$type>,)*
        }

        /// Every setting.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            name: stringify!($name),
            flag: $flag,
            value: $value,
            help: $help,
            default: $default,
            clear: clear!($parse $name),
            parse: |overrides, text| $parse(&mut overrides.$name, text),
            show: $show,
        },)*];

        /// The documentation of every setting, in the order of [`SETTINGS`].
        pub const DOCUMENTATION: &[Documentation] = &[$(Documentation {
            value: $example,
            text: $text,
            applies: Applies::$applies,
        },)*];
    };
}

settings! {
    espocrm: PathBuf = one, "espocrm" "DIR", default "from the configuration file" {
        help: "EspoCRM's root directory",
        show: |it, rows| {
            rows.add("espocrm", &it.version, &"EspoCRM: version");
            rows.add("enabled", &it.enabled, &"EspoCRM: useWebSocket");
        },
        docs: "\"/var/www/html\""
            "EspoCRM's root directory. This is the only required setting."
            OnRestart,
    }
    php: PathBuf = one, "php" "PATH", default "EspoCRM's phpExecutablePath, or php" {
        help: "PHP's command-line program",
        show: |it, rows| rows.path("php", &it.php.value, &it.php.source),
        docs: "\"php\""
            "PHP's command-line program, which runs EspoCRM's access checks."
            OnReload,
    }
    listen: Listen = one, "listen" "ADDRESS", default "0.0.0.0 and EspoCRM's webSocketPort" {
        help: "address for browsers or the reverse proxy: 127.0.0.1, 0.0.0.0:8080, [::]:8080",
        show: |it, rows| {
            rows.sourced("address", &it.address);
            rows.sourced("port", &it.port);
        },
        docs: "\"0.0.0.0\""
            "Address at which the daemon accepts connections from browsers or from the reverse proxy. With a port, as in \"127.0.0.1:8080\", it takes precedence over EspoCRM's webSocketPort."
            OnReload,
    }
    zeromq: String = one, "zeromq" "DSN", default "EspoCRM's webSocketZeroMQSubscriberDsn, or tcp://127.0.0.1:5555" {
        help: "ZeroMQ endpoint that receives messages from EspoCRM",
        show: |it, rows| {
            rows.add("zeromq", &Printable(&it.zeromq.value), &it.zeromq.source);
            rows.tls(it);
        },
        docs: "\"tcp://127.0.0.1:5555\""
            "ZeroMQ endpoint at which the daemon receives messages from EspoCRM's PHP. A UNIX socket, as in \"ipc:///run/…/zeromq.sock\", is accessible only to the daemon's user and group; EspoCRM's webSocketZeroMQSubmissionDsn must name the same path."
            OnReload,
    }
    debug: bool = one, "debug" "", default "EspoCRM's webSocketDebugMode" {
        help: "log every connection, subscription and message",
        show: |it, rows| rows.sourced("debug", &it.debug),
        docs: "false"
            "Log every connection, subscription and message."
            OnReload,
    }
    log_file: PathBuf = one, "log-file" "FILE", default "standard error, which systemd sends to the journal" {
        help: "log file; relative paths start at EspoCRM's directory",
        show: |it, rows| match &it.log_file.value {
            None => rows.add("log_file", &"standard error", &it.log_file.source),
            Some(file) => rows.path("log_file", file, &it.log_file.source),
        },
        docs: "\"data/logs/websocket.log\""
            "Log file. Relative paths start at EspoCRM's directory. SIGHUP reopens the file, for logrotate."
            OnRestart,
    }
    max_connections: usize = limit, "max-connections" "N", default "10000" {
        help: "maximum number of connections",
        show: |it, rows| rows.sourced("max_connections", &it.max_connections),
        docs: "10000"
            "Maximum number of connections. Each open browser tab has one. Further connections are rejected; browsers retry."
            OnReload,
    }
    max_per_address: usize = one, "max-per-address" "N", default "half of max_connections" {
        help: "maximum number of connections per client address; 0: no limit",
        show: |it, rows| rows.limit("max_per_address", &it.max_per_address),
        docs: "5000"
            "Maximum number of connections per client address. 0: no limit. Loopback and private addresses can be those of a proxy; they are limited only if trusted_proxies is set."
            OnReload,
    }
    max_per_user: usize = one, "max-per-user" "N", default "250" {
        help: "maximum number of connections per user; 0: no limit",
        show: |it, rows| rows.limit("max_per_user", &it.max_per_user),
        docs: "250"
            "Maximum number of connections per user. 0: no limit."
            OnReload,
    }
    trusted_proxies: Vec<Network> = add, "trusted-proxy" "NET", default "none" {
        help: "proxy whose X-Forwarded-For is trusted: an address or a network (10.0.0.0/8)",
        show: |it, rows| rows.list("trusted_proxies", &it.trusted_proxies, "none"),
        docs: "[\"127.0.0.1\", \"::1\"]"
            "Addresses and networks of proxies whose X-Forwarded-For header is trusted. Without this setting, all connections through a proxy are counted for the proxy's address."
            OnReload,
    }
    proxy_protocol: bool = one, "proxy-protocol" "", default "false" {
        help: "expect a PROXY protocol header (version 1 or 2) from the trusted proxies",
        show: |it, rows| rows.sourced("proxy_protocol", &it.proxy_protocol),
        docs: "false"
            "Whether the trusted proxies send a header of the PROXY protocol (version 1 or 2) at the start of each connection, instead of X-Forwarded-For."
            OnReload,
    }
    origins: Vec<Allowed> = add, "origin" "ORIGIN", default "all origins" {
        help: "origin whose pages may connect: https://crm.example.com, or same-site for the origin of EspoCRM's siteUrl",
        show: |it, rows| rows.list("origins", &it.origins, "all"),
        docs: "[\"same-site\"]"
            "Origins whose pages may connect. \"same-site\" is the origin of EspoCRM's siteUrl. Also list portals that have a different host name."
            OnReload,
    }
    max_buffered: Size = buffered, "max-buffered" "SIZE", default "64MiB" {
        help: "maximum buffer memory of all connections (partial input and queued output)",
        show: |it, rows| {
            rows.add("max_buffered", &Size::bytes(it.max_buffered.value), &it.max_buffered.source);
            rows.add("memory at most", &megabytes(it.worst_case()), &"docs/limits.md");
        },
        docs: "\"64MiB\""
            "Maximum buffer memory of all connections together: partial input and queued output. If it is exceeded, the connections that use the most are ended, and their browsers reconnect. A browser tab needs less than 1 KiB. The minimum is 4MiB."
            OnReload,
    }
    max_checks: usize = limit, "max-checks" "N", default "2 per CPU core" {
        help: "maximum number of PHP processes that check access",
        show: |it, rows| rows.sourced("max_checks", &it.max_checks),
        docs: "4"
            "Maximum number of PHP processes that check access at the same time, about 50 MB each. This includes PHP workers."
            OnReload,
    }
    check_timeout: Span = one, "check-timeout" "TIME", default "20s" {
        help: "time after which an access check fails and its PHP process is killed",
        show: |it, rows| rows.span("check_timeout", &it.check_timeout),
        docs: "\"20s\""
            "Time after which an access check fails and its PHP process is killed."
            OnReload,
    }
    recheck_interval: SpanOrZero = one, "recheck-interval" "TIME", default "5m" {
        help: "how often granted access is checked again; 0: never",
        show: |it, rows| rows.span("recheck_interval", &it.recheck_interval),
        docs: "\"5m\""
            "How often granted access is checked again. After a logout or a role change, events stop within this time. 0: never."
            OnReload,
    }
    ping_interval: Span = one, "ping-interval" "TIME", default "25s" {
        help: "interval between pings of a connection",
        show: |it, rows| rows.span("ping_interval", &it.ping_interval),
        docs: "\"25s\""
            "Interval between pings of a connection. It must be less than half of the proxy's idle timeout, which is usually 60 s."
            OnReload,
    }
    check_cache: SpanOrZero = one, "check-cache" "TIME", default "3s" {
        help: "how long a positive check result is reused; 0: never",
        show: |it, rows| rows.span("check_cache", &it.check_cache),
        docs: "\"3s\""
            "How long a positive check result is reused for the same user and topic, counted from the start of the check. 0: never."
            OnReload,
    }
    worker: bool = one, "no-worker" "", default "true" {
        help: "run each access check in its own PHP process",
        show: |it, rows| rows.add("checks by", &it.check_mode.value, &it.check_mode.source),
        docs: "true"
            "Whether warm PHP processes (workers) check access. A check by a warm worker costs less than a tenth of a check by a new PHP process; the first check of a worker costs as much. A worker exits a minute after its last check."
            OnReload,
    }
    control: ControlAt = one, "control" "PATH", default "control.sock in the service's directory in /run" {
        help: "control socket, or off",
        show: |it, rows| rows.sourced("control", &it.control),
        docs: "\"/run/espocrm-websocket/control.sock\""
            "Path of the control socket, which the commands status, tail, kick, send, reload and doctor use. Only root and the daemon's user have access. \"off\" disables it."
            OnReload,
    }
    metrics: SocketAddr = address, "metrics" "ADDRESS:PORT", default "disabled" {
        help: "address of the Prometheus endpoints /metrics and /healthz",
        show: |it, rows| match &it.metrics.value {
            None => rows.add("metrics", &"off", &it.metrics.source),
            Some(address) => rows.add("metrics", address, &it.metrics.source),
        },
        docs: "\"127.0.0.1:9170\""
            "Address of the Prometheus endpoints /metrics and /healthz. They contain no user names, ids or topics."
            OnReload,
    }
}
