//! The commands and their options: each is defined here, once, for `--help` and the completions.

use crate::settings::definitions::{SETTINGS, Setting};

/// A command.
#[derive(Debug)]
pub struct Info {
    /// Its name.
    pub name: &'static str,
    /// The arguments that are not options, as the usage line shows them.
    pub arguments: &'static str,
    /// What it does, in a few words.
    pub help: &'static str,
    /// More about it: lines of at most 100 columns, or nothing.
    pub details: &'static str,
    /// The options that are not settings.
    pub options: &'static [Flag],
    /// The settings that it accepts as options.
    pub settings: Accepts,
}

/// An option that is not a setting.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// The placeholder of its value; empty if it has none.
    pub value: &'static str,
    /// What it does, in a few words.
    pub help: &'static str,
}

/// Which settings a command accepts as options, by their flags.
#[derive(Clone, Copy, Debug)]
pub enum Accepts {
    /// These.
    Only(&'static [&'static str]),
    /// All but these.
    AllBut(&'static [&'static str]),
}

impl Accepts {
    /// The settings, in the order of their definition.
    pub fn settings(self) -> impl Iterator<Item = &'static Setting> {
        SETTINGS.iter().filter(move |setting| match self {
            Self::Only(flags) => flags.contains(&setting.flag),
            Self::AllBut(flags) => !flags.contains(&setting.flag),
        })
    }
}

impl Info {
    /// Whether the default of a setting applies to this command.
    #[must_use]
    pub fn has_default(&self, setting: &Setting) -> bool {
        let differs =
            self.name == "demo" && ["listen", "zeromq", "control"].contains(&setting.flag);
        // A switch has no default: it turns on what is off, or off what is on.
        !setting.value.is_empty() && !differs
    }
}

const fn flag(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, value, help }
}

const CONFIG: Flag =
    flag("config", "FILE", "configuration file (default: /etc/espocrm-websocket/config.toml)");
const USER: Flag = flag(
    "user",
    "USER",
    "user who runs EspoCRM's PHP if this command runs as root (default: the owner of EspoCRM's data \
     directory)",
);
const ALLOW_ROOT: Flag = flag(
    "allow-root",
    "",
    "allow PHP to run as root if root owns the data directory; only for containers that have no other user",
);
const PRINT_ADDRESSES: Flag = flag(
    "print-addresses",
    "",
    "print the addresses of both ports as JSON to standard output once they accept connections",
);
const SERVICE_USER: Flag =
    flag("user", "USER", "user of the service (default: the owner of EspoCRM's data directory)");
const NAME: Flag = flag("name", "NAME", "use the service espocrm-websocket@NAME");
const JSON: Flag = flag("json", "", "print JSON");
const ROOT: Flag = flag(
    "root",
    "DIR",
    "change the files below DIR instead of those of this system; start nothing",
);

/// All commands, in the order in which `--help` lists them.
pub const COMMANDS: &[Info] = &[
    Info {
        name: "run",
        arguments: "[DIR]",
        help: "run the daemon for an EspoCRM",
        details: "DIR is EspoCRM's root directory, as with --espocrm. The options take precedence over the\n\
                  configuration file. SIGHUP reloads all settings and reopens the log file; SIGTERM and\n\
                  SIGINT stop the daemon.",
        options: &[CONFIG, USER, ALLOW_ROOT, PRINT_ADDRESSES],
        settings: Accepts::AllBut(&[]),
    },
    Info {
        name: "config",
        arguments: "[DIR]",
        help: "show the effective settings and their sources",
        details: "",
        options: &[
            flag(
                "check",
                "",
                "print only errors; exit with status 1 if the daemon would not start",
            ),
            CONFIG,
            USER,
            ALLOW_ROOT,
        ],
        settings: Accepts::AllBut(&[]),
    },
    Info {
        name: "health",
        arguments: "[DIR]",
        help: "check whether a daemon with these settings accepts connections",
        details: "Opens and closes a WebSocket, for the health checks of containers. The exit status is 1\n\
                  if the daemon does not accept the connection.",
        options: &[CONFIG, USER, ALLOW_ROOT],
        settings: Accepts::AllBut(&[]),
    },
    Info {
        name: "doctor",
        arguments: "",
        help: "check everything between EspoCRM and the browser, and show fixes",
        details: "Run it as root to check everything. The exit status is 1 if a check fails.",
        options: &[
            JSON,
            NAME,
            CONFIG,
            USER,
            ALLOW_ROOT,
            flag("root", "DIR", "read the files of the web server, PHP and systemd below DIR"),
        ],
        settings: Accepts::Only(&["espocrm", "php", "listen", "zeromq", "control"]),
    },
    Info {
        name: "status",
        arguments: "[users|topics|connections]",
        help: "show the state of a running daemon, or list its clients",
        details: "",
        options: &[
            flag("watch", "", "update the screen every second"),
            JSON,
            NAME,
            CONFIG,
            USER,
            ALLOW_ROOT,
        ],
        settings: Accepts::Only(&["control", "espocrm", "php"]),
    },
    Info {
        name: "tail",
        arguments: "",
        help: "print EspoCRM's messages as they are published",
        details: "",
        options: &[JSON, NAME, CONFIG],
        settings: Accepts::Only(&["control"]),
    },
    Info {
        name: "kick",
        arguments: "USER",
        help: "end all connections of a user",
        details: "USER is an id or a user name. Browsers reconnect after 3 s and are checked again.",
        options: &[NAME, CONFIG, USER, ALLOW_ROOT],
        settings: Accepts::Only(&["control", "espocrm", "php"]),
    },
    Info {
        name: "send",
        arguments: "TOPIC [JSON]",
        help: "publish a test message as EspoCRM would",
        details: "JSON is an object whose members are added to the message.",
        options: &[
            flag("user", "USER", "id of the user who receives it (default: all subscribers)"),
            NAME,
            CONFIG,
        ],
        settings: Accepts::Only(&["control"]),
    },
    Info {
        name: "reload",
        arguments: "",
        help: "reload all settings and certificates, and wait until they are applied",
        details: "No client is disconnected. If new settings cannot be applied, the previous ones remain\n\
                  in effect and the exit status is 1.",
        options: &[NAME, CONFIG],
        settings: Accepts::Only(&["control"]),
    },
    Info {
        name: "demo",
        arguments: "",
        help: "try the daemon without EspoCRM or PHP",
        details: "The demo serves this machine only, on port 8080 or another free port. It has no control\n\
                  socket.",
        options: &[PRINT_ADDRESSES],
        settings: Accepts::AllBut(&["espocrm", "php", "log-file"]),
    },
    Info {
        name: "setup",
        arguments: "",
        help: "configure and start the systemd service (as root)",
        details: "Searches this machine for EspoCRM unless --espocrm specifies it.",
        options: &[
            NAME,
            SERVICE_USER,
            flag("at-install", "", "do only what a package's script may do: start nothing"),
            ROOT,
        ],
        settings: Accepts::Only(&["espocrm"]),
    },
    Info {
        name: "adopt",
        arguments: "[UNIT]",
        help: "replace your own systemd unit for websocket.php with this service",
        details: "",
        options: &[flag("undo", "", "restore the replaced unit"), NAME, SERVICE_USER, ROOT],
        settings: Accepts::Only(&["espocrm"]),
    },
    Info {
        name: "help",
        arguments: "[COMMAND]",
        help: "show the commands, or describe one",
        details: "",
        options: &[],
        settings: Accepts::Only(&[]),
    },
];
