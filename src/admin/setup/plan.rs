//! The files that will be written. Everything is decided before the first one is written.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::Setup;
use super::config_file::{self, with_espocrm};
use super::drop_in::{self, DropIn};
use super::files::{Files, failed};
use super::search::{Found, OldUnit, configured, espocrms, fits_unit, old_units};
use super::service::{Service, UNITS};
use super::unit::Unit;
use crate::engine::printable::Printable;
use crate::espocrm::Installation;
use crate::espocrm::ownership;
use crate::espocrm::ownership::Ambiguity;
use crate::platform::exit::{Exit, Result};
use crate::platform::shell_word::shell_word;
use crate::settings::Overrides;

/// The configuration file and the drop-in of a service.
pub(crate) struct Plan {
    pub service: Service,
    /// The EspoCRM that it serves.
    pub dir: String,
    /// The user who runs it.
    pub user: String,
    /// The existing configuration file.
    pub old: Option<String>,
    /// Commands for other `EspoCRMs` that were found and are not served, each on its own line.
    others: String,
    config: String,
    drop_in: String,
}

impl Plan {
    /// Makes the plan. `adopted`: the administrator's unit that will be replaced. Returns `None` if
    /// each EspoCRM is already served by another service.
    ///
    /// # Errors
    /// If the EspoCRM or its user cannot be determined. The message contains what to do.
    pub(crate) fn make(
        files: &Files,
        setup: &Setup,
        adopted: Option<&str>,
    ) -> Result<Option<Self>> {
        let service = Service::new(setup.name.clone())?;
        let path = service.config();
        let shown = path.display();
        let old = match files.read(&path) {
            Ok(text) => Some(String::from_utf8(text).map_err(|_| {
                Exit::error(format!("{shown} is not valid UTF-8. Nothing was changed."))
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&path, "read", &error)),
        };
        let wrong = |error| Exit::error_lines(format!("{shown}: {error}. Nothing was changed."));
        let named =
            Overrides::from_toml(old.as_deref().unwrap_or_default()).map_err(wrong)?.espocrm;
        let units = old_units(files);
        let (dir, others) = match setup.espocrm.as_ref().or(named.as_ref()) {
            Some(dir) => (dir.clone(), String::new()),
            None => match choose(files, &service, &units)? {
                Some(choice) => choice,
                None => return Ok(None),
            },
        };
        let user = setup.user.clone().or_else(|| existing_user(files, &service, setup.at_install));
        let command = format!("espocrm-websocket setup{}", service.flag());
        let espocrm = Espocrm::open(files, &dir, user, &command).map_err(|error| match &named {
            Some(named) if *named == dir => Exit::error(format!(
                "The EspoCRM in {shown} cannot be served. {error} Nothing was changed."
            )),
            _ => error,
        })?;
        let conflicting: Vec<_> = units
            .iter()
            .filter(|unit| {
                let same = unit
                    .dir
                    .as_ref()
                    .is_none_or(|dir| files.resolve(dir).is_ok_and(|dir| dir == espocrm.real));
                let hides = unit.name == service.unit();
                match adopted {
                    Some(adopted) => hides && unit.name != adopted,
                    None => hides || same,
                }
            })
            .collect();
        if !conflicting.is_empty() {
            return Err(adopt_first(&conflicting, &service));
        }
        let text = old.as_deref().unwrap_or(config_file::TEMPLATE);
        let config = match named.filter(|_| adopted.is_some()).map(|dir| files.resolve(&dir)) {
            Some(Ok(dir)) if dir != espocrm.real => {
                return Err(Exit::error_lines(format!(
                    "{shown} is for another EspoCRM, in {}. Nothing was changed. Choose a name for \
                     a second service:\n  espocrm-websocket adopt --name NAME {}",
                    dir.display(),
                    shell_word(adopted.unwrap_or_default())
                )));
            }
            Some(Ok(_)) => text.to_owned(),
            _ => with_espocrm(text, &espocrm.dir).map_err(wrong)?,
        };
        let drop_in = espocrm.drop_in(files, &service);
        let Espocrm { dir, user, .. } = espocrm;
        Ok(Some(Self { service, dir, user, old, others, config, drop_in }))
    }

    /// Writes both files. Returns false if nothing has changed.
    ///
    /// # Errors
    /// If a file could not be written.
    pub(crate) fn write(&self, files: &Files) -> Result<bool> {
        let config = self.service.config();
        files.open_dir(config.parent().unwrap_or(Path::new("/")))?;
        let changed = files.write(&config, self.config.as_bytes(), 0o644)?;
        Ok(files.write(&self.service.drop_in(), self.drop_in.as_bytes(), 0o644)? || changed)
    }

    /// The files that were written.
    pub(crate) fn summary(&self) -> String {
        let config = match &self.old {
            None => "settings (new)",
            Some(old) if *old == self.config => "settings (unchanged)",
            Some(_) => "settings (line espocrm changed)",
        };
        let mut text = format!(
            "{} is configured: EspoCRM in {}, user {}.\n  {}  {config}\n  {}  \
             user and writable directories",
            self.service.unit(),
            self.dir,
            self.user,
            self.service.config().display(),
            self.service.drop_in().display()
        );
        if !self.others.is_empty() {
            text = text
                + "\nOther EspoCRMs were found in directories that users other than root control. \
                   They are not served. To serve one of them:"
                + &self.others;
        }
        text
    }

    /// The message that the service runs.
    pub(crate) fn started(&self) -> String {
        let unit = self.service.unit();
        format!("{unit} is running and starts at boot. Its log: journalctl -u {unit}")
    }

    /// The message that the service does not run.
    pub(crate) fn not_started(&self, error: &Exit) -> Exit {
        let unit = self.service.unit();
        Exit::error_lines(format!(
            "{unit} is configured, but is not running. {error}\nSee its log: journalctl -n 50 -u \
             {unit}\nShow its settings: espocrm-websocket config --config {}",
            self.service.config().display()
        ))
    }

    /// Removes the drop-in and restores the configuration file.
    ///
    /// # Errors
    /// If a file could not be removed or restored.
    pub(crate) fn roll_back(&self, files: &Files) -> Result<()> {
        files.remove(&self.service.drop_in())?;
        let config = self.service.config();
        match &self.old {
            Some(old) => files.write(&config, old.as_bytes(), 0o644).map(|_| ()),
            None => files.remove(&config),
        }
    }
}

/// The user of an existing service. An upgrade does not change it.
fn existing_user(files: &Files, service: &Service, at_install: bool) -> Option<String> {
    let text = files.read(&service.drop_in()).ok().filter(|_| at_install)?;
    let user = Unit::read(&text).user?;
    files.user_id(&user).is_some_and(|uid| uid != 0).then_some(user)
}

/// An EspoCRM, as a unit needs it.
struct Espocrm {
    /// The directory to write into files.
    dir: String,
    real: PathBuf,
    data: PathBuf,
    user: String,
}

impl Espocrm {
    /// Examines the EspoCRM in `dir`. Without a `user`, it is the present owner of `data/`; nothing
    /// is examined twice. `command`: the command to which a user can be added.
    fn open(files: &Files, dir: &Path, user: Option<String>, command: &str) -> Result<Self> {
        let real = files.resolve(dir).unwrap_or_else(|_| dir.to_owned());
        Installation::locate(&files.at(&real))?;
        let shown = dir.display();
        if !dir.is_absolute() || !fits_unit(dir) || !fits_unit(&real) {
            return Err(Exit::error(format!(
                "{shown} cannot be used in a systemd unit: the path must begin with a slash, be \
                 valid UTF-8 and contain no control characters."
            )));
        }
        let (user, data) = if let Some(user) = user {
            let data = files.resolve(&real.join("data"));
            let data = data.map_err(|error| failed(&dir.join("data"), "opened", &error))?;
            (checked_user(files, user)?, data)
        } else {
            let owner = ownership::owner(&files.at(&real), |uid| files.primary_group(uid));
            let owner = owner.map_err(|why| ambiguous_user(files, dir, why, command))?;
            (files.user_name(owner), real.join("data"))
        };
        if !fits_unit(&data) {
            return Err(Exit::error(format!(
                "{shown}/data cannot be used in a systemd unit: it contains control characters, or \
                 is not valid UTF-8."
            )));
        }
        let has_parent = dir.components().any(|it| it == Component::ParentDir);
        let written = if has_parent || is_home(&real) { &real } else { dir };
        Ok(Self {
            // Without a trailing slash.
            dir: written.components().collect::<PathBuf>().to_string_lossy().into_owned(),
            data,
            user,
            real,
        })
    }

    fn drop_in(&self, files: &Files, service: &Service) -> String {
        let (real, data) = (self.real.to_string_lossy(), self.data.to_string_lossy());
        let mut homes = Vec::new();
        if is_home(&self.real) {
            homes.push(&*real);
        }
        if is_home(&self.data) && !self.data.starts_with(&self.real) {
            homes.push(&*data);
        }
        let command = format!("espocrm-websocket setup{}", service.flag());
        let has_restart_steps = drop_in::has_restart_steps(files);
        DropIn { user: &self.user, data: &data, homes: &homes, has_restart_steps }.render(&command)
    }
}

/// The user from the command line, if a service can run as this user.
fn checked_user(files: &Files, user: String) -> Result<String> {
    match files.user_id(&user) {
        Some(0) => Err(Exit::error(
            "The service must not run as root. Nothing was changed. Specify the web server's user: \
             --user NAME (www-data, apache or nginx).",
        )),
        Some(_) => Ok(files.known_name(user)),
        None => Err(Exit::error(format!(
            "There is no user \"{}\" in /etc/passwd. Nothing was changed. Specify another user, or \
             this one by its number.",
            Printable(user)
        ))),
    }
}

fn ambiguous_user(files: &Files, dir: &Path, why: Ambiguity, command: &str) -> Exit {
    let shown = dir.display();
    let word = shell_word(&dir.to_string_lossy());
    let web = web_user(files);
    Exit::error_lines(match why {
        Ambiguity::Root => format!(
            "{shown}/data belongs to root, and the service must not run as root. EspoCRM's files \
             must belong to the web server's user:\n  chown -R {web}: {word}\nThen run this \
             command command."
        ),
        _ => format!(
            "The user of the service cannot be determined safely: {shown}/data {why}. Specify the \
             user:\n  {command} --espocrm {word} --user {web}"
        ),
    })
}

/// Whether the unit's sandbox hides this path by default.
fn is_home(path: &Path) -> bool {
    ["/home", "/root", "/run/user"].iter().any(|home| path.starts_with(home))
}

/// The user of the web server, guessed by name.
fn web_user(files: &Files) -> &'static str {
    let list = files.read(Path::new("/etc/passwd")).unwrap_or_default();
    let list = String::from_utf8_lossy(&list);
    let known = ["www-data", "apache", "nginx", "wwwrun", "http"];
    let is_there = |name: &&str| list.lines().any(|line| line.split(':').next() == Some(name));
    known.into_iter().find(is_there).unwrap_or("www-data")
}

/// The only EspoCRM in a directory that root controls and that has no service yet, and the commands
/// for those that other users control. `None` if all are served.
fn choose(
    files: &Files,
    service: &Service,
    units: &[OldUnit],
) -> Result<Option<(PathBuf, String)>> {
    let mut found = espocrms(files);
    let served = configured(files);
    let all = found.len();
    found.retain(|it| !served.contains(&it.real));
    let (mut by_root, by_others): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| it.by_root);
    match (by_root.as_slice(), by_others.as_slice()) {
        ([one], others) => {
            Ok(Some((one.dir.clone(), commands(others, service, vec![service.flag()]))))
        }
        _ if !units.is_empty() => Err(adopt_first(&units.iter().collect::<Vec<_>>(), service)),
        ([], []) if all > 0 => Ok(None),
        ([], []) => Err(Exit::error_lines(format!(
            "No EspoCRM was found in the document roots of nginx and Apache, or in /var/www, /srv, \
             /opt, /usr/share/nginx, /home/*/public_html and similar directories. Nothing was \
             changed. Specify its directory:\n  espocrm-websocket setup{} --espocrm DIR",
            service.flag()
        ))),
        ([], others) => Err(Exit::error_lines(format!(
            "EspoCRM was found, but in a directory that users other than root control. Nothing was \
             changed. To serve it:{}",
            commands(others, service, Vec::new())
        ))),
        _ => {
            by_root.extend(by_others);
            Err(Exit::error_lines(format!(
                "There are several EspoCRMs. Nothing was changed. Each needs its own service; the \
                 first one becomes the default service:{}\nEach needs its own ports: set \
                 webSocketPort, webSocketZeroMQSubmissionDsn and webSocketZeroMQSubscriberDsn in \
                 EspoCRM's data/config.php.",
                commands(&by_root, service, Vec::new())
            )))
        }
    }
}

/// The commands that set up each of these, each on its own line. The names of their services differ
/// from those in `taken`.
fn commands(found: &[Found], service: &Service, mut taken: Vec<String>) -> String {
    let mut text = String::new();
    for it in found {
        let flag = if taken.is_empty() { service.flag() } else { name_for(&it.dir, &taken) };
        let dir = it.dir.to_string_lossy();
        text = text + "\n  espocrm-websocket setup" + &flag + " --espocrm " + &shell_word(&dir);
        taken.push(flag);
    }
    text
}

/// A `--name` option for the service of the EspoCRM in this directory, with an unused name.
fn name_for(dir: &Path, taken: &[String]) -> String {
    let common = "html public_html htdocs httpdocs www public config var srv opt";
    let mut names = dir.iter().rev().filter_map(|name| name.to_str());
    let name = names.find(|name| !common.split(' ').any(|it| it == *name)).unwrap_or_default();
    let name: String =
        name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    let name = name.trim_start_matches(['-', '_', '.']);
    let name = if name.is_empty() { "crm" } else { name };
    let flag = format!(" --name {name}");
    let mut number = 1;
    let mut chosen = flag.clone();
    while taken.contains(&chosen) {
        number += 1;
        chosen = format!("{flag}-{number}");
    }
    chosen
}

fn adopt_first(units: &[&OldUnit], service: &Service) -> Exit {
    let (subject, object) = if units.len() == 1 {
        ("One of your units runs", "it")
    } else {
        ("Several of your units run", "them")
    };
    let mut text = format!("{subject} EspoCRM's websocket.php:");
    for unit in units {
        text = text + "\n  " + UNITS + "/" + &unit.name;
    }
    text = text + "\nNothing was changed. To replace " + object + " (reversible):";
    let flag = if units.len() == 1 { service.flag() } else { String::new() };
    for unit in units {
        text = text + "\n  espocrm-websocket adopt" + &flag + " " + &shell_word(&unit.name);
    }
    Exit::error_lines(text)
}
