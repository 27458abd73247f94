//! The command line.

pub mod commands;
mod help;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::PathBuf;

use lexopt::prelude::{Long, Short, Value, ValueExt};

use commands::{COMMANDS, Info};

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
use crate::settings::definitions::SETTINGS;
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
    Demo(Options),
    /// Make it a service of this machine.
    Setup(Setup),
    /// Take the place of an administrator's own unit.
    Adopt(Adopt),
    /// Ask or order a daemon that runs.
    Ctl(Ctl),
    /// Show the help of the program, or of the command of this name.
    Help(Option<&'static str>),
    /// Print the version.
    Version,
}

/// The parsed flags.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Settings that win over those of the file.
    pub flags: Overrides,
    /// As whom PHP runs.
    pub run_as: RunAs,
    /// Print the addresses of the daemon.
    pub print_addresses: bool,
}

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
        let help = |command: &str| Self::Help(info(command).map(|info| info.name));
        let mut begins_with = |name: &str| {
            let first = parser.try_raw_args();
            first.and_then(|mut first| first.next_if(|word| word == name)).is_some()
        };
        if begins_with("help") {
            return Self::help_of(&mut parser);
        }
        if begins_with("setup") {
            return Ok(Setup::parse(&mut parser)?.map_or_else(|| help("setup"), Self::Setup));
        }
        if begins_with("doctor") {
            return Ok(Doctor::parse(&mut parser)?.map_or_else(|| help("doctor"), Self::Doctor));
        }
        if begins_with("adopt") {
            return Ok(Adopt::parse(&mut parser)?.map_or_else(|| help("adopt"), Self::Adopt));
        }
        if let Some(command) = ctl::COMMANDS.into_iter().find(|name| begins_with(name)) {
            return Ok(Ctl::parse(command, &mut parser)?.map_or_else(|| help(command), Self::Ctl));
        }
        let (mut name, mut dir) = (None::<OsString>, None);
        let mut check = false;
        let mut options = Options::default();
        let flags = &mut options.flags;
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => {
                    return Ok(help(&name.unwrap_or_default().to_string_lossy()));
                }
                Long("version") | Short('V') => return Ok(Self::Version),
                Long("config") => options.config = Some(parser.value()?.into()),
                Long("user") => options.run_as.user = Some(parser.value()?.string()?),
                Long("allow-root") => options.run_as.allow_root = true,
                Long("check") => check = true,
                Long("print-addresses") => options.print_addresses = true,
                Long(flag) => {
                    let Some(setting) = SETTINGS.iter().find(|setting| setting.flag == flag) else {
                        return Err(argument.unexpected());
                    };
                    let text = match setting.value {
                        "" if flag.starts_with("no-") => "false".to_owned(),
                        "" => "true".to_owned(),
                        _ => parser.value()?.string()?,
                    };
                    flags.set(setting.name, &text)?;
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
            return Err(
                "EspoCRM's directory is given twice: with --espocrm and as an argument".into()
            );
        }
        match name.as_deref().map(OsStr::to_string_lossy).as_deref() {
            Some("config") if check => Ok(Self::Check(options)),
            _ if check => Err("--check can only be used with the command config".into()),
            Some("config" | "health") if options.print_addresses => {
                Err("--print-addresses can only be used with the commands run and demo".into())
            }
            Some("run") => Ok(Self::Run(options)),
            Some("health") => Ok(Self::Health(options)),
            Some("config") => Ok(Self::Config(options)),
            Some("demo") if options.names_an_espocrm() => Err("the demo has no EspoCRM and no \
                configuration: it takes --listen, --zeromq, limits and times only"
                .into()),
            Some("demo") => Ok(Self::Demo(options)),
            Some(name) => {
                let meant = did_you_mean(name, COMMANDS.iter().map(|info| info.name));
                let end = if meant.is_empty() {
                    "; to specify a directory, include a slash, as in ./DIR"
                } else {
                    ""
                };
                Err(format!("there is no command {name}{meant}{end}").into())
            }
            None if dir.is_some() => Ok(Self::Run(options)),
            None => Err("no command given; use a command such as run, status or setup".into()),
        }
    }

    fn help_of(parser: &mut lexopt::Parser) -> Result<Self, lexopt::Error> {
        let mut command = None;
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => {}
                Value(name) if command.is_none() => {
                    let name = name.string()?;
                    let known = info(&name).ok_or_else(|| {
                        let meant = did_you_mean(&name, COMMANDS.iter().map(|info| info.name));
                        format!("there is no command {name}{meant}")
                    })?;
                    command = Some(known.name);
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(Self::Help(command))
    }

    /// Executes the command.
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
            Self::Run(options) => {
                let print_addresses = options.print_addresses;
                run::serve(options.layers(), print_addresses)
            }
            Self::Health(options) => health::check(options.layers()?),
            Self::Check(options) => run::check(options.layers()?),
            Self::Config(options) => run::show(options.layers()?),
            Self::Doctor(doctor) => doctor.run(),
            Self::Demo(options) => demo::serve(&options.flags, options.print_addresses),
            Self::Setup(setup) => setup.run(),
            Self::Adopt(adopt) => adopt.run(),
            Self::Ctl(ctl) => ctl.run(),
            Self::Help(command) => print(&match command.and_then(info) {
                None => help::program(),
                Some(info) => help::command(info),
            }),
            Self::Version => print(concat!("espocrm-websocket ", env!("CARGO_PKG_VERSION"), "\n")),
        }
    }
}

/// EspoCRM's, without a flag.
fn is_directory(argument: &OsStr) -> bool {
    argument.to_string_lossy().contains('/') || argument == "."
}

/// The definition of a command.
fn info(name: &str) -> Option<&'static Info> {
    COMMANDS.iter().find(|info| info.name == name)
}

/// Every option, without dashes.
fn flags() -> impl Iterator<Item = &'static str> {
    let of_commands = COMMANDS.iter().flat_map(|info| info.options).map(|flag| flag.name);
    of_commands.chain(SETTINGS.iter().map(|setting| setting.flag)).chain(["help", "version"])
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
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::admin::client::Target;
    use crate::admin::ctl::{self, Site};
    use crate::engine::protocol::control::List;
    use crate::settings::definitions::{DOCUMENTATION, Setting};

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
    fn a_flag_sets_what_the_file_sets() {
        for (Setting { name, flag, value, .. }, docs) in SETTINGS.iter().zip(DOCUMENTATION) {
            let items: Vec<_> = docs.value.split(['[', ']', ',', ' ', '"']).collect();
            let items = items.iter().filter(|item| !item.is_empty());
            let (line, set) = if value.is_empty() {
                (format!("config --{flag}"), format!("{}", !flag.starts_with("no-")))
            } else {
                let flags = items.map(|item| format!(" --{flag} {item}"));
                (format!("config{}", flags.collect::<String>()), docs.value.to_owned())
            };
            let Ok(Command::Config(options)) = command(&line) else { panic!("{line}") };
            assert_eq!(Overrides::from_toml(&format!("{name} = {set}")), Ok(options.flags));
        }
        let Ok(Command::Config(options)) = command("config --config c.toml") else { panic!() };
        assert_eq!(options.config, Some("c.toml".into()));
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
        let watch = ctl::Command::Status { watch: true };
        assert_eq!(
            asked("status --name n --watch --control /c --config /f --json"),
            Ctl { target, command: watch, json: true, site: Site::default() }
        );
        let command_of = |line: &str| asked(line).command;
        assert_eq!(command_of("status"), ctl::Command::Status { watch: false });
        assert_eq!(command_of("status topics"), ctl::Command::List(List::Topics));
        assert_eq!(command_of("tail"), ctl::Command::Tail);
        assert_eq!(command_of("kick u"), ctl::Command::Kick("u".to_owned()));
        let run_as = RunAs { user: Some("w".to_owned()), allow_root: true, ..RunAs::default() };
        let site = Site { espocrm: Some("/e".into()), php: Some("p".into()), run_as };
        let names = "--espocrm /e --php p --user w --allow-root";
        assert_eq!(asked(&format!("kick u {names}")).site, site);
        assert_eq!(asked(&format!("status users {names}")).site, site);
        let [topic, user, message] = ["t", "u", "{}"].map(str::to_owned);
        let send = ctl::Command::Send { topic, user: Some(user), message };
        assert_eq!(command_of("send t {} --user u"), send);
        for line in [
            "status everyone",
            "status users --watch",
            "status users topics",
            "status --user u",
            "status topics --php p",
            "tail --espocrm /e",
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
            ("", "no command given"),
            ("serve", "there is no command serve; to specify a directory"),
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
            ("/a --espocrm /b", "given twice"),
            ("run /a /b", "/b"),
            ("demo --espocrm /a", "the demo has no EspoCRM"),
            ("demo /a", "the demo has no EspoCRM"),
            ("demo --log-file l", "the demo has no EspoCRM"),
            ("config --print-addresses", "used with the commands run and demo"),
            ("run --max-checks 0", "at least 1"),
            ("run --max-checks x", "x"),
            ("run --listen localhost", "an IP address"),
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
    fn help_is_that_of_the_command() {
        assert_eq!(command("-V"), Ok(Command::Version));
        for line in ["--help", "-h", "help", "help --help"] {
            assert_eq!(command(line), Ok(Command::Help(None)), "{line}");
        }
        for Info { name, .. } in COMMANDS {
            let help = Ok(Command::Help(Some(name).copied()));
            for line in [format!("help {name}"), format!("{name} --help"), format!("{name} -h")] {
                let is_help = *name == "help" && line != "help help";
                assert!(command(&line) == help || is_help, "{line}");
            }
        }
        let error = command("help kik").unwrap_err();
        assert!(error.contains("there is no command kik; did you mean kick?"), "{error}");
    }

    #[test]
    fn a_command_accepts_the_options_of_its_definition_and_no_other() {
        let all: BTreeSet<_> = flags().filter(|flag| !["help", "version"].contains(flag)).collect();
        assert!(all.len() > 30, "{all:?}");
        for info in COMMANDS {
            let settings = info.settings.settings().map(|setting| (setting.flag, setting.value));
            let own = info.options.iter().map(|flag| (flag.name, flag.value));
            let defined: BTreeMap<_, _> = own.chain(settings).collect();
            let words = if info.name == "status" { "status users" } else { info.name };
            for flag in &all {
                let refused = |value: &str| {
                    let error = command(&format!("{words} --{flag}{value}")).err();
                    error.filter(|error| {
                        let wrong = ["no option", "the demo has no", "can only be used with"];
                        wrong.iter().any(|wrong| error.contains(wrong))
                            || error.contains("unexpected argument")
                    })
                };
                match defined.get(flag) {
                    None => {
                        let is_refused = refused("").or_else(|| refused("=x")).is_some();
                        assert!(is_refused, "{words} --{flag}");
                    }
                    Some(&"") => {
                        assert_eq!(refused(""), None, "{words}");
                        let error = command(&format!("{words} --{flag}=x")).unwrap_err();
                        assert!(error.contains("unexpected argument for option"), "{error}");
                    }
                    Some(_) => {
                        assert_eq!(refused("=x"), None, "{words}");
                        let error = command(&format!("{words} --{flag}")).unwrap_err();
                        assert!(error.contains("missing argument"), "{words} --{flag}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn help_names_every_option_and_default_and_fits_a_terminal() {
        for info in COMMANDS {
            let help = help::command(info);
            assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
            for flag in info.options {
                assert!(help.contains(&format!("\n  --{} {}", flag.name, flag.value)), "{help}");
            }
            for setting in info.settings.settings() {
                assert!(help.contains(&format!("\n  --{}", setting.flag)), "{help}");
                let words: Vec<_> = help.split_whitespace().collect();
                let default = format!("(default: {})", setting.default);
                let is_named = words.join(" ").contains(&default);
                assert_eq!(is_named, info.has_default(setting), "{default}: {help}");
            }
        }
    }
}
