//! An EspoCRM's directory, and the commands that run its PHP.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{EspoSettings, Identity, Router, RunAs};
use crate::engine::checks::check::Check;
use crate::engine::checks::verdict::{Failure, ProcessExit};
use crate::espocrm::process::{Children, Finished};
use crate::platform::exit::{Exit, Result};
use crate::platform::shell_word::shell_word;
use crate::platform::{regular_file, sys};

/// An EspoCRM's root directory, the PHP that runs its commands, and the user who runs PHP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    root: PathBuf,
    php: PathBuf,
    identity: Identity,
}

/// The timeout of the probe, which takes 50 to 160 ms.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

const PROBE: &str = include_str!("php/probe.php");

/// Settings of a worker that override `php.ini`. The first six have the values that PHP's command
/// line has by default. The others ensure that the next check sees every change, and save memory.
pub const WORKER_OPTIONS: [&str; 32] = [
    "html_errors=0",
    "implicit_flush=1",
    "max_execution_time=0",
    "max_input_time=-1",
    "output_buffering=0",
    "register_argc_argv=0",
    "apc.enabled=0",
    "cli_server.color=0",
    "enable_post_data_reading=0",
    "expose_php=0",
    "output_handler=",
    "zlib.output_compression=0",
    "opcache.enable=1",
    "opcache.enable_file_override=0",
    "opcache.file_cache=",
    "opcache.file_cache_only=0",
    "opcache.file_update_protection=2",
    "opcache.huge_code_pages=0",
    "opcache.interned_strings_buffer=8",
    "opcache.jit=disable",
    "opcache.jit_buffer_size=0",
    "opcache.log_verbosity_level=1",
    "opcache.max_accelerated_files=8000",
    "opcache.max_file_size=0",
    "opcache.memory_consumption=64",
    "opcache.preload=",
    "opcache.record_warnings=1",
    "opcache.restrict_api=",
    "opcache.revalidate_freq=0",
    "opcache.save_comments=1",
    "opcache.use_cwd=1",
    "opcache.validate_timestamps=1",
];

impl Installation {
    /// The EspoCRM in `root`, run by `php`: a path, or a name in `PATH`. The site user is
    /// determined here, once.
    ///
    /// # Errors
    /// If there is no EspoCRM, it is not readable, or the site user is uncertain.
    pub fn new(root: &Path, php: &Path, run_as: &RunAs) -> Result<Self> {
        let root = Self::locate(root)?;
        let identity = Identity::of(&root, run_as)?;
        Ok(Self { root, php: php.to_owned(), identity })
    }

    /// The path of the EspoCRM in `root`, without symbolic links.
    ///
    /// # Errors
    /// If there is no EspoCRM, or it is not readable.
    pub fn locate(root: &Path) -> Result<PathBuf> {
        let root = root.canonicalize().map_err(|error| {
            let root = root.display();
            Exit::error(format!("{root}: {error}. Set EspoCRM's directory with --espocrm DIR."))
        })?;
        for file in ["bootstrap.php", "command.php"] {
            regular_file::open(&root.join(file))
                .map_err(|error| no_espocrm(&root, file, &error))?;
        }
        if !root.join("data").is_dir() {
            let root = root.display();
            return Err(Exit::error(format!(
                "{root} has no data directory: EspoCRM is not installed there. Set its directory \
                 with --espocrm DIR."
            )));
        }
        Ok(root)
    }

    /// The same EspoCRM, run by another PHP.
    #[must_use]
    pub fn with_php(&self, php: &Path) -> Self {
        Self { php: php.to_owned(), ..self.clone() }
    }

    /// EspoCRM's root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The PHP that runs EspoCRM's commands.
    #[must_use]
    pub fn php(&self) -> &Path {
        &self.php
    }

    /// The site user.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The shell command for an administrator, as root, to run `command.php` with these arguments.
    #[must_use]
    pub fn manual_command(&self, arguments: &str) -> String {
        let php = shell_word(&self.php.to_string_lossy());
        self.identity.manual_command(&self.root, &format!("{php} command.php {arguments}"))
    }

    /// The command that answers an access check.
    #[must_use]
    pub fn check(&self, check: &Check) -> Command {
        let mut command = self.command();
        command.arg("command.php").args(check.arguments.iter().map(|word| &**word));
        command.stdin(Stdio::null());
        command
    }

    /// The command that runs a worker for these console commands only. The worker reports its
    /// address on standard error.
    #[must_use]
    pub fn worker(&self, router: &Router, commands: &str) -> Command {
        let mut command = self.command();
        // Do not log each request.
        command.arg("-q");
        for option in WORKER_OPTIONS {
            command.args(["-d", option]);
        }
        let mut blacklist = OsString::from("opcache.blacklist_filename=");
        blacklist.push(router.blacklist());
        command.arg("-d").arg(blacklist);
        command.args(["-S", "127.0.0.1:0"]).arg(router.script());
        command.env("ESPOCRM_WEBSOCKET_COMMANDS", commands);
        // With this variable PHP would fork, and its children would outlive it.
        command.env_remove("PHP_CLI_SERVER_WORKERS");
        command
    }

    /// The command that prints EspoCRM's settings for [`read_probe`](Self::read_probe).
    ///
    /// # Errors
    /// Those of [`script`](Self::script).
    pub fn probe(&self) -> io::Result<Command> {
        self.script(PROBE)
    }

    /// The command that runs a PHP script from memory.
    ///
    /// # Errors
    /// If no file in memory can be created.
    pub fn script(&self, text: &str) -> io::Result<Command> {
        let mut command = self.command();
        command.stdin(sys::memory_file(text.as_bytes())?);
        Ok(command)
    }

    /// Parses the output of the probe.
    ///
    /// # Errors
    /// Why the probe failed, with the first line that PHP printed.
    pub fn read_probe(&self, finished: &Finished) -> Result<EspoSettings> {
        let root = self.root.display();
        if let Some(sapi) = EspoSettings::wrong_sapi(&finished.stdout) {
            return Err(self.wrong_sapi(&sapi));
        }
        if finished.exit == Ok(ProcessExit::Status(0))
            && let Some(espo_settings) = EspoSettings::from_output(&finished.stdout)
        {
            return Ok(espo_settings);
        }
        let line = finished.first_line();
        let why = match &finished.exit {
            Err(Failure::TimedOut) => {
                format!("PHP did not end within {} s", PROBE_TIMEOUT.as_secs())
            }
            Err(failure) => failure.to_string(),
            Ok(ProcessExit::Signal(signal)) => format!("PHP was killed by signal {signal}"),
            Ok(ProcessExit::Status(status)) => format!("PHP ended with status {status}"),
        };
        let output = if line.is_empty() {
            " (no output)".to_owned()
        } else {
            format!(" and printed: {line}")
        };
        Err(Exit::error(format!(
            "Cannot read the settings of the EspoCRM in {root}: {why}{output}. See \
             {root}/data/logs, and try as root: {}",
            self.manual_command("AuthTokenCheck x y")
        )))
    }

    /// Runs the probe and waits for its end or until `stop` returns true.
    ///
    /// # Errors
    /// If PHP cannot be started or the probe fails; [`Exit::Stopped`].
    pub fn read_settings(&self, stop: impl FnMut() -> bool) -> Result<EspoSettings> {
        let finished = self.probe().and_then(|command| Children::run(command, PROBE_TIMEOUT, stop));
        let finished = finished.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => Exit::Stopped,
            _ => self.php_not_started(&error),
        })?;
        self.read_probe(&finished)
    }

    /// The error if PHP could not be started.
    #[must_use]
    pub fn php_not_started(&self, error: &io::Error) -> Exit {
        Exit::error(format!(
            "PHP could not be started as {} in {}: {error}. Install the PHP CLI (package php-cli), \
             or set its path with --php PATH.",
            self.php.display(),
            self.root.display()
        ))
    }

    /// The error if PHP is a CGI binary or the like, which ends with status 0 regardless of
    /// EspoCRM's answer.
    fn wrong_sapi(&self, sapi: &str) -> Exit {
        Exit::error(format!(
            "{} is not the PHP CLI: its PHP_SAPI is {sapi}, with which EspoCRM does not check \
             access. Install the PHP CLI (package php-cli), and set its path as phpExecutablePath in \
             EspoCRM's configuration or with --php PATH.",
            self.php.display()
        ))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.php);
        command.current_dir(&self.root);
        self.identity.apply(&mut command);
        command
    }
}

fn no_espocrm(root: &Path, file: &str, error: &io::Error) -> Exit {
    let root = root.display();
    Exit::error(match error.kind() {
        io::ErrorKind::NotFound => format!(
            "{root} contains no {file}: it is not EspoCRM's root directory. Set that directory \
             with --espocrm DIR; common ones are /var/www/html and /var/www/espocrm."
        ),
        io::ErrorKind::PermissionDenied => format!(
            "{root}/{file} is not readable by this user. Run espocrm-websocket as the owner of \
             {root}/data, usually www-data, apache or nginx."
        ),
        _ => format!("{root}/{file} cannot be read: {error}."),
    })
}

#[cfg(test)]
impl Installation {
    /// One that does not exist, for tests with scripted processes.
    pub(crate) fn scripted() -> Self {
        let identity = Identity::Current { name: String::new() };
        Self { root: PathBuf::new(), php: PathBuf::from("php"), identity }
    }
}
