//! The EspoCRM that is examined, and its settings.

use std::path::{Path, PathBuf};

use super::pages::{self, Internal};
use super::php::{self, PhpInfo};
use super::report::{Finding, Report};
use super::{Doctor, Stop};
use crate::admin::setup::{Files, Service, espocrms, service_user};
use crate::engine::espocrm::category::{Categories, SubscribePolicy};
use crate::engine::espocrm::version::Version;
use crate::engine::printable::plural;
use crate::espocrm::{EspoSettings, Installation};
use crate::platform::exit::{Exit, Result};
use crate::platform::shell_word::shell_word;
use crate::settings::{DEFAULT_FILE, Layers, Settings};

/// The EspoCRM that is examined.
pub(super) struct Context {
    pub espocrm: Installation,
    pub php_info: PhpInfo,
    pub espo_settings: EspoSettings,
    pub settings: Settings,
    /// The user who runs its PHP.
    pub user: String,
    /// Parameters that pages need but do not receive.
    pub internal: Vec<Internal>,
    /// The configuration file.
    pub config: PathBuf,
}

/// The first version and the last major version that are tested with this daemon.
const SUPPORTED: ((u32, u32), u32) = ((5, 6), 10);

impl Context {
    /// Runs the steps that all others depend on.
    pub(super) fn open(
        doctor: &Doctor,
        files: &Files,
        report: &mut Report,
        stop: Stop<'_>,
    ) -> Option<Self> {
        let (layers, finding) = match configuration(doctor) {
            Ok((layers, finding)) => (Some(layers), finding),
            Err(error) => {
                let found = "The configuration cannot be used";
                (None, Finding::failure("configuration", found, error.to_string()))
            }
        };
        report.add(finding);
        let Some(layers) = layers else {
            skip(report, 0, "the configuration names the EspoCRM, but cannot be used");
            return None;
        };
        let php = layers.php().unwrap_or(Path::new("php"));
        let root = find(&layers, files).and_then(|root| Installation::locate(&root));
        if let Ok(root) = &root
            && files.is_image()
            && root.starts_with(files.at(Path::new("/")))
        {
            let found =
                format!("EspoCRM is in {}, which belongs to another system", root.display());
            report.add(Finding::unknown("espocrm", found));
            skip(report, 1, "programs of another system are not executed");
            return None;
        }
        let espocrm = root.and_then(|root| Installation::new(&root, php, layers.user()));
        let espocrm = match espocrm {
            Ok(espocrm) => espocrm,
            Err(error) => {
                report.add(Finding::failure(
                    "espocrm",
                    "No usable EspoCRM was found",
                    error.to_string(),
                ));
                skip(report, 1, "no usable EspoCRM was found");
                return None;
            }
        };
        let identity = espocrm.identity();
        let owns = identity.owns(&espocrm.root().join("data"));
        let root = espocrm.root().display().to_string();
        report.add(owner(&root, identity.name(), identity.is_root(), owns));
        let user = identity.name().to_owned();

        let php_info = match php::run_task(&espocrm, &PhpInfo::task(), stop) {
            Ok(answer) => PhpInfo::of(&answer),
            Err(error) => {
                report.add(php_failure(&error, &espocrm, &user));
                skip(report, 2, "PHP does not run");
                return None;
            }
        };
        let espo_settings = match espocrm.read_settings(&mut *stop) {
            Ok(espo_settings) => espo_settings,
            Err(error) => {
                report.add(php_info.judge(&php.to_string_lossy(), &user));
                let found = "EspoCRM's settings could not be read";
                report.add(Finding::failure("espocrm-settings", found, error.to_string()));
                skip(report, 3, "EspoCRM's settings could not be read");
                return None;
            }
        };
        let resolved = Settings::resolve(&layers, &espo_settings);
        // Checks use the PHP that EspoCRM's settings name.
        let chosen = resolved.as_ref().map_or(php, |settings| &settings.php.value);
        let (espocrm, php_info) = if chosen == php {
            (espocrm, php_info)
        } else {
            let espocrm = espocrm.with_php(chosen);
            match php::run_task(&espocrm, &PhpInfo::task(), stop) {
                Ok(answer) => (espocrm, PhpInfo::of(&answer)),
                Err(error) => {
                    report.add(php_failure(&error, &espocrm, &user));
                    skip(report, 2, "PHP does not run");
                    return None;
                }
            }
        };
        report.add(php_info.judge(&chosen.to_string_lossy(), &user));
        match resolved {
            Ok(settings) => {
                report.add(category_finding(&settings.categories));
                report.add(version(&espo_settings.version));
                report.add(enabled(settings.enabled));
                let internal = pages::internal(&espocrm, stop);
                report.add(pages::judge(&espo_settings, &internal));
                let internal = internal.unwrap_or_default();
                let config = layers.file_name().unwrap_or(Path::new(DEFAULT_FILE)).to_owned();
                Some(Self { espocrm, php_info, espo_settings, settings, user, internal, config })
            }
            Err(error) => {
                let found = "EspoCRM's settings are invalid";
                report.add(Finding::failure("espocrm-settings", found, error.to_string()));
                skip(report, 3, "EspoCRM's settings are invalid");
                None
            }
        }
    }
}

/// Skips the steps after the first `done` ones.
fn skip(report: &mut Report, done: usize, because: &str) {
    const STEPS: [(&str, &str); 6] = [
        ("espocrm", "EspoCRM"),
        ("php", "PHP"),
        ("espocrm-settings", "EspoCRM's settings"),
        ("version", "EspoCRM's version"),
        ("enabled", "useWebSocket"),
        ("pages", "Parameters of EspoCRM's pages"),
    ];
    report.skip(STEPS.get(done..).unwrap_or_default(), because);
}

fn configuration(doctor: &Doctor) -> Result<(Layers, Finding)> {
    let service = Service::new(doctor.name.clone())?;
    // Without a name, the file is optional.
    let named = doctor.name.as_ref().map(|_| service.config());
    let layers = Layers::new(doctor.flags.clone(), doctor.config.clone().or(named))?;
    let layers = layers.run_as(doctor.run_as.clone(), service_user);
    let found = match layers.file_name() {
        Some(file) => format!("Configuration file: {}", file.display()),
        None => "No configuration file: defaults and EspoCRM's settings apply".to_owned(),
    };
    Ok((layers, Finding::ok("configuration", found)))
}

/// The configured EspoCRM, or the only one in a directory that root controls.
fn find(layers: &Layers, files: &Files) -> Result<PathBuf> {
    let unnamed = match layers.root() {
        Ok(root) => return Ok(root.to_owned()),
        Err(error) => error,
    };
    let found = espocrms(files);
    let mut by_root = found.iter().filter(|it| it.by_root);
    if let (Some(one), None) = (by_root.next(), by_root.next()) {
        return Ok(files.at(&one.dir));
    }
    if found.is_empty() {
        return Err(unnamed);
    }
    let mut text = String::from("Choose one of these directories:");
    for it in found {
        text += "\n  espocrm-websocket doctor --espocrm ";
        text += &shell_word(&it.dir.to_string_lossy());
    }
    Err(Exit::error_lines(text))
}

fn owner(root: &str, user: &str, is_root: bool, owns: bool) -> Finding {
    let found = format!("EspoCRM is in {root}; its PHP runs as {user}");
    if is_root {
        return Finding::warning(
            "espocrm",
            found,
            format!(
                "EspoCRM's files must belong to the web server's user, who also runs the daemon: \
                 chown -R www-data: {}",
                shell_word(root)
            ),
        );
    }
    if !owns {
        return Finding::warning(
            "espocrm",
            found + ", who does not own data/",
            "Run the doctor as root. It then runs PHP as the owner of data/ and identifies the \
             processes that hold ports.",
        );
    }
    Finding::ok("espocrm", found)
}

fn php_failure(error: &str, espocrm: &Installation, user: &str) -> Finding {
    let php = espocrm.php().to_string_lossy();
    Finding::failure(
        "php",
        format!("The PHP CLI ({php}) does not run as {user}"),
        format!(
            "{error}\nTry: {} -v\nTo use another PHP, set php = \"PATH\" in the configuration \
             file, or phpExecutablePath in EspoCRM's data/config.php.",
            shell_word(&php)
        ),
    )
}

fn category_finding(categories: &Categories) -> Finding {
    let all = categories.iter().count() as u64;
    let unserved = categories.iter().filter_map(|(name, category)| match &category.access {
        SubscribePolicy::Invalid(error) => Some(format!("{name}: {error}")),
        _ => None,
    });
    let unserved: Vec<_> = unserved.collect();
    let all = plural(all, "category", "categories");
    let found = format!("EspoCRM's settings were read, with {all} of topics");
    if unserved.is_empty() {
        return Finding::ok("espocrm-settings", found);
    }
    Finding::warning(
        "espocrm-settings",
        found + "; some of them are not served",
        unserved.join("\n")
            + "\nFix their definition: app/webSocket.json of an extension or in custom/.",
    )
}

fn version(version: &Version) -> Finding {
    let found = format!("EspoCRM version {version}");
    let (first, last) = SUPPORTED;
    if !version.is_known() {
        return Finding::warning(
            "version",
            found + " is unknown",
            "How this version reports the result of an access check is unknown, so ambiguous \
             results count as denied. Check the version in data/config.php or data/state.php.",
        );
    }
    if !version.is_at_least(first) {
        return Finding::failure(
            "version",
            found + " is too old",
            "The first supported version is 5.6. Upgrade EspoCRM.",
        );
    }
    if version.is_at_least((last + 1, 0)) {
        return Finding::warning(
            "version",
            found + " is newer than the versions tested with this daemon",
            format!(
                "Versions up to {last} are tested. This one most likely works. Upgrade \
                 espocrm-websocket if there is a newer release."
            ),
        );
    }
    Finding::ok("version", found + " is supported")
}

fn enabled(enabled: bool) -> Finding {
    if enabled {
        return Finding::ok("enabled", "useWebSocket is on");
    }
    Finding::failure(
        "enabled",
        "useWebSocket is off: EspoCRM sends no messages, and its pages do not connect",
        "Turn it on in EspoCRM: Administration, Settings, Use WebSocket. Then reload the pages.",
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;
    use serde_json::json;

    #[test]
    fn old_new_and_unknown_versions_are_reported() {
        for (text, state) in [
            ("5.5.9", State::Failure),
            ("5.6.0", State::Ok),
            ("9.3.10", State::Ok),
            ("10.0.0", State::Ok),
            ("10.4.0-beta1", State::Ok),
            ("11.0.0", State::Warning),
            ("", State::Warning),
            ("@@version", State::Warning),
        ] {
            assert_eq!(version(&Version::new(text)).state, state, "{text}");
        }
    }

    #[test]
    fn php_should_run_as_the_owner_of_data_and_not_as_root() {
        for (is_root, owns, state) in
            [(false, true, State::Ok), (false, false, State::Warning), (true, true, State::Warning)]
        {
            assert_eq!(owner("/e", "web", is_root, owns).state, state, "{is_root} {owns}");
        }
    }

    #[test]
    fn categories_that_cannot_be_served_are_reported() {
        let good = Categories::from_json(&json!({"a": {}}));
        assert_eq!(category_finding(&good).state, State::Ok);
        let odd = Categories::from_json(&json!({"a": {}, "b": 7}));
        let finding = category_finding(&odd);
        assert_eq!(finding.state, State::Warning);
        assert!(finding.fix.starts_with("b: "), "{}", finding.fix);
        assert_eq!(enabled(false).state, State::Failure);
    }
}
