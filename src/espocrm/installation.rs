//! Where an EspoCRM is, and how its PHP is run.

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

/// An EspoCRM's root directory, the PHP that runs its commands, and the user as whom it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    root: PathBuf,
    php: PathBuf,
    identity: Identity,
}

/// How long EspoCRM may take to tell its settings. It needs 50 to 160 ms.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

const PROBE: &str = include_str!("php/probe.php");

/// What a worker is started with, whatever `php.ini` says. The first six make PHP's web server what
/// the command line is of itself; the others make each change be seen by the next check, and save
/// memory.
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
    /// The EspoCRM in `root`, run by `php`: a path, or a name to be found in `PATH`. Its user is
    /// determined here and does not change.
    ///
    /// # Errors
    /// If there is no EspoCRM, if it cannot be read, or if its user is not certain.
    pub fn new(root: &Path, php: &Path, run_as: &RunAs) -> Result<Self> {
        let root = Self::locate(root)?;
        let identity = Identity::of(&root, run_as)?;
        Ok(Self { root, php: php.to_owned(), identity })
    }

    /// The path without symbolic links of the EspoCRM in `root`.
    ///
    /// # Errors
    /// If there is no EspoCRM, or if it cannot be read.
    pub fn locate(root: &Path) -> Result<PathBuf> {
        let root = root.canonicalize().map_err(|error| {
            let root = root.display();
            Exit::error(format!("{root}: {error}. Name EspoCRM's directory by --espocrm DIR."))
        })?;
        for file in ["bootstrap.php", "command.php"] {
            regular_file::open(&root.join(file))
                .map_err(|error| no_espocrm(&root, file, &error))?;
        }
        if !root.join("data").is_dir() {
            let root = root.display();
            return Err(Exit::error(format!(
                "{root} has no directory data: EspoCRM is not installed there. Name its directory \
                 by --espocrm DIR."
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

    /// The PHP that is run.
    #[must_use]
    pub fn php(&self) -> &Path {
        &self.php
    }

    /// The user as whom PHP runs.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The command line by which an administrator, as root, runs `command.php` with these words.
    #[must_use]
    pub fn by_hand(&self, words: &str) -> String {
        let php = shell_word(&self.php.to_string_lossy());
        self.identity.by_hand(&self.root, &format!("{php} command.php {words}"))
    }

    /// The command that answers an access check.
    #[must_use]
    pub fn check(&self, check: &Check) -> Command {
        let mut command = self.command();
        command.arg("command.php").args(check.arguments.iter().map(|word| &**word));
        command.stdin(Stdio::null());
        command
    }

    /// The command that runs a worker, which answers only these console commands. Where it listens
    /// it says on its error output.
    #[must_use]
    pub fn worker(&self, router: &Router, commands: &str) -> Command {
        let mut command = self.command();
        // Not a line for each request.
        command.arg("-q");
        for option in WORKER_OPTIONS {
            command.args(["-d", option]);
        }
        let mut blacklist = OsString::from("opcache.blacklist_filename=");
        blacklist.push(router.blacklist());
        command.arg("-d").arg(blacklist);
        command.args(["-S", "127.0.0.1:0"]).arg(router.script());
        command.env("ESPOCRM_WEBSOCKET_COMMANDS", commands);
        // It would fork, and its children would outlive it.
        command.env_remove("PHP_CLI_SERVER_WORKERS");
        command
    }

    /// The command that tells EspoCRM's settings, for [`read_probe`](Self::read_probe).
    ///
    /// # Errors
    /// If the script cannot be handed over.
    pub fn probe(&self) -> io::Result<Command> {
        self.script(PROBE)
    }

    /// The command that runs a script of ours.
    ///
    /// # Errors
    /// If the script cannot be handed over.
    pub fn script(&self, text: &str) -> io::Result<Command> {
        let mut command = self.command();
        command.stdin(sys::memory_file(text.as_bytes())?);
        Ok(command)
    }

    /// Understands what the probe has printed.
    ///
    /// # Errors
    /// If EspoCRM could not tell its settings: why, as far as PHP says.
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
        let complaint = finished.complaint();
        let what = match &finished.exit {
            Err(Failure::TimedOut) => {
                format!("did not tell its settings within {} s", PROBE_TIMEOUT.as_secs())
            }
            Err(failure) => format!("could not be asked for its settings: {failure}"),
            Ok(ProcessExit::Signal(signal)) => {
                format!("could not be asked: PHP died of signal {signal}")
            }
            Ok(ProcessExit::Status(status)) => {
                format!("could not tell its settings: PHP ended with status {status}")
            }
        };
        let said = if complaint.is_empty() {
            ", without a word".to_owned()
        } else {
            format!(" and said: {complaint}")
        };
        Err(Exit::error(format!(
            "EspoCRM in {root} {what}{said}. See {root}/data/logs, and try as root: {}",
            self.by_hand("AuthTokenCheck x y")
        )))
    }

    /// Asks EspoCRM for its settings and waits for the answer, unless it is to `stop`.
    ///
    /// # Errors
    /// If PHP cannot be started or EspoCRM does not answer; [`Exit::Stopped`].
    pub fn ask(&self, stop: impl FnMut() -> bool) -> Result<EspoSettings> {
        let finished = self.probe().and_then(|command| Children::run(command, PROBE_TIMEOUT, stop));
        let finished = finished.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => Exit::Stopped,
            _ => self.no_php(&error),
        })?;
        self.read_probe(&finished)
    }

    /// PHP could not be started.
    #[must_use]
    pub fn no_php(&self, error: &io::Error) -> Exit {
        Exit::error(format!(
            "PHP could not be started as {} in {}: {error}. Install PHP's command line \
             (php-cli), or name it by --php PATH.",
            self.php.display(),
            self.root.display()
        ))
    }

    /// PHP is a CGI binary or the like, which ends with status 0 whatever EspoCRM answers.
    fn wrong_sapi(&self, sapi: &str) -> Exit {
        Exit::error(format!(
            "{} is not PHP's command line but its interface {sapi} (PHP_SAPI), with which EspoCRM \
             checks no access. Install PHP's command line (package php-cli), and set its path as \
             phpExecutablePath in EspoCRM's configuration or by --php PATH.",
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
            "{root} holds no {file}: it is not EspoCRM's root. Name that directory by --espocrm \
             DIR; usual ones are /var/www/html and /var/www/espocrm."
        ),
        io::ErrorKind::PermissionDenied => format!(
            "{root}/{file} may not be read by this user. Run espocrm-websocket as the owner of \
             {root}/data, usually www-data, apache or nginx."
        ),
        _ => format!("{root}/{file} cannot be read: {error}."),
    })
}
