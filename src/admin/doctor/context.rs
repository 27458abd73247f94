//! Which EspoCRM it is about, and what it is set to.

use std::path::{Path, PathBuf};

use super::pages::{self, Internal};
use super::php::{self, About};
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

/// An EspoCRM, as far as it could be found out.
pub(super) struct Context {
    pub espocrm: Installation,
    pub about: About,
    pub espo_settings: EspoSettings,
    pub settings: Settings,
    /// Whom its PHP is run as.
    pub user: String,
    /// Parameters that pages need and do not receive.
    pub internal: Vec<Internal>,
    /// The configuration file.
    pub config: PathBuf,
}

/// The first and the last version that this daemon was tried with.
const SUPPORTED: ((u32, u32), u32) = ((5, 6), 10);

impl Context {
    /// Goes through everything that the rest depends on.
    pub(super) fn open(
        doctor: &Doctor,
        files: &Files,
        report: &mut Report,
        stop: Stop<'_>,
    ) -> Option<Self> {
        let (layers, finding) = match configuration(doctor) {
            Ok((layers, finding)) => (Some(layers), finding),
            Err(error) => {
                let found = "Our own configuration cannot be used";
                (None, Finding::bad("configuration", found, error.to_string()))
            }
        };
        report.add(finding);
        let Some(layers) = layers else {
            skip(report, 0, "the configuration would tell which EspoCRM");
            return None;
        };
        let php = layers.php().unwrap_or(Path::new("php"));
        let root = find(&layers, files).and_then(|root| Installation::locate(&root));
        if let Ok(root) = &root
            && files.is_image()
            && root.starts_with(files.at(Path::new("/")))
        {
            let found = format!("EspoCRM is in {}, a directory of another system", root.display());
            report.add(Finding::unknown("espocrm", found));
            skip(report, 1, "nothing of another system is executed");
            return None;
        }
        let espocrm = root.and_then(|root| Installation::new(&root, php, layers.user()));
        let espocrm = match espocrm {
            Ok(espocrm) => espocrm,
            Err(error) => {
                report.add(Finding::bad("espocrm", "No EspoCRM to serve", error.to_string()));
                skip(report, 1, "no EspoCRM was found");
                return None;
            }
        };
        let identity = espocrm.identity();
        let owns = identity.owns(&espocrm.root().join("data"));
        let root = espocrm.root().display().to_string();
        report.add(owned(&root, identity.name(), identity.is_root(), owns));
        let user = identity.name().to_owned();

        let about = match php::ask(&espocrm, &About::task(), stop) {
            Ok(answer) => About::of(&answer),
            Err(error) => {
                report.add(broken(&error, &espocrm, &user));
                skip(report, 2, "PHP does not run");
                return None;
            }
        };
        let espo_settings = match espocrm.ask(&mut *stop) {
            Ok(espo_settings) => espo_settings,
            Err(error) => {
                report.add(about.judge(&php.to_string_lossy(), &user));
                let found = "EspoCRM cannot be asked for its settings";
                report.add(Finding::bad("espocrm-settings", found, error.to_string()));
                skip(report, 3, "EspoCRM could not be asked");
                return None;
            }
        };
        let resolved = Settings::resolve(&layers, &espo_settings);
        // Checks are run by the PHP that EspoCRM names.
        let chosen = resolved.as_ref().map_or(php, |settings| &settings.php.value);
        let (espocrm, about) = if chosen == php {
            (espocrm, about)
        } else {
            let espocrm = espocrm.with_php(chosen);
            match php::ask(&espocrm, &About::task(), stop) {
                Ok(answer) => (espocrm, About::of(&answer)),
                Err(error) => {
                    report.add(broken(&error, &espocrm, &user));
                    skip(report, 2, "PHP does not run");
                    return None;
                }
            }
        };
        report.add(about.judge(&chosen.to_string_lossy(), &user));
        match resolved {
            Ok(settings) => {
                report.add(sound(&settings.categories));
                report.add(version(&espo_settings.version));
                report.add(enabled(settings.enabled));
                let internal = pages::internal(&espocrm, stop);
                report.add(pages::judge(&espo_settings, &internal));
                let internal = internal.unwrap_or_default();
                let config = layers.file_name().unwrap_or(Path::new(DEFAULT_FILE)).to_owned();
                Some(Self { espocrm, about, espo_settings, settings, user, internal, config })
            }
            Err(error) => {
                let found = "EspoCRM's settings make no sense";
                report.add(Finding::bad("espocrm-settings", found, error.to_string()));
                skip(report, 3, "the settings make no sense");
                None
            }
        }
    }
}

/// What is not looked at after so many of the first steps.
fn skip(report: &mut Report, done: usize, because: &str) {
    const STEPS: [(&str, &str); 6] = [
        ("espocrm", "EspoCRM"),
        ("php", "PHP"),
        ("espocrm-settings", "EspoCRM's settings"),
        ("version", "EspoCRM's version"),
        ("enabled", "useWebSocket"),
        ("pages", "What EspoCRM's pages receive"),
    ];
    report.skip(STEPS.get(done..).unwrap_or_default(), because);
}

fn configuration(doctor: &Doctor) -> Result<(Layers, Finding)> {
    let service = Service::new(doctor.name.clone())?;
    // Without a name it need not exist.
    let named = doctor.name.as_ref().map(|_| service.config());
    let layers = Layers::new(doctor.flags.clone(), doctor.config.clone().or(named))?;
    let layers = layers.run_as(doctor.run_as.clone(), service_user);
    let found = match layers.file_name() {
        Some(file) => format!("Our own configuration is {}", file.display()),
        None => "No configuration of our own: defaults and EspoCRM's settings count".to_owned(),
    };
    Ok((layers, Finding::good("configuration", found)))
}

/// The EspoCRM that is named, or the only one that root has put into a directory of this machine.
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
    let mut text = String::from("Name the EspoCRM that is meant:");
    for it in found {
        text += "\n  espocrm-websocket doctor --espocrm ";
        text += &shell_word(&it.dir.to_string_lossy());
    }
    Err(Exit::error_lines(text))
}

fn owned(root: &str, user: &str, is_root: bool, owns: bool) -> Finding {
    let found = format!("EspoCRM is in {root}, and its PHP runs as {user}");
    if is_root {
        return Finding::doubt(
            "espocrm",
            found,
            "EspoCRM's files belong to the web server's user, and its daemon runs as that user: \
             chown -R www-data: and the directory.",
        );
    }
    if !owns {
        return Finding::doubt(
            "espocrm",
            found + ", who does not own data/",
            "Run the doctor as root: it then runs PHP as EspoCRM's owner, and sees who holds ports.",
        );
    }
    Finding::good("espocrm", found)
}

fn broken(error: &str, espocrm: &Installation, user: &str) -> Finding {
    let php = espocrm.php().to_string_lossy();
    Finding::bad(
        "php",
        format!("PHP's command line does not run as {user}: {php}"),
        format!(
            "{error}\nTry it: {} -v\nIf another PHP is the right one, name it by php = \"PATH\" in \
             our configuration, or phpExecutablePath in EspoCRM's.",
            shell_word(&php)
        ),
    )
}

fn sound(categories: &Categories) -> Finding {
    let all = categories.iter().count() as u64;
    let unserved = categories.iter().filter_map(|(name, category)| match &category.access {
        SubscribePolicy::Invalid(error) => Some(format!("{name}: {error}")),
        _ => None,
    });
    let unserved: Vec<_> = unserved.collect();
    let all = plural(all, "category", "categories");
    let found = format!("EspoCRM tells its settings, and {all} of topics");
    if unserved.is_empty() {
        return Finding::good("espocrm-settings", found);
    }
    Finding::doubt(
        "espocrm-settings",
        found + ", of which some are not served",
        unserved.join("\n") + "\nAn extension or custom/ defines them: app/webSocket.json.",
    )
}

fn version(version: &Version) -> Finding {
    let found = format!("EspoCRM's version is {version}");
    let (first, last) = SUPPORTED;
    if !version.is_known() {
        return Finding::doubt(
            "version",
            found,
            "It is not known how its access checks tell their verdict: only what is beyond doubt is \
             granted. Does data/config.php or data/state.php name its version?",
        );
    }
    if !version.is_at_least(first) {
        return Finding::bad(
            "version",
            found,
            "It is too old: 5.6 is the first that is supported.",
        );
    }
    if version.is_at_least((last + 1, 0)) {
        return Finding::doubt(
            "version",
            found + ", which is newer than this daemon knows",
            format!(
                "Up to {last} it was tried. Most likely it works; look for a newer \
                 espocrm-websocket."
            ),
        );
    }
    Finding::good("version", found + ", which is supported")
}

fn enabled(enabled: bool) -> Finding {
    if enabled {
        return Finding::good("enabled", "useWebSocket is on");
    }
    Finding::bad(
        "enabled",
        "useWebSocket is off: EspoCRM sends nothing, and its pages do not connect",
        "Turn it on: EspoCRM, Administration, Settings, Use WebSocket. Then reload the pages.",
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_supported_or_not() {
        for (text, state) in [
            ("5.5.9", State::Bad),
            ("5.6.0", State::Good),
            ("9.3.10", State::Good),
            ("10.0.0", State::Good),
            ("10.4.0-beta1", State::Good),
            ("11.0.0", State::Doubt),
            ("", State::Doubt),
            ("@@version", State::Doubt),
        ] {
            assert_eq!(version(&Version::new(text)).state, state, "{text}");
        }
    }

    #[test]
    fn it_matters_who_runs_php() {
        for (is_root, owns, state) in
            [(false, true, State::Good), (false, false, State::Doubt), (true, true, State::Doubt)]
        {
            assert_eq!(owned("/e", "web", is_root, owns).state, state, "{is_root} {owns}");
        }
    }

    #[test]
    fn categories_that_cannot_be_served_are_told() {
        let good = Categories::from_json(&json!({"a": {}}));
        assert_eq!(sound(&good).state, State::Good);
        let odd = Categories::from_json(&json!({"a": {}, "b": 7}));
        let finding = sound(&odd);
        assert_eq!(finding.state, State::Doubt);
        assert!(finding.fix.starts_with("b: "), "{}", finding.fix);
        assert_eq!(enabled(false).state, State::Bad);
    }
}
