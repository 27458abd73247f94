//! Where EspoCRM may be, and what serves it already.

use std::path::{Path, PathBuf};

use super::files::Files;
use super::service::{DROP_IN, UNITS};
use super::sites::document_roots;
use super::unit::Unit;
use crate::settings::{DEFAULT_FILE, Overrides};

/// A directory with an EspoCRM in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// As somebody named it.
    pub dir: PathBuf,
    /// The same without symbolic links.
    pub real: PathBuf,
    /// Whether root has put it there: only then it may be chosen without being named.
    pub by_root: bool,
}

/// A unit of the administrator's own that runs `websocket.php`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OldUnit {
    pub name: String,
    /// The EspoCRM that it serves, if that can be told.
    pub dir: Option<PathBuf>,
    pub user: Option<String>,
    /// Files that its output goes to.
    pub logs: Vec<String>,
}

/// The files of nginx and Apache in which sites are described.
pub(crate) const SITES: [&str; 8] = [
    "/etc/nginx/sites-enabled/*",
    "/etc/nginx/conf.d/*.conf",
    "/etc/nginx/nginx.conf",
    "/etc/apache2/sites-enabled/*",
    "/etc/apache2/vhosts.d/*.conf",
    "/etc/httpd/conf.d/*.conf",
    "/etc/httpd/conf/httpd.conf",
    "/etc/httpd/vhosts.d/*.conf",
];

/// Where web applications are put.
const USUAL: [&str; 12] = [
    "/var/www/html",
    "/var/www/*",
    "/var/www/html/*",
    "/srv/*",
    "/srv/www/*",
    "/srv/www/htdocs",
    "/usr/share/nginx/html",
    "/usr/share/nginx/*",
    "/home/*/public_html",
    "/home/*/www",
    "/home/*/htdocs",
    "/opt/*",
];

/// What is looked at, at most.
const MOST_DIRS: usize = 1_000;

/// The files by which EspoCRM is known, besides its directory `data`.
const FILES: [&str; 2] = ["bootstrap.php", "command.php"];

/// Every EspoCRM in a web server's document root or in a usual place, each once.
pub(crate) fn espocrms(files: &Files) -> Vec<Found> {
    let mut dirs = Vec::new();
    for site in SITES.iter().flat_map(|pattern| files.find(pattern)) {
        for root in document_roots(&files.read(&site).unwrap_or_default()) {
            // It may be EspoCRM's directory `public`.
            let parent = root.parent().map(Path::to_owned);
            dirs.push(root);
            dirs.extend(parent);
        }
    }
    dirs.extend(USUAL.iter().flat_map(|pattern| files.find(pattern)));
    let mut found: Vec<Found> = Vec::new();
    for dir in dirs.into_iter().take(MOST_DIRS) {
        if let Ok(real) = files.resolve(&dir)
            && is_espocrm(files, &real)
            // Others cannot be written into a unit.
            && is_tame(&dir)
            && is_tame(&real)
            && !found.iter().any(|found| found.real == real)
        {
            let by_root = files.is_placed_by_root(&dir);
            found.push(Found { dir, real, by_root });
        }
    }
    found
}

/// Whether a path can be written into a file for systemd, and one of ours.
pub(super) fn is_tame(path: &Path) -> bool {
    path.to_str().is_some_and(|path| !path.contains(char::is_control))
}

fn is_espocrm(files: &Files, dir: &Path) -> bool {
    let at = |name: &str| files.resolve(&dir.join(name)).map(|path| files.at(&path));
    FILES.iter().all(|name| at(name).is_ok_and(|path| path.is_file()))
        && at("data").is_ok_and(|path| path.is_dir())
}

/// The EspoCRM of each of our configuration files, without symbolic links.
pub(super) fn configured(files: &Files) -> Vec<PathBuf> {
    let dir = Path::new(DEFAULT_FILE).parent().unwrap_or(Path::new("/"));
    let own = files.find(&format!("{}/*.toml", dir.display()));
    let espocrm = |file: &PathBuf| {
        let text = String::from_utf8(files.read(file).ok()?).ok()?;
        files.resolve(&Overrides::from_toml(&text).ok()?.espocrm?).ok()
    };
    own.iter().filter_map(espocrm).collect()
}

/// Every unit of the administrator's own that runs `websocket.php`, drop-ins included.
pub(crate) fn old_units(files: &Files) -> Vec<OldUnit> {
    let paths = files.find(&format!("{UNITS}/*.service"));
    paths.iter().filter_map(|path| old_unit(files, path)).collect()
}

fn old_unit(files: &Files, path: &Path) -> Option<OldUnit> {
    let name = path.file_name()?.to_str().filter(|name| !name.contains(char::is_control))?;
    let real = files.resolve(path).ok()?;
    if real != path && real.starts_with(UNITS) {
        // Another name of a unit that is found by its own.
        return None;
    }
    let mut text = files.read(&real).ok()?;
    for drop_in in drop_ins(files, name) {
        text.push(b'\n');
        text.extend(files.read(&drop_in).unwrap_or_default());
    }
    let unit = Unit::read(&text);
    let dir = unit.script()?.dir;
    Some(OldUnit { name: name.to_owned(), dir, user: unit.user, logs: unit.logs })
}

/// A unit's drop-ins, except ours.
pub(crate) fn drop_ins(files: &Files, unit: &str) -> Vec<PathBuf> {
    let mut drop_ins = files.find(&format!("{UNITS}/{unit}.d/*.conf"));
    drop_ins.retain(|path| path.file_name().is_some_and(|name| name != DROP_IN));
    drop_ins
}
