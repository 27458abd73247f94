//! The site user, who runs EspoCRM's PHP.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Uid, User, getgrouplist};

use super::ownership::{self, Ambiguity};
use crate::engine::printable::Printable;
use crate::platform::exit::{Exit, Result};
use crate::platform::file_permissions::with_permissions_of;
use crate::platform::shell_word::shell_word;
use crate::platform::sys;

/// The administrator's options for the site user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunAs {
    /// `--user`: a name or a number.
    pub user: Option<String>,
    /// The user of the systemd service that has this configuration.
    pub service_user: Option<String>,
    /// `--allow-root`: PHP may run as root where EspoCRM belongs to root.
    pub allow_root: bool,
}

/// The user who runs EspoCRM's PHP. Determined once and used for all processes, so that later
/// changes of EspoCRM's directories have no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The user of this process; root only if the administrator allows that.
    Current {
        /// The name, or the number if there is none.
        name: String,
    },
    /// Another user: this process is root.
    Other(Account),
}

/// A user other than root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    name: String,
    uid: u32,
    /// Never 0.
    gid: u32,
    /// Supplementary groups, never 0.
    groups: Vec<u32>,
    home: PathBuf,
}

/// The variables of root's environment that are passed to PHP.
///
/// `PHPRC` and `PHP_INI_SCAN_DIR` name php.ini and further configuration: container images set them
/// to enable extensions. Handwritten configuration files of EspoCRM for containers
/// (`config-override.php`) read `ESPOCRM_…`.
const KEPT: [&str; 9] = [
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "PHPRC",
    "PHP_INI_SCAN_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];
const KEPT_PREFIXES: [&str; 2] = ["LC_", "ESPOCRM_"];

/// The default if this process has no `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables that the service manager sets for this process only.
const NOT_INHERITED: [&str; 8] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "MAINPID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "JOURNAL_STREAM",
];

impl Identity {
    /// Determines the site user of the EspoCRM in `root`, a path without symbolic links.
    ///
    /// # Errors
    /// If it would be root, or cannot be determined in a way that no other user can influence.
    pub fn of(root: &Path, run_as: &RunAs) -> Result<Self> {
        let current = sys::user();
        if current != 0 {
            return match &run_as.user {
                Some(name) if uid(name)? != current => Err(Exit::error(format!(
                    "PHP cannot run as {}: only root can choose another user, and this process \
                     runs as {}. Run espocrm-websocket as root, or omit --user.",
                    name_of(uid(name)?),
                    name_of(current)
                ))),
                _ => Ok(Self::Current { name: name_of(current) }),
            };
        }
        let named = run_as.user.as_ref().or(run_as.service_user.as_ref());
        let found = match named {
            Some(name) => match uid(name)? {
                0 => Err(Ambiguity::Root),
                uid => Ok(uid),
            },
            None => ownership::owner(root, primary_group),
        };
        match found {
            Ok(uid) => Account::of(uid).map(Self::Other),
            Err(Ambiguity::Root) if run_as.allow_root => Ok(Self::Current { name: name_of(0) }),
            Err(why) => Err(no_site_user(root, why, named)),
        }
    }

    /// The user's name, or the number if there is none.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Current { name } => name,
            Self::Other(account) => &account.name,
        }
    }

    /// Whether PHP runs as root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        matches!(self, Self::Current { .. }) && sys::is_root()
    }

    /// Whether the user owns this file or directory.
    #[must_use]
    pub fn owns(&self, path: &Path) -> bool {
        let uid = match self {
            Self::Current { .. } => sys::user(),
            Self::Other(account) => account.uid,
        };
        path.metadata().is_ok_and(|metadata| metadata.uid() == uid)
    }

    /// The name or number of the user who owns this file or directory.
    #[must_use]
    pub fn owner_of(path: &Path) -> Option<String> {
        path.metadata().ok().map(|metadata| name_of(metadata.uid()))
    }

    /// Runs `action` with the file permissions of this user: files named by a site must not be read
    /// with the permissions of root.
    ///
    /// # Errors
    /// If the permissions cannot be changed.
    pub fn with_permissions<T>(&self, action: impl FnOnce() -> T) -> io::Result<T> {
        match self {
            Self::Current { .. } => Ok(action()),
            Self::Other(Account { uid, gid, groups, .. }) => {
                with_permissions_of(*uid, *gid, groups, action)
            }
        }
    }

    /// Makes a command run as this user, with the user's groups and only those variables of root's
    /// environment that PHP needs. Variables that the caller sets later are kept.
    pub fn apply(&self, command: &mut Command) {
        match self {
            Self::Current { .. } => {
                for name in NOT_INHERITED {
                    command.env_remove(name);
                }
            }
            Self::Other(account) => {
                command.env_clear().env("PATH", PATH).envs(kept_environment(std::env::vars_os()));
                command.env("HOME", &account.home);
                command.env("USER", &account.name).env("LOGNAME", &account.name);
                sys::run_as(command, account.uid, account.gid, &account.groups);
            }
        }
    }

    /// The shell command for root to run `command`, quoted for a shell, as this user in `dir`.
    #[must_use]
    pub fn manual_command(&self, dir: &Path, command: &str) -> String {
        let dir = shell_word(&dir.to_string_lossy());
        if self.is_root() {
            return format!("cd {dir} && {command}");
        }
        format!("cd {dir} && runuser -u {} -- {command}", shell_word(self.name()))
    }
}

impl Account {
    fn of(uid: u32) -> Result<Self> {
        let user = User::from_uid(Uid::from_raw(uid)).map_err(|error| {
            // Avoids linking nix's own table of error messages.
            let error = io::Error::from(error);
            Exit::error(format!(
                "Cannot look up user {uid}: {error}. Specify the user: --user NAME"
            ))
        })?;
        let Some(user) = user else {
            // Such as in a container whose volumes belong to a user of the host. The group is not
            // the directory's, since the owner could choose that.
            let home = PathBuf::from("/");
            return Ok(Self { name: uid.to_string(), uid, gid: uid, groups: Vec::new(), home });
        };
        let gid = if user.gid.as_raw() == 0 { uid } else { user.gid.as_raw() };
        let name = CString::new(user.name.as_str()).unwrap_or_default();
        let groups = getgrouplist(&name, Gid::from_raw(gid)).unwrap_or_default();
        let groups = groups.into_iter().map(Gid::as_raw).filter(|group| *group != 0).collect();
        Ok(Self { name: user.name, uid, gid, groups, home: user.dir })
    }
}

fn primary_group(uid: u32) -> Option<u32> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.gid.as_raw())
}

/// The number of a user, from a name or a number.
fn uid(user: &str) -> Result<u32> {
    let error = match User::from_name(user) {
        Ok(Some(user)) => return Ok(user.uid.as_raw()),
        Ok(None) => match user.parse() {
            Ok(uid) => return Ok(uid),
            Err(_) => "no such user".to_owned(),
        },
        Err(error) => io::Error::from(error).to_string(),
    };
    Err(Exit::error(format!(
        "PHP cannot run as user \"{}\": {error}. Specify the owner of EspoCRM's data directory: \
         --user NAME",
        Printable(user)
    )))
}

/// The name of a user, or the number if there is none.
#[must_use]
pub fn name_of(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

fn no_site_user(root: &Path, why: Ambiguity, named: Option<&String>) -> Exit {
    let shown = root.display();
    if let Some(name) = named {
        return Exit::error(format!(
            "espocrm-websocket does not run the PHP of {shown} as {}, which is root. Specify the \
             web server's user: --user NAME (www-data, apache or nginx). Only in a container \
             without another user: --allow-root",
            Printable(name)
        ));
    }
    let data = format!("{shown}/data");
    let fix = match why {
        Ambiguity::Root => format!(
            "Change the owner of EspoCRM to the web server's user (chown -R www-data: {}), or \
             specify the user: --user NAME. Only in a container without another user: --allow-root",
            shell_word(&root.to_string_lossy())
        ),
        _ => "Specify the user: --user NAME (usually www-data, apache or nginx).".to_owned(),
    };
    Exit::error(format!(
        "espocrm-websocket does not run PHP as root, and cannot safely determine the site's user: \
         {data} {why}. {fix}"
    ))
}

fn kept_environment(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    all.filter(|(name, _)| is_kept(name))
}

fn is_kept(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_that_php_needs_are_passed_on_from_root() {
        for name in ["PATH", "LC_ALL", "TZ", "PHP_INI_SCAN_DIR", "ESPOCRM_DATABASE_HOST"] {
            assert!(is_kept(OsStr::new(name)), "{name}");
        }
        for name in
            ["HOME", "SSH_AUTH_SOCK", "SUDO_COMMAND", "LD_PRELOAD", "NOTIFY_SOCKET", "PATHS"]
        {
            assert!(!is_kept(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(uid("root"), Ok(0));
        assert_eq!(uid("4711"), Ok(4711));
        let error = uid("no such user").unwrap_err().to_string();
        assert!(error.contains("no such user") && error.contains("--user NAME"), "{error}");
        assert!(uid("-1").is_err() && uid("").is_err() && uid("a\0b").is_err());
    }

    #[test]
    fn an_account_never_has_the_group_of_root() {
        for uid in [1, 33, 4711, 65_534] {
            let account = Account::of(uid).unwrap();
            assert_ne!(account.gid, 0, "{account:?}");
            assert!(!account.groups.contains(&0), "{account:?}");
        }
        let unknown = Account::of(4_711_000).unwrap();
        assert_eq!((unknown.gid, unknown.name.as_str()), (4_711_000, "4711000"));
    }

    #[test]
    fn the_manual_command_is_quoted() {
        let account = Account {
            name: "web".to_owned(),
            uid: 33,
            gid: 33,
            groups: Vec::new(),
            home: PathBuf::from("/"),
        };
        let line =
            Identity::Other(account).manual_command(Path::new("/srv/it's; reboot"), "php x.php");
        assert_eq!(line, r"cd '/srv/it'\''s; reboot' && runuser -u web -- php x.php");
    }

    #[test]
    fn only_root_can_choose_a_user() {
        let here = std::env::temp_dir();
        let other = if sys::user() == 65_534 { "1" } else { "65534" };
        let run_as = RunAs { user: Some(other.to_owned()), ..RunAs::default() };
        let identity = Identity::of(&here, &run_as);
        if !sys::is_root() {
            assert!(identity.unwrap_err().to_string().contains("only root can choose"));
            return;
        }
        assert!(matches!(identity, Ok(Identity::Other(account)) if account.uid == 65_534));
        for (user, allow_root) in [("root", false), ("0", false)] {
            let run_as = RunAs { user: Some(user.to_owned()), allow_root, ..RunAs::default() };
            let error = Identity::of(&here, &run_as).unwrap_err().to_string();
            assert!(error.contains("--allow-root"), "{error}");
        }
        let run_as = RunAs { user: Some("root".to_owned()), allow_root: true, ..RunAs::default() };
        assert!(Identity::of(&here, &run_as).unwrap().is_root());
    }
}
