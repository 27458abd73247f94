//! The command line: parsed once, into something meaningful.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::PathBuf;

use lexopt::prelude::{Long, Short, Value, ValueExt};

use crate::admin::adopt::Adopt;
use crate::admin::ctl;
use crate::admin::ctl::Ctl;
use crate::admin::doctor::Doctor;
use crate::admin::health;
use crate::admin::setup::{Setup, service_user};
use crate::daemon::{demo, run};
use crate::engine::printable::Printable;
use crate::espocrm::RunAs;
use crate::platform::exit::Exit;
use crate::platform::{exit, logging, sys};
use crate::settings::suggest::{did_you_mean, nearest};
use crate::settings::{Layers, Overrides};

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve an EspoCRM.
    Run(Options),
    /// Show the settings in force.
    Config(Options),
    /// Find out whether the settings make sense.
    Check(Options),
    /// Find out whether a daemon serves.
    Health(Options),
    /// Find out what keeps real-time from working.
    Doctor(Doctor),
    /// Serve the demo page.
    Demo(Overrides),
    /// Make it a service of this machine.
    Setup(Setup),
    /// Take the place of an administrator's own unit.
    Adopt(Adopt),
    /// Ask or order a daemon that runs.
    Ctl(Ctl),
    /// Explain.
    Help,
    /// Tell the version.
    Version,
}

/// What the flags say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Settings that win over those of the file.
    pub flags: Overrides,
    /// As whom PHP runs.
    pub run_as: RunAs,
}

/// The flags that are followed by a value, which is understood as in the configuration file.
const VALUES: [&str; 16] = [
    "log-file",
    "listen",
    "zeromq",
    "max-connections",
    "max-per-address",
    "max-per-user",
    "trusted-proxy",
    "origin",
    "max-buffered",
    "max-checks",
    "check-timeout",
    "recheck-interval",
    "ping-interval",
    "check-cache",
    "control",
    "metrics",
];

/// What may be asked for.
const COMMANDS: [&str; 13] = [
    "run", "config", "health", "doctor", "status", "tail", "kick", "send", "reload", "demo",
    "setup", "adopt", "help",
];

const HELP: &str = "\
The real-time daemon of EspoCRM, a drop-in for its websocket.php.

Usage:
  espocrm-websocket run --espocrm DIR [options]     serve the EspoCRM in DIR
  espocrm-websocket DIR [options]                   the same
  espocrm-websocket config --espocrm DIR [options]  show the settings in force; with --check,
                                                    tell only what is wrong with them
  espocrm-websocket health --espocrm DIR [options]  whether a daemon with these settings serves: a
                                                    WebSocket is opened and closed
  espocrm-websocket doctor [--espocrm DIR] [--json] go through the whole chain, from EspoCRM to the
                                                    browser, and tell what is wrong and what to do
  espocrm-websocket status [users|topics|connections] [--watch] [--json]
                                                    how a running daemon is, and who is there
  espocrm-websocket tail [--json]                   messages as they pass
  espocrm-websocket kick USER                       end a user's connections: they come back after
                                                    3 s, and are checked anew
  espocrm-websocket send TOPIC [--user USER] [JSON] tell a test message, as if EspoCRM had sent it
  espocrm-websocket reload                          read all settings and certificates again, and
                                                    wait until they are applied
  espocrm-websocket demo [--listen ADDRESS:PORT]    try it without EspoCRM or PHP
  espocrm-websocket setup [--espocrm DIR]           make it a service of systemd (as root)
  espocrm-websocket adopt [UNIT]                    the same, in the place of your own unit for
                                                    websocket.php; --undo: give that back

Options:
  --espocrm DIR          EspoCRM's root directory
  --config FILE          our settings (default: /etc/espocrm-websocket/config.toml, if it exists)
  --user USER            the user who runs EspoCRM's PHP when this runs as root, or, for setup and
                         adopt, the whole service (default: the owner of EspoCRM's data/)
  --allow-root           let PHP run as root where data/ belongs to root: only for containers that
                         have no other user
  --php PATH             PHP's command line (default: EspoCRM's phpExecutablePath, or php)
  --listen ADDRESS       where browsers connect: 127.0.0.1, 0.0.0.0:8080, [::]:8080
                         (default: 0.0.0.0, and the port of EspoCRM's configuration)
  --zeromq DSN           where EspoCRM connects (default: from EspoCRM's configuration)
  --max-connections N    connections at a time (default: 10000)
  --max-per-address N    of one client address, 0 for no limit (default: half of them; private
                         addresses may be a proxy's and count only if --trusted-proxy is given)
  --max-per-user N       of one user, 0 for no limit (default: 250)
  --trusted-proxy NET    an address or network (10.0.0.0/8) whose X-Forwarded-For is believed;
                         may be repeated
  --proxy-protocol       these proxies begin each connection by a PROXY header (v1 or v2)
  --origin ORIGIN        the only pages that may connect: https://crm.example.com, or same-site
                         for that of EspoCRM's siteUrl; may be repeated
  --max-buffered SIZE    what all connections together may hold that is incomplete or waits to be
                         written (default: 64MiB)
  --max-checks N         PHP processes at a time that check access (default: 2 per core)
  --check-timeout TIME   after which a check is killed (default: 20s)
  --recheck-interval TIME between two checks of what was granted, 0 for none (default: 5m)
  --ping-interval TIME   between two pings of a connection (default: 25s)
  --check-cache TIME   for which a grant counts for whoever asks the same (default: 3s; 0: not)
  --no-worker            run each check in a PHP process of its own
  --control PATH         the control socket, or off (default: in the service's directory below /run)
  --metrics ADDRESS:PORT where /metrics and /healthz are told, for Prometheus (default: nowhere)
  --debug                log each event
  --log-file FILE        where the log goes; a relative name is one in EspoCRM's directory
                         (default: standard error)
  --name NAME            setup, adopt: for a further EspoCRM, as espocrm-websocket@NAME; doctor, status,
                         tail, kick, send, reload: the daemon of that service
  --at-install           setup: only what a package's script may do
  --root DIR             setup, adopt: in the image of a machine, of which nothing is started;
                         doctor: the files of web server, PHP and systemd are there
  -h, --help             this text
  -V, --version          the version

Signals: SIGHUP reads all settings again and opens the log file anew, SIGTERM and SIGINT stop.
";

impl Command {
    /// Understands the arguments after the program's name.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, lexopt::Error> {
        Self::understand(arguments).map_err(|error| match error {
            lexopt::Error::UnexpectedOption(flag) => {
                let meant = nearest(flag.trim_start_matches('-'), flags());
                let meant = meant.map(|name| format!("; did you mean --{name}?"));
                format!("there is no option {flag} here{}", meant.unwrap_or_default()).into()
            }
            // The library would print it with escaped quotes.
            lexopt::Error::UnexpectedArgument(argument) => {
                let argument = argument.to_string_lossy();
                format!("unexpected argument \"{}\"", Printable(argument)).into()
            }
            error => error,
        })
    }

    fn understand(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, lexopt::Error> {
        let mut parser = lexopt::Parser::from_args(arguments);
        let mut begins_with = |name: &str| {
            let first = parser.try_raw_args();
            first.and_then(|mut first| first.next_if(|word| word == name)).is_some()
        };
        if begins_with("setup") {
            return Ok(Setup::parse(&mut parser)?.map_or(Self::Help, Self::Setup));
        }
        if begins_with("doctor") {
            return Ok(Doctor::parse(&mut parser)?.map_or(Self::Help, Self::Doctor));
        }
        if begins_with("adopt") {
            return Ok(Adopt::parse(&mut parser)?.map_or(Self::Help, Self::Adopt));
        }
        if let Some(command) = ctl::COMMANDS.into_iter().find(|name| begins_with(name)) {
            return Ok(Ctl::parse(command, &mut parser)?.map_or(Self::Help, Self::Ctl));
        }
        let (mut name, mut dir) = (None, None);
        let mut check = false;
        let mut options = Options::default();
        let flags = &mut options.flags;
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => return Ok(Self::Help),
                Long("version") | Short('V') => return Ok(Self::Version),
                Long("config") => options.config = Some(parser.value()?.into()),
                Long("user") => options.run_as.user = Some(parser.value()?.string()?),
                Long("allow-root") => options.run_as.allow_root = true,
                Long("espocrm") => flags.espocrm = Some(parser.value()?.into()),
                Long("php") => flags.php = Some(parser.value()?.into()),
                Long("no-worker") => flags.worker = Some(false),
                Long("proxy-protocol") => flags.proxy_protocol = Some(true),
                Long("check") => check = true,
                Long("debug") => flags.debug = Some(true),
                Long(name) if VALUES.contains(&name) => {
                    let setting = match name {
                        "trusted-proxy" => "trusted_proxies".to_owned(),
                        "origin" => "origins".to_owned(),
                        name => name.replace('-', "_"),
                    };
                    flags.set(&setting, &parser.value()?.string()?)?;
                }
                // A directory, as `php websocket.php` was replaced word for word.
                Value(value) if dir.is_none() && is_directory(&value) => dir = Some(value),
                Value(value) if name.is_none() => name = Some(value),
                other => return Err(other.unexpected()),
            }
        }
        if let Some(dir) = dir.clone()
            && flags.espocrm.replace(dir.into()).is_some()
        {
            return Err("EspoCRM's directory is named twice, by --espocrm and without".into());
        }
        match name.as_deref().map(OsStr::to_string_lossy).as_deref() {
            Some("config") if check => Ok(Self::Check(options)),
            _ if check => Err("--check belongs to the command config".into()),
            Some("run") => Ok(Self::Run(options)),
            Some("health") => Ok(Self::Health(options)),
            Some("config") => Ok(Self::Config(options)),
            Some("demo") if options.names_an_espocrm() => Err("the demo has no EspoCRM and no \
                configuration: it takes --listen, --zeromq, limits and times only"
                .into()),
            Some("demo") => Ok(Self::Demo(options.flags)),
            Some("help") => Ok(Self::Help),
            Some(name) => {
                let meant = did_you_mean(name, COMMANDS);
                let end =
                    if meant.is_empty() { ": a directory is written with a slash" } else { "" };
                Err(format!("there is no command {name}{meant}{end}").into())
            }
            None if dir.is_some() => Ok(Self::Run(options)),
            None => Err("a command is missing, such as run, status or setup".into()),
        }
    }

    /// Does what was asked for.
    ///
    /// # Errors
    /// Why it could not be done.
    pub fn execute(self) -> exit::Result<()> {
        sys::forbid_core_dumps();
        if !matches!(self, Self::Run(_)) {
            // That command has its log perhaps in a file.
            logging::start(None)?;
        }
        match self {
            Self::Run(options) => run::serve(options.layers()),
            Self::Health(options) => health::check(options.layers()?),
            Self::Check(options) => run::check(options.layers()?),
            Self::Config(options) => run::show(options.layers()?),
            Self::Doctor(doctor) => doctor.run(),
            Self::Demo(flags) => demo::serve(&flags),
            Self::Setup(setup) => setup.run(),
            Self::Adopt(adopt) => adopt.run(),
            Self::Ctl(ctl) => ctl.run(),
            Self::Help => print(HELP),
            Self::Version => print(concat!("espocrm-websocket ", env!("CARGO_PKG_VERSION"), "\n")),
        }
    }
}

/// EspoCRM's, without a flag.
fn is_directory(argument: &OsStr) -> bool {
    argument.to_string_lossy().contains('/') || argument == "."
}

/// Every option, without its dashes.
fn flags() -> impl Iterator<Item = &'static str> {
    let words = HELP.split(|c: char| !c.is_ascii_lowercase() && c != '-');
    words.filter_map(|word| word.strip_prefix("--"))
}

fn print(text: &str) -> exit::Result<()> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|error| Exit::error(format!("Standard output cannot be written: {error}.")))
}

impl Options {
    fn layers(self) -> exit::Result<Layers> {
        Ok(Layers::new(self.flags, self.config)?.run_as(self.run_as, service_user))
    }

    fn names_an_espocrm(&self) -> bool {
        let Overrides { espocrm, php, log_file, .. } = &self.flags;
        [&self.config, espocrm, php, log_file].into_iter().any(Option::is_some)
            || self.run_as != RunAs::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::client::Target;
    use crate::admin::ctl::What;
    use crate::engine::protocol::control::List;

    fn command(line: &str) -> Result<Command, String> {
        let arguments = line.split_whitespace().map(OsString::from);
        Command::parse(arguments).map_err(|error| error.to_string())
    }

    fn at(dir: &str) -> Options {
        Options {
            flags: Overrides { espocrm: Some(dir.into()), ..Overrides::default() },
            ..Options::default()
        }
    }

    #[test]
    fn a_directory_alone_is_run() {
        assert_eq!(command("/var/www/html"), Ok(Command::Run(at("/var/www/html"))));
        assert_eq!(command("run --espocrm=/var/www/html"), Ok(Command::Run(at("/var/www/html"))));
        assert_eq!(command("--espocrm ./x run"), Ok(Command::Run(at("./x"))));
        assert_eq!(command("."), Ok(Command::Run(at("."))));
        assert_eq!(command("run /var/www/html"), Ok(Command::Run(at("/var/www/html"))));
        assert_eq!(command("config ./x"), Ok(Command::Config(at("./x"))));
    }

    #[test]
    fn every_flag_is_a_setting() {
        let line = "config --config c.toml --espocrm /e --php p --listen [::1]:1 --zeromq tcp://x \
                    --max-connections 7 --max-per-address 5 --max-per-user 0 \
                    --trusted-proxy 10.0.0.0/8 --trusted-proxy ::1 --proxy-protocol \
                    --origin same-site --origin https://a.example --max-buffered 16MiB --max-checks 8 --check-timeout 9s --recheck-interval 0 \
                    --ping-interval 10s --check-cache 1s --no-worker --debug --log-file l --control off --metrics 127.0.0.1:1";
        let Ok(Command::Config(options)) = command(line) else { panic!() };
        assert_eq!(options.config, Some("c.toml".into()));
        let file = "espocrm = '/e'\nphp = 'p'\nlisten = '[::1]:1'\nzeromq = 'tcp://x'\n\
                    max_connections = 7\nmax_per_address = 5\nmax_per_user = 0\n\
                    trusted_proxies = ['10.0.0.0/8', '::1']\nproxy_protocol = true\n\
                    origins = ['same-site', 'https://a.example']\nmax_buffered = '16MiB'\nmax_checks = 8\ncheck_timeout = 9\nrecheck_interval = 0\n\
                    ping_interval = 10\ncheck_cache = 1\nworker = false\ndebug = true\nlog_file = 'l'\n\
                    control = 'off'\nmetrics = '127.0.0.1:1'";
        assert_eq!(Overrides::from_toml(file), Ok(options.flags));
    }

    #[test]
    fn the_user_of_php_is_named_by_flags() {
        let run_as = RunAs { user: Some("web".to_owned()), allow_root: true, ..RunAs::default() };
        let options = Options { run_as: run_as.clone(), ..at("/e") };
        assert_eq!(command("health /e --user web --allow-root"), Ok(Command::Health(options)));
        let Ok(Command::Doctor(doctor)) = command("doctor --user web --allow-root") else {
            panic!()
        };
        assert_eq!(doctor.run_as, run_as);
        assert!(command("demo --user web").is_err() && command("setup --allow-root").is_err());
    }

    #[test]
    fn setup_and_adopt_have_flags_of_their_own() {
        let Ok(Command::Setup(setup)) =
            command("setup --espocrm /e --name n --user web --at-install --root /image")
        else {
            panic!()
        };
        let expected = Setup {
            espocrm: Some("/e".into()),
            name: Some("n".to_owned()),
            user: Some("web".to_owned()),
            at_install: true,
            root: Some("/image".into()),
        };
        assert_eq!(setup, expected);
        let setup = Setup { at_install: false, ..expected };
        let expected = Adopt { unit: Some("crm.service".to_owned()), setup, undo: true };
        let line = "adopt --undo crm --name n --user web --espocrm /e --root /image";
        assert_eq!(command(line), Ok(Command::Adopt(expected)));
        assert_eq!(command("setup -h"), Ok(Command::Help));
        assert_eq!(command("adopt --help"), Ok(Command::Help));
        for line in ["setup x", "setup --undo", "adopt a b", "adopt --at-install", "--debug setup"]
        {
            assert!(command(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_running_daemon_is_asked_by_commands_of_their_own() {
        let asked = |line: &str| match command(line) {
            Ok(Command::Ctl(ctl)) => ctl,
            other => panic!("{line}: {other:?}"),
        };
        let target = Target {
            name: Some("n".to_owned()),
            control: Some("/c".into()),
            config: Some("/f".into()),
        };
        assert_eq!(
            asked("status --name n --watch --control /c --config /f --json"),
            Ctl { target, what: What::Status { watch: true }, json: true }
        );
        let what = |line: &str| asked(line).what;
        assert_eq!(what("status"), What::Status { watch: false });
        assert_eq!(what("status topics"), What::List(List::Topics));
        assert_eq!(what("tail"), What::Tail);
        assert_eq!(what("kick u"), What::Kick("u".to_owned()));
        let [topic, user, message] = ["t", "u", "{}"].map(str::to_owned);
        assert_eq!(what("send t {} --user u"), What::Send { topic, user: Some(user), message });
        assert_eq!(command("status --help"), Ok(Command::Help));
        for line in [
            "status nobody",
            "status users --watch",
            "status users topics",
            "status --user u",
            "kick",
            "kick a b",
            "kick a --json",
            "send",
            "send a b c",
            "tail x",
            "tail --watch",
        ] {
            assert!(command(line).is_err(), "{line}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for (line, mistake) in [
            ("", "a command is missing"),
            ("serve", "there is no command serve: a directory"),
            ("satus", "there is no command satus; did you mean status?"),
            ("run extra", "extra"),
            ("setup \"it's\"", "unexpected argument \"\"it's\"\""),
            ("run --port 1", "there is no option --port here"),
            (
                "run --max-conections 1",
                "no option --max-conections here; did you mean --max-connections?",
            ),
            ("setup --espcrm /x", "did you mean --espocrm?"),
            ("status --wach", "did you mean --watch?"),
            ("/a --espocrm /b", "named twice"),
            ("run /a /b", "/b"),
            ("demo --espocrm /a", "the demo has no EspoCRM"),
            ("demo /a", "the demo has no EspoCRM"),
            ("demo --log-file l", "the demo has no EspoCRM"),
            ("run --max-checks 0", "at least 1"),
            ("run --max-checks x", "x"),
            ("run --listen localhost", "no address"),
            ("run --ping-interval 0", "a length of time"),
            ("run --ping-interval soon", "a length of time"),
            ("run --trusted-proxy proxy", "proxy"),
            ("run --origin *", "expected an origin"),
            ("run --php", "missing argument"),
        ] {
            let error = command(line).unwrap_err();
            assert!(error.contains(mistake), "{line}: {error}");
        }
    }

    #[test]
    fn help_tells_every_flag() {
        assert_eq!(command("run --help"), Ok(Command::Help));
        assert_eq!(command("-V"), Ok(Command::Version));
        let flags = [
            "espocrm",
            "config",
            "php",
            "proxy-protocol",
            "no-worker",
            "debug",
            "user",
            "allow-root",
            "name",
            "at-install",
            "root",
            "undo",
            "watch",
            "json",
        ];
        for flag in flags.into_iter().chain(VALUES) {
            assert!(HELP.contains(&format!("--{flag}")));
        }
    }
}
