//! The service of one EspoCRM: the default service, or one with a name.

use std::path::{Path, PathBuf};

use super::files::Files;
use super::unit::Unit;
use crate::engine::printable::Printable;
use crate::platform::exit::{Exit, Result};
use crate::settings::DEFAULT_FILE;

/// The default service, or one with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Service(Option<String>);

/// The directory of the administrator's units.
pub(crate) const UNITS: &str = "/etc/systemd/system";

/// The drop-in that `setup` writes.
pub(super) const DROP_IN: &str = "10-setup.conf";

impl Service {
    /// The service with this name, or the default service.
    ///
    /// # Errors
    /// If the name is not a valid service name.
    pub(crate) fn new(name: Option<String>) -> Result<Self> {
        if let Some(name) = &name {
            let odd = |byte: u8| !byte.is_ascii_alphanumeric() && !b"_-.".contains(&byte);
            if name.bytes().any(odd) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
                return Err(Exit::error(format!(
                    "\"{}\" is not a valid service name: it may contain letters, digits, '-', '_' \
                     and '.', and must begin with a letter or digit.",
                    Printable(name)
                )));
            }
            if name == "config" {
                return Err(Exit::error(
                    "The service name config is reserved for the default service. Choose another \
                     one.",
                ));
            }
        }
        Ok(Self(name))
    }

    /// The service with this configuration file.
    pub(crate) fn of_config(config: &Path) -> Option<Self> {
        let name = config.file_stem()?.to_str()?;
        let name = Some(name.to_owned()).filter(|name| name != "config");
        Self::new(name).ok().filter(|service| service.config() == config)
    }

    pub(crate) fn unit(&self) -> String {
        match &self.0 {
            None => "espocrm-websocket.service".to_owned(),
            Some(name) => format!("espocrm-websocket@{name}.service"),
        }
    }

    /// The unit file in the package.
    pub(crate) fn template(&self) -> &'static str {
        if self.0.is_none() { "espocrm-websocket.service" } else { "espocrm-websocket@.service" }
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        let mut file = PathBuf::from(DEFAULT_FILE);
        if let Some(name) = &self.0 {
            file.set_file_name(format!("{name}.toml"));
        }
        file
    }

    /// The drop-in that `setup` writes for its unit.
    pub(crate) fn drop_in(&self) -> PathBuf {
        drop_in_of(&self.unit())
    }

    /// The option of `setup` and `adopt` that selects this service.
    pub(crate) fn flag(&self) -> String {
        self.0.as_ref().map(|name| format!(" --name {name}")).unwrap_or_default()
    }
}

/// The drop-in that `setup` writes for a unit.
pub(crate) fn drop_in_of(unit: &str) -> PathBuf {
    format!("{UNITS}/{unit}.d/{DROP_IN}").into()
}

/// The user of the service with this configuration file, read from the drop-ins of this machine.
#[must_use]
pub(crate) fn service_user(config: &Path) -> Option<String> {
    user_of(&Files::below(Path::new("/")), config)
}

fn user_of(files: &Files, config: &Path) -> Option<String> {
    let service = Service::of_config(config)?;
    let mut text = Vec::new();
    for drop_in in files.find(&format!("{UNITS}/{}.d/*.conf", service.unit())) {
        text.extend(files.read(&drop_in).unwrap_or_default());
        text.push(b'\n');
    }
    Unit::read(&text).user
}

#[cfg(test)]
mod tests {
    use super::super::image::Image;
    use super::*;

    #[test]
    fn the_user_of_a_service_is_found_from_its_configuration_file() {
        let image = Image::new();
        let files = Files::below(&image.at("/"));
        let user = |config: &str| user_of(&files, Path::new(config));
        let dir = "/etc/systemd/system/espocrm-websocket";
        assert_eq!(user("/etc/espocrm-websocket/config.toml"), None);
        image.put(&format!("{dir}.service.d/10-setup.conf"), "[Service]\nUser=web\n");
        image.put(&format!("{dir}@sales.service.d/10-setup.conf"), "[Service]\nUser=sales\n");
        assert_eq!(user("/etc/espocrm-websocket/config.toml").as_deref(), Some("web"));
        assert_eq!(user("/etc/espocrm-websocket/sales.toml").as_deref(), Some("sales"));
        image.put(&format!("{dir}.service.d/override.conf"), "[Service]\nUser=other\n");
        assert_eq!(user("/etc/espocrm-websocket/config.toml").as_deref(), Some("other"));
        for config in ["/srv/config.toml", "/etc/espocrm-websocket/none.toml", "/", ""] {
            assert_eq!(user(config), None, "{config}");
        }
    }

    #[test]
    fn a_named_service_has_its_own_files() {
        let default = Service::default();
        assert_eq!(default.unit(), "espocrm-websocket.service");
        assert_eq!(default.config().to_str(), Some("/etc/espocrm-websocket/config.toml"));
        let sales = Service::new(Some("sales.eu".to_owned())).unwrap();
        assert_eq!(sales.unit(), "espocrm-websocket@sales.eu.service");
        assert_eq!(sales.template(), "espocrm-websocket@.service");
        assert_eq!(sales.config().to_str(), Some("/etc/espocrm-websocket/sales.eu.toml"));
        let drop_in = "/etc/systemd/system/espocrm-websocket@sales.eu.service.d/10-setup.conf";
        assert_eq!(sales.drop_in().to_str(), Some(drop_in));
    }

    #[test]
    fn invalid_names_are_rejected() {
        for name in ["", "config", "a/b", "..", "-a", "a b", "a@b", "a%b", "\u{e9}", "a\n"] {
            assert!(Service::new(Some(name.to_owned())).is_err(), "{name}");
        }
    }
}
