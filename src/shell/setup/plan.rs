//! What is going to be written, decided before anything is.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::Setup;
use super::config_file::{self, with_espocrm};
use super::drop_in::DropIn;
use super::files::{Files, failed, is_plain};
use super::search::{OldUnit, configured, espocrms, is_tame, old_units};
use super::service::{Service, UNITS};
use crate::core::printable::printable;
use crate::shell::espocrm::Installation;
use crate::shell::fatal::{Fatal, Result};
use crate::shell::settings::Own;

/// Both files of a service.
pub struct Plan {
    /// Which.
    pub service: Service,
    /// The EspoCRM that it serves.
    pub dir: String,
    /// Whom it runs as.
    pub user: String,
    /// The configuration file as it was, if there is one.
    pub old: Option<String>,
    config: String,
    drop_in: String,
}

impl Plan {
    /// Decides it. `adopted` is the administrator's own unit that is about to go. None if there is
    /// nothing to do, because each EspoCRM is served by another service.
    ///
    /// # Errors
    /// Why it cannot be decided, and what to do.
    pub fn make(files: &Files, setup: &Setup, adopted: Option<&str>) -> Result<Option<Self>> {
        let service = Service::new(setup.name.clone())?;
        let path = service.config();
        let shown = path.display();
        let old = match files.read(&path) {
            Ok(text) => Some(String::from_utf8(text).map_err(|_| {
                Fatal::new(format!("{shown} is not in UTF-8. Nothing was changed."))
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&path, "read", &error)),
        };
        let wrong = |error| Fatal::lines(format!("{shown}: {error}. Nothing was changed."));
        let named = Own::from_toml(old.as_deref().unwrap_or_default()).map_err(wrong)?.espocrm;
        let units = old_units(files);
        let dir = match setup.espocrm.as_ref().or(named.as_ref()) {
            Some(dir) => dir.clone(),
            None => match choose(files, &service, &units)? {
                Some(dir) => dir,
                None => return Ok(None),
            },
        };
        let espocrm = Espocrm::open(files, &dir).map_err(|error| match &named {
            Some(named) if *named == dir => Fatal::new(format!(
                "{shown} names an EspoCRM that cannot be served. {error} Nothing was changed."
            )),
            _ => error,
        })?;
        let in_the_way: Vec<_> = units
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
        if !in_the_way.is_empty() {
            return Err(adopt_first(&in_the_way, &service));
        }
        let text = old.as_deref().unwrap_or(config_file::TEMPLATE);
        let config = match named.filter(|_| adopted.is_some()).map(|dir| files.resolve(&dir)) {
            Some(Ok(dir)) if dir != espocrm.real => {
                return Err(Fatal::lines(format!(
                    "{shown} is that of another EspoCRM, in {}. Nothing was changed. Choose a name \
                     for a second service:\n  espocrm-websocket adopt --name NAME {}",
                    dir.display(),
                    shell_word(adopted.unwrap_or_default())
                )));
            }
            Some(Ok(_)) => text.to_owned(),
            _ => with_espocrm(text, &espocrm.dir).map_err(wrong)?,
        };
        let drop_in = espocrm.drop_in(&service);
        let Espocrm { dir, user, .. } = espocrm;
        Ok(Some(Self { service, dir, user, old, config, drop_in }))
    }

    /// Writes it. False if everything is as it was.
    ///
    /// # Errors
    /// What could not be written.
    pub fn write(&self, files: &Files) -> Result<bool> {
        let config = self.service.config();
        files.open_dir(config.parent().unwrap_or(Path::new("/")))?;
        let changed = files.write(&config, self.config.as_bytes(), 0o644)?;
        Ok(files.write(&self.service.drop_in(), self.drop_in.as_bytes(), 0o644)? || changed)
    }

    /// What was written.
    pub fn summary(&self) -> String {
        let config = match &self.old {
            None => "its settings",
            Some(old) if *old == self.config => "its settings, left as they were",
            Some(_) => "its settings, of which the line espocrm was changed",
        };
        format!(
            "{} is set up for the EspoCRM in {}, as user {}.\n  {}  {config}\n  {}  its user and what \
             it may write",
            self.service.unit(),
            self.dir,
            self.user,
            self.service.config().display(),
            self.service.drop_in().display()
        )
    }

    /// The service runs.
    pub fn is_up(&self) -> String {
        let unit = self.service.unit();
        format!("{unit} runs, and starts with the machine. Its log: journalctl -u {unit}")
    }

    /// The service does not run.
    pub fn is_down(&self, error: &Fatal) -> Fatal {
        let unit = self.service.unit();
        Fatal::lines(format!(
            "{unit} is set up, but does not run. {error}\nLook into its log: journalctl -n 50 -u \
             {unit}\nand at what it would do: espocrm-websocket config --config {}",
            self.service.config().display()
        ))
    }

    /// Removes what was written.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn take_back(&self, files: &Files) -> Result<()> {
        files.remove(&self.service.drop_in())?;
        let config = self.service.config();
        match &self.old {
            Some(old) => files.write(&config, old.as_bytes(), 0o644).map(|_| ()),
            None => files.remove(&config),
        }
    }
}

/// What a unit needs to know of an EspoCRM.
struct Espocrm {
    /// As it is to be written into files.
    dir: String,
    real: PathBuf,
    data: PathBuf,
    user: String,
    group: Option<String>,
}

impl Espocrm {
    fn open(files: &Files, dir: &Path) -> Result<Self> {
        let real = files.resolve(dir).unwrap_or_else(|_| dir.to_owned());
        let installation = Installation::new(&files.at(&real), Path::new("php"))?;
        let shown = dir.display();
        if !dir.is_absolute() || !is_tame(dir) || !is_tame(&real) {
            return Err(Fatal::new(format!(
                "{shown} cannot be written into a unit of systemd: a path is needed that begins \
                 with a slash, is UTF-8 and has no control characters."
            )));
        }
        let gone = |error| failed(&dir.join("data"), "looked at", &error);
        let link = files.at(&real).join("data").symlink_metadata().map_err(gone)?;
        let data = files.resolve(&real.join("data")).map_err(gone)?;
        let (user, group) = installation.owner().unwrap_or_default();
        if user == 0 {
            let web = web_user(files);
            return Err(Fatal::lines(format!(
                "{shown}/data belongs to root, and as root it will not run. EspoCRM's files belong \
                 to the web server's user:\n  chown -R {web}: {}\nThen run this again.",
                shell_word(&dir.to_string_lossy())
            )));
        }
        // Who owns a link could choose whom the service runs as.
        if link.is_symlink() && ![0, user].contains(&link.uid()) {
            return Err(Fatal::new(format!(
                "{shown}/data is a symbolic link of another user than the directory that it leads \
                 to. Have them belong to the same."
            )));
        }
        let roundabout = dir.components().any(|it| it == Component::ParentDir);
        let written = if roundabout || is_home(&real) { &real } else { dir };
        Ok(Self {
            // Without a slash at the end.
            dir: written.components().collect::<PathBuf>().to_string_lossy().into_owned(),
            data,
            user: files.name_of("/etc/passwd", user),
            // Not root's: its user's own.
            group: (group != 0).then(|| files.name_of("/etc/group", group)),
            real,
        })
    }

    fn drop_in(&self, service: &Service) -> String {
        let (real, data) = (self.real.to_string_lossy(), self.data.to_string_lossy());
        let mut homes = Vec::new();
        if is_home(&self.real) {
            homes.push(&*real);
        }
        if is_home(&self.data) && !self.data.starts_with(&self.real) {
            homes.push(&*data);
        }
        let (user, group) = (&*self.user, self.group.as_deref());
        let again = format!("espocrm-websocket setup{}", service.flag());
        DropIn { user, group, data: &data, homes: &homes }.render(&again)
    }
}

/// Where the unit cannot see anything unless it is let in.
fn is_home(path: &Path) -> bool {
    ["/home", "/root", "/run/user"].iter().any(|home| path.starts_with(home))
}

/// The user of the web server, as far as its name tells.
fn web_user(files: &Files) -> &'static str {
    let list = files.read(Path::new("/etc/passwd")).unwrap_or_default();
    let list = String::from_utf8_lossy(&list);
    let known = ["www-data", "apache", "nginx", "wwwrun", "http"];
    let is_there = |name: &&str| list.lines().any(|line| line.split(':').next() == Some(name));
    known.into_iter().find(is_there).unwrap_or("www-data")
}

/// The only EspoCRM that nothing of ours serves; none if there is none any more.
fn choose(files: &Files, service: &Service, units: &[OldUnit]) -> Result<Option<PathBuf>> {
    let mut found = espocrms(files);
    let others = configured(files);
    let all = found.len();
    found.retain(|it| !others.contains(&it.real));
    match found.as_slice() {
        [one] => Ok(Some(one.dir.clone())),
        _ if !units.is_empty() => Err(adopt_first(&units.iter().collect::<Vec<_>>(), service)),
        [] if all > 0 => Ok(None),
        [] => Err(Fatal::lines(format!(
            "No EspoCRM was found: neither in the document roots of nginx and Apache nor in \
             /var/www, /srv, /opt, /usr/share/nginx, /home/*/public_html and the like. Nothing was \
             changed. Name its directory:\n  espocrm-websocket setup{} --espocrm DIR",
            service.flag()
        ))),
        several => {
            let mut text = "There are several EspoCRMs. Nothing was changed. Each gets a service \
                            of its own, the first of these the usual one:"
                .to_owned();
            let mut names: Vec<String> = Vec::new();
            for it in several {
                let dir = it.dir.to_string_lossy();
                let flag =
                    if names.is_empty() { service.flag() } else { name_for(&it.dir, &names) };
                text = text
                    + "\n  espocrm-websocket setup"
                    + &flag
                    + " --espocrm "
                    + &shell_word(&dir);
                names.push(flag);
            }
            text += "\nTwo cannot use the same ports: see webSocketPort, \
                     webSocketZeroMQSubmissionDsn and webSocketZeroMQSubscriberDsn in EspoCRM's \
                     data/config.php.";
            Err(Fatal::lines(text))
        }
    }
}

/// A flag with a name for the service of the EspoCRM in this directory, unlike these.
fn name_for(dir: &Path, taken: &[String]) -> String {
    let usual = "html public_html htdocs httpdocs www public config var srv opt";
    let mut names = dir.iter().rev().filter_map(|name| name.to_str());
    let name = names.find(|name| !usual.split(' ').any(|it| it == *name)).unwrap_or_default();
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

fn adopt_first(units: &[&OldUnit], service: &Service) -> Fatal {
    let (is, its) = if units.len() == 1 {
        ("A unit of your own runs", "its")
    } else {
        ("Units of your own run", "their")
    };
    let mut text = format!("{is} EspoCRM's websocket.php:");
    for unit in units {
        text = text + "\n  " + UNITS + "/" + &unit.name;
    }
    text = text
        + "\nNothing was changed. To put espocrm-websocket in "
        + its
        + " place, with a way back:";
    let flag = if units.len() == 1 { service.flag() } else { String::new() };
    for unit in units {
        text = text + "\n  espocrm-websocket adopt" + &flag + " " + &shell_word(&unit.name);
    }
    Fatal::lines(text)
}

/// A word as a shell takes it.
pub fn shell_word(word: &str) -> String {
    if is_plain(word) {
        word.to_owned()
    } else {
        // What is not printable is shown, and cannot be pasted.
        format!("'{}'", printable(word).replace('\'', "'\\''"))
    }
}
