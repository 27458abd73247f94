//! A unit that was adopted, as it was, in a place of its own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::admin::setup::{Files, UNITS, drop_ins, failed};
use crate::platform::exit::{Exit, Result};

/// A unit of the administrator's, and what there was of it besides its files.
pub(super) struct Backup {
    pub unit: String,
    /// The one that takes its place.
    pub service: String,
    /// Whether it ran.
    pub active: bool,
    /// The symbolic links by which it is enabled and has other names, and those among its files.
    links: Vec<(PathBuf, PathBuf)>,
}

/// Where they are kept: the unit by its name, drop-ins in the directory beside it, all else in the
/// file beside it, which is written last and removed first.
const PLACE: &str = "/var/lib/espocrm-websocket/adopted";

impl Backup {
    /// A unit as it is now.
    pub(super) fn of(files: &Files, unit: &str, service: &str, active: bool) -> Self {
        let links = links(files, unit);
        Self { unit: unit.to_owned(), service: service.to_owned(), active, links }
    }

    /// The names of those that are kept.
    pub(super) fn names(files: &Files) -> Vec<String> {
        let states = files.find(&format!("{PLACE}/*.state"));
        let name = |path: &PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
        states.iter().filter_map(name).collect()
    }

    /// One of them.
    pub(super) fn load(files: &Files, unit: &str) -> Result<Self> {
        let path = kept(unit, ".state");
        let state = files.read(&path).map_err(|error| failed(&path, "read", &error))?;
        let state = String::from_utf8_lossy(&state);
        let mut loaded = Self {
            unit: unit.to_owned(),
            service: String::new(),
            active: false,
            links: Vec::new(),
        };
        for line in state.lines() {
            match line.split_once('=') {
                Some(("service", service)) => service.clone_into(&mut loaded.service),
                Some(("active", active)) => loaded.active = active == "yes",
                Some(("link", link)) => {
                    let link = link.split_once('\t').map(|(from, to)| (from.into(), to.into()));
                    loaded.links.extend(link);
                }
                _ => {}
            }
        }
        Ok(loaded)
    }

    /// Keeps it, and tells where.
    pub(super) fn save(&self, files: &Files) -> Result<PathBuf> {
        self.forget(files)?;
        let place = kept(&self.unit, "");
        copy(files, &own(&self.unit, ""), &place)?;
        for path in drop_ins(files, &self.unit) {
            let name = path.file_name().unwrap_or_default();
            copy(files, &path, &kept(&self.unit, ".d").join(name))?;
        }
        let active = if self.active { "yes" } else { "no" };
        let mut state = format!("service={}\nactive={active}\n", self.service);
        for (link, target) in &self.links {
            let (link, target) = (link.to_string_lossy(), target.to_string_lossy());
            state = state + "link=" + &link + "\t" + &target + "\n";
        }
        files.write(&kept(&self.unit, ".state"), state.as_bytes(), 0o644)?;
        Ok(place)
    }

    /// Removes it from where systemd looks.
    pub(super) fn remove(&self, files: &Files) -> Result<()> {
        for (link, _) in &self.links {
            files.remove(link)?;
        }
        for path in drop_ins(files, &self.unit) {
            files.remove(&path)?;
        }
        files.remove(&own(&self.unit, ""))
    }

    /// That nothing else has taken its place.
    pub(super) fn check(&self, files: &Files) -> Result<()> {
        let path = own(&self.unit, "");
        let place = kept(&self.unit, "");
        let was = files.read(&place).map_err(|error| failed(&place, "read", &error))?;
        match files.read(&path) {
            Ok(is) if is != was => Err(Exit::error(format!(
                "{} is there, and is another than that in {}. Nothing was changed. Move one of them \
                 away.",
                path.display(),
                place.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Puts it back where systemd looks.
    pub(super) fn restore(&self, files: &Files) -> Result<()> {
        let is_link = |path: &Path| self.links.iter().any(|(link, _)| link == path);
        let path = own(&self.unit, "");
        if !is_link(&path) {
            copy(files, &kept(&self.unit, ""), &path)?;
        }
        for drop_in in files.find(&format!("{}/*.conf", kept(&self.unit, ".d").display())) {
            let path = own(&self.unit, ".d").join(drop_in.file_name().unwrap_or_default());
            if !is_link(&path) {
                copy(files, &drop_in, &path)?;
            }
        }
        for (link, target) in &self.links {
            files.remove(link)?;
            let made = files.make_dir(link.parent().unwrap_or(Path::new("/")));
            let made = made.and_then(|_| symlink(target, files.place_of(link)));
            made.map_err(|error| failed(link, "linked", &error))?;
        }
        Ok(())
    }

    /// Keeps it no longer.
    pub(super) fn forget(&self, files: &Files) -> Result<()> {
        files.remove(&kept(&self.unit, ".state"))?;
        let dir = kept(&self.unit, ".d");
        for path in files.find(&format!("{}/*.conf", dir.display())) {
            files.remove(&path)?;
        }
        let _ = fs::remove_dir(files.place_of(&dir));
        files.remove(&kept(&self.unit, ""))
    }
}

/// The symbolic links by which a unit is enabled, has other names or is there at all, and those
/// among its drop-ins.
pub(super) fn links(files: &Files, unit: &str) -> Vec<(PathBuf, PathBuf)> {
    let drop_ins = own(unit, ".d");
    let patterns = ["*.service", "*.wants/*.service", "*.requires/*.service", "*.d/*.conf"];
    let paths = patterns.iter().flat_map(|pattern| files.find(&format!("{UNITS}/{pattern}")));
    let links = paths.filter_map(|path| {
        let target = files.place_of(&path).read_link().ok()?;
        let is_it = |path: &Path| path.file_name().is_some_and(|name| name == unit);
        let its = is_it(&path) || is_it(&target) || path.parent() == Some(&drop_ins);
        its.then_some((path, target))
    });
    links.collect()
}

/// The symbolic links by which a unit is enabled.
pub(super) fn enabling(files: &Files, unit: &str) -> Vec<PathBuf> {
    let mut found = files.find(&format!("{UNITS}/*.wants/{unit}"));
    found.extend(files.find(&format!("{UNITS}/*.requires/{unit}")));
    found
}

fn copy(files: &Files, from: &Path, to: &Path) -> Result<()> {
    let place = files.resolve(from).map(|path| files.at(&path));
    let read = place.and_then(|place| Ok((files.read(from)?, place.metadata()?)));
    let (content, metadata) = read.map_err(|error| failed(from, "read", &error))?;
    files.write(to, &content, metadata.permissions().mode() & 0o777).map(|_| ())
}

fn own(unit: &str, end: &str) -> PathBuf {
    format!("{UNITS}/{unit}{end}").into()
}

fn kept(unit: &str, end: &str) -> PathBuf {
    format!("{PLACE}/{unit}{end}").into()
}
