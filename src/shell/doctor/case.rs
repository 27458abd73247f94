//! Which EspoCRM it is about, and what it is set to.

use std::path::{Path, PathBuf};

use super::php::{self, About};
use super::report::{Finding, Report};
use super::{Doctor, Stop};
use crate::core::category::{Access, Categories};
use crate::core::version::Version;
use crate::shell::espocrm::{Facts, Installation};
use crate::shell::fatal::{Fatal, Result};
use crate::shell::settings::{Layers, Settings};
use crate::shell::setup::{Files, Service, espocrms, shell_word};
use crate::shell::sys;

/// An EspoCRM, as far as it could be found out.
pub struct Case {
    pub espocrm: Installation,
    pub about: About,
    pub facts: Facts,
    pub settings: Settings,
    /// Whom its PHP is run as.
    pub user: String,
}

/// The first and the last version that this daemon was tried with.
const SUPPORTED: ((u32, u32), u32) = ((5, 6), 10);

impl Case {
    /// Goes through everything that the rest depends on.
    pub fn open(
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
        let espocrm = match find(&layers, files).and_then(|root| Installation::new(&root, php)) {
            Ok(espocrm) => espocrm,
            Err(error) => {
                report.add(Finding::bad("espocrm", "No EspoCRM to serve", error.to_string()));
                skip(report, 1, "no EspoCRM was found");
                return None;
            }
        };
        let (owner, me) = (espocrm.owner().map_or(0, |(user, _)| user), sys::user());
        let name = |user| files.name_of("/etc/passwd", user);
        report.add(owned(&espocrm.root().display().to_string(), owner, me, name));
        let user = name(if me == 0 { owner } else { me });

        let about = match php::ask(&espocrm, &About::task(), stop) {
            Ok(answer) => About::of(&answer),
            Err(error) => {
                report.add(broken(&error, &espocrm, &user));
                skip(report, 2, "PHP does not run");
                return None;
            }
        };
        let facts = match espocrm.ask(&mut *stop) {
            Ok(facts) => facts,
            Err(error) => {
                report.add(about.judge(&php.to_string_lossy(), &user));
                let found = "EspoCRM cannot be asked for its settings";
                report.add(Finding::bad("espocrm-settings", found, error.to_string()));
                skip(report, 3, "EspoCRM could not be asked");
                return None;
            }
        };
        let resolved = Settings::resolve(&layers, &facts);
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
                report.add(version(&facts.version));
                report.add(enabled(settings.enabled));
                Some(Self { espocrm, about, facts, settings, user })
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
    const STEPS: [(&str, &str); 5] = [
        ("espocrm", "EspoCRM"),
        ("php", "PHP"),
        ("espocrm-settings", "EspoCRM's settings"),
        ("version", "EspoCRM's version"),
        ("enabled", "useWebSocket"),
    ];
    report.skip(STEPS.get(done..).unwrap_or_default(), because);
}

fn configuration(doctor: &Doctor) -> Result<(Layers, Finding)> {
    let service = Service::new(doctor.name.clone())?;
    // Without a name it need not exist.
    let named = doctor.name.as_ref().map(|_| service.config());
    let layers = Layers::new(doctor.flags.clone(), doctor.config.clone().or(named))?;
    let found = match layers.file_name() {
        Some(file) => format!("Our own configuration is {}", file.display()),
        None => "No configuration of our own: defaults and EspoCRM's settings count".to_owned(),
    };
    Ok((layers, Finding::good("configuration", found)))
}

/// The EspoCRM that is named, or the only one of this machine.
fn find(layers: &Layers, files: &Files) -> Result<PathBuf> {
    let unnamed = match layers.root() {
        Ok(root) => return Ok(root.to_owned()),
        Err(error) => error,
    };
    let mut found = espocrms(files);
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(files.at(&one.dir)),
        (None, _) => Err(unnamed),
        (Some(last), false) => {
            found.push(last);
            let mut text = String::from("There are several. Name the one that is meant:");
            for it in found {
                text += "\n  espocrm-websocket doctor --espocrm ";
                text += &shell_word(&it.dir.to_string_lossy());
            }
            Err(Fatal::lines(text))
        }
    }
}

fn owned(root: &str, owner: u32, me: u32, name: impl Fn(u32) -> String) -> Finding {
    let found = format!("EspoCRM is in {root}, and belongs to {}", name(owner));
    if owner == 0 {
        return Finding::doubt(
            "espocrm",
            found,
            "EspoCRM's files belong to the web server's user, and its daemon runs as that user: \
             chown -R www-data: and the directory.",
        );
    }
    if me != 0 && me != owner {
        return Finding::doubt(
            "espocrm",
            format!("{found}, while this runs as {}", name(me)),
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
    let all = categories.iter().count();
    let unserved = categories.iter().filter_map(|(name, category)| match &category.access {
        Access::Nobody(error) => Some(format!("{name}: {error}")),
        _ => None,
    });
    let unserved: Vec<_> = unserved.collect();
    let found = format!("EspoCRM tells its settings, and {all} categories of topics");
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
    fn whose_files_they_are_matters() {
        let name = |user: u32| format!("user{user}");
        for (owner, me, state) in [
            (33, 0, State::Good),
            (33, 33, State::Good),
            (33, 7, State::Doubt),
            (0, 0, State::Doubt),
        ] {
            assert_eq!(owned("/e", owner, me, name).state, state, "{owner} {me}");
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
