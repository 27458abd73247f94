//! Searches for `EspoCRMs`, and for the units and configuration files that serve them already.

use std::path::{Path, PathBuf};

use super::files::Files;
use super::service::{DROP_IN, UNITS};
use super::sites::document_roots;
use super::unit::Unit;
use crate::settings::{DEFAULT_FILE, Overrides};

/// A directory with an EspoCRM in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The directory as it was found.
    pub dir: PathBuf,
    /// The directory without symbolic links.
    pub real: PathBuf,
    /// Whether only root controls the path. Otherwise it must be named on the command line.
    pub by_root: bool,
}

/// An administrator's unit that runs `websocket.php`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OldUnit {
    pub name: String,
    /// The EspoCRM that it serves, if its command contains it.
    pub dir: Option<PathBuf>,
    pub user: Option<String>,
    /// The files to which its output is written.
    pub logs: Vec<String>,
}

/// The files of nginx and Apache that configure sites.
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

/// Common directories of web applications.
const COMMON: [&str; 12] = [
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

/// Directories that are examined.
const MAX_DIRS: usize = 1_000;

/// The files that identify an EspoCRM, besides its directory `data`.
const FILES: [&str; 2] = ["bootstrap.php", "command.php"];

/// Every EspoCRM in a document root of a web server or in a common directory, each once.
pub(crate) fn espocrms(files: &Files) -> Vec<Found> {
    let mut dirs = Vec::new();
    for site in SITES.iter().flat_map(|pattern| files.find(pattern)) {
        for root in document_roots(&files.read(&site).unwrap_or_default()) {
            // The document root may be EspoCRM's directory `public`.
            let parent = root.parent().map(Path::to_owned);
            dirs.push(root);
            dirs.extend(parent);
        }
    }
    dirs.extend(COMMON.iter().flat_map(|pattern| files.find(pattern)));
    let mut found: Vec<Found> = Vec::new();
    for dir in dirs.into_iter().take(MAX_DIRS) {
        if let Ok(real) = files.resolve(&dir)
            && is_espocrm(files, &real)
            // Other paths cannot be used in a unit.
            && fits_unit(&dir)
            && fits_unit(&real)
            && !found.iter().any(|found| found.real == real)
        {
            let by_root = files.is_controlled_by_root(&dir);
            found.push(Found { dir, real, by_root });
        }
    }
    found
}

/// Whether a path can be used in a unit and in a configuration file.
pub(super) fn fits_unit(path: &Path) -> bool {
    path.to_str().is_some_and(|path| !path.contains(char::is_control))
}

fn is_espocrm(files: &Files, dir: &Path) -> bool {
    let at = |name: &str| files.resolve(&dir.join(name)).map(|path| files.at(&path));
    FILES.iter().all(|name| at(name).is_ok_and(|path| path.is_file()))
        && at("data").is_ok_and(|path| path.is_dir())
}

/// The EspoCRM of each configuration file, without symbolic links.
pub(super) fn configured(files: &Files) -> Vec<PathBuf> {
    let dir = Path::new(DEFAULT_FILE).parent().unwrap_or(Path::new("/"));
    let own = files.find(&format!("{}/*.toml", dir.display()));
    let espocrm = |file: &PathBuf| {
        let text = String::from_utf8(files.read(file).ok()?).ok()?;
        files.resolve(&Overrides::from_toml(&text).ok()?.espocrm?).ok()
    };
    own.iter().filter_map(espocrm).collect()
}

/// The administrator's units that run `websocket.php`, with their drop-ins.
pub(crate) fn old_units(files: &Files) -> Vec<OldUnit> {
    let paths = files.find(&format!("{UNITS}/*.service"));
    paths.iter().filter_map(|path| old_unit(files, path)).collect()
}

fn old_unit(files: &Files, path: &Path) -> Option<OldUnit> {
    let name = path.file_name()?.to_str().filter(|name| !name.contains(char::is_control))?;
    let real = files.resolve(path).ok()?;
    if real != path && real.starts_with(UNITS) {
        // An alias of a unit that is found under its own name.
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

/// The drop-ins of a unit, except the one that `setup` writes.
pub(crate) fn drop_ins(files: &Files, unit: &str) -> Vec<PathBuf> {
    let mut drop_ins = files.find(&format!("{UNITS}/{unit}.d/*.conf"));
    drop_ins.retain(|path| path.file_name().is_some_and(|name| name != DROP_IN));
    drop_ins
}
