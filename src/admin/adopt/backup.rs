//! The backup of an adopted unit.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::admin::setup::{Files, UNITS, drop_ins, failed};
use crate::platform::exit::{Exit, Result};

/// An administrator's unit, and its state.
pub(super) struct Backup {
    pub unit: String,
    /// The service that replaces it.
    pub service: String,
    /// Whether it ran.
    pub active: bool,
    /// The symbolic links that enable it or are aliases, and those among its files.
    links: Vec<(PathBuf, PathBuf)>,
}

/// The directory of the backups. `NAME` is the unit file, `NAME.d` contains its drop-ins, and
/// `NAME.state` its state. The state file is written last and removed first.
const DIR: &str = "/var/lib/espocrm-websocket/adopted";

impl Backup {
    pub(super) fn of(files: &Files, unit: &str, service: &str, active: bool) -> Self {
        let links = links(files, unit);
        Self { unit: unit.to_owned(), service: service.to_owned(), active, links }
    }

    /// The names of the units that have a backup.
    pub(super) fn names(files: &Files) -> Vec<String> {
        let states = files.find(&format!("{DIR}/*.state"));
        let name = |path: &PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
        states.iter().filter_map(name).collect()
    }

    pub(super) fn load(files: &Files, unit: &str) -> Result<Self> {
        let path = saved(unit, ".state");
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

    /// Writes the backup. Returns the path of the copy of the unit file.
    pub(super) fn save(&self, files: &Files) -> Result<PathBuf> {
        self.delete(files)?;
        let path = saved(&self.unit, "");
        copy(files, &own(&self.unit, ""), &path)?;
        for path in drop_ins(files, &self.unit) {
            let name = path.file_name().unwrap_or_default();
            copy(files, &path, &saved(&self.unit, ".d").join(name))?;
        }
        let active = if self.active { "yes" } else { "no" };
        let mut state = format!("service={}\nactive={active}\n", self.service);
        for (link, target) in &self.links {
            let (link, target) = (link.to_string_lossy(), target.to_string_lossy());
            state = state + "link=" + &link + "\t" + &target + "\n";
        }
        files.write(&saved(&self.unit, ".state"), state.as_bytes(), 0o644)?;
        Ok(path)
    }

    /// Removes the unit from systemd's directory.
    pub(super) fn remove_unit(&self, files: &Files) -> Result<()> {
        for (link, _) in &self.links {
            files.remove(link)?;
        }
        for path in drop_ins(files, &self.unit) {
            files.remove(&path)?;
        }
        files.remove(&own(&self.unit, ""))
    }

    /// Checks that systemd's directory contains no other unit with this name.
    pub(super) fn check(&self, files: &Files) -> Result<()> {
        let path = own(&self.unit, "");
        let copy = saved(&self.unit, "");
        let saved = files.read(&copy).map_err(|error| failed(&copy, "read", &error))?;
        match files.read(&path) {
            Ok(current) if current != saved => Err(Exit::error(format!(
                "{} exists and differs from {}. Nothing was changed. Move one of them away.",
                path.display(),
                copy.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Restores the unit in systemd's directory.
    pub(super) fn restore(&self, files: &Files) -> Result<()> {
        let is_link = |path: &Path| self.links.iter().any(|(link, _)| link == path);
        let path = own(&self.unit, "");
        if !is_link(&path) {
            copy(files, &saved(&self.unit, ""), &path)?;
        }
        for drop_in in files.find(&format!("{}/*.conf", saved(&self.unit, ".d").display())) {
            let path = own(&self.unit, ".d").join(drop_in.file_name().unwrap_or_default());
            if !is_link(&path) {
                copy(files, &drop_in, &path)?;
            }
        }
        for (link, target) in &self.links {
            files.remove(link)?;
            let made = files.make_dir(link.parent().unwrap_or(Path::new("/")));
            let made = made.and_then(|_| symlink(target, files.entry_path(link)));
            made.map_err(|error| failed(link, "linked", &error))?;
        }
        Ok(())
    }

    /// Deletes the backup.
    pub(super) fn delete(&self, files: &Files) -> Result<()> {
        files.remove(&saved(&self.unit, ".state"))?;
        let dir = saved(&self.unit, ".d");
        for path in files.find(&format!("{}/*.conf", dir.display())) {
            files.remove(&path)?;
        }
        let _ = fs::remove_dir(files.entry_path(&dir));
        files.remove(&saved(&self.unit, ""))
    }
}

/// The symbolic links that enable a unit, are its aliases or the unit itself, and those among its
/// drop-ins.
pub(super) fn links(files: &Files, unit: &str) -> Vec<(PathBuf, PathBuf)> {
    let drop_ins = own(unit, ".d");
    let patterns = ["*.service", "*.wants/*.service", "*.requires/*.service", "*.d/*.conf"];
    let paths = patterns.iter().flat_map(|pattern| files.find(&format!("{UNITS}/{pattern}")));
    let links = paths.filter_map(|path| {
        let target = files.entry_path(&path).read_link().ok()?;
        let is_unit = |path: &Path| path.file_name().is_some_and(|name| name == unit);
        let belongs = is_unit(&path) || is_unit(&target) || path.parent() == Some(&drop_ins);
        belongs.then_some((path, target))
    });
    links.collect()
}

/// The symbolic links that enable a unit.
pub(super) fn enabling(files: &Files, unit: &str) -> Vec<PathBuf> {
    let mut found = files.find(&format!("{UNITS}/*.wants/{unit}"));
    found.extend(files.find(&format!("{UNITS}/*.requires/{unit}")));
    found
}

fn copy(files: &Files, from: &Path, to: &Path) -> Result<()> {
    let resolved = files.resolve(from).map(|path| files.at(&path));
    let read = resolved.and_then(|path| Ok((files.read(from)?, path.metadata()?)));
    let (content, metadata) = read.map_err(|error| failed(from, "read", &error))?;
    files.write(to, &content, metadata.permissions().mode() & 0o777).map(|_| ())
}

fn own(unit: &str, end: &str) -> PathBuf {
    format!("{UNITS}/{unit}{end}").into()
}

fn saved(unit: &str, end: &str) -> PathBuf {
    format!("{DIR}/{unit}{end}").into()
}
