//! The names of users. The daemon knows only their ids, so one run of PHP per command reads the
//! names from EspoCRM.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::parse;
use crate::admin::client::{Client, Target};
use crate::admin::setup::service_user;
use crate::engine::limits::MAX_NAMES;
use crate::espocrm::{Installation, RunAs, Script};
use crate::platform::exit::{Exit, Result};
use crate::platform::sys;
use crate::settings::{Layers, Overrides};

/// The daemon's EspoCRM, if the command line names it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// EspoCRM's root directory.
    pub espocrm: Option<PathBuf>,
    /// The PHP CLI.
    pub php: Option<PathBuf>,
    /// The user who runs PHP.
    pub run_as: RunAs,
}

/// User names by id.
pub(super) type Names = Map<String, Json>;

const SCRIPT: Script = Script {
    text: include_str!("users.php"),
    variable: "ESPOCRM_WEBSOCKET_USERS",
    mark: "espocrm-websocket-users:",
    timeout: Duration::from_secs(15),
};

/// Bytes of an id; EspoCRM's ids have 17 to 36. [`MAX_NAMES`] ids fit into an environment variable.
const MAX_ID: usize = 64;

impl Site {
    /// The names of the users with these ids. The result omits unknown ids and all ids after the
    /// first [`MAX_NAMES`].
    ///
    /// # Errors
    /// If EspoCRM's users could not be read.
    pub fn names<'a>(
        &self,
        client: &Client,
        target: &Target,
        ids: impl Iterator<Item = &'a str>,
    ) -> Result<Names> {
        match ids_to_resolve(ids) {
            ids if ids.is_empty() => Ok(Names::new()),
            ids => self.query(client, target, &json!({ "ids": ids })),
        }
    }

    /// The id and the name of the user with this name. The database may ignore case.
    ///
    /// # Errors
    /// If EspoCRM's users could not be read.
    pub fn user_of(
        &self,
        client: &Client,
        target: &Target,
        name: &str,
    ) -> Result<Option<(String, String)>> {
        Ok(named(&self.query(client, target, &json!({ "name": name }))?, name))
    }

    fn query(&self, client: &Client, target: &Target, task: &Json) -> Result<Names> {
        let Some(espocrm) = self.installation(client, target)? else { return Ok(Names::new()) };
        let answer = SCRIPT.run(&espocrm, task, &mut || false);
        let root = espocrm.root().display();
        match answer {
            Ok(Json::Object(names)) => Ok(names),
            Ok(_) => Err(Exit::error(format!("EspoCRM in {root} returned an unexpected answer."))),
            Err(error) => {
                let error = error.trim_end_matches('.');
                Err(Exit::error(format!(
                    "The users of EspoCRM in {root} could not be read: {error}."
                )))
            }
        }
    }

    /// The EspoCRM that the daemon serves; the demo has none.
    fn installation(&self, client: &Client, target: &Target) -> Result<Option<Installation>> {
        let flags = Overrides {
            espocrm: self.espocrm.clone(),
            php: self.php.clone(),
            ..Overrides::default()
        };
        // With --control, the default configuration file may belong to another daemon.
        let none = || target.control.is_some().then(|| "/dev/null".into());
        let layers = Layers::new(flags, target.file().or_else(none))?
            .run_as(self.run_as.clone(), service_user);
        let php = layers.php().unwrap_or(Path::new("php"));
        let unknown = match layers.root() {
            Ok(root) => return Installation::new(root, php, layers.user()).map(Some),
            Err(unknown) => unknown,
        };
        // The daemon may belong to another user. PHP code from a directory that it names runs only
        // as the owner of that directory.
        if self.run_as != RunAs::default() || !is_trusted(client) {
            return Err(unknown);
        }
        let status = parse(&client.get("/status")?)?;
        let root = status.get("root").and_then(Json::as_str).map(Path::new);
        let root = root.filter(|root| root.is_absolute());
        root.map(|root| Installation::new(root, php, &self.run_as)).transpose()
    }
}

/// Whether PHP code from a directory that the daemon names may be run: root runs it as the owner of
/// the directory, any other user runs it as themselves.
fn is_trusted(client: &Client) -> bool {
    let peer = || sys::peer_user(UnixStream::connect(client.path())?.as_raw_fd());
    sys::is_root() || peer().is_ok_and(|user| user == 0 || user == sys::user())
}

fn ids_to_resolve<'a>(ids: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let is_id = |id: &&str| {
        (1..=MAX_ID).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // A set would make the program larger.
    let mut wanted = Vec::new();
    for id in ids.filter(is_id) {
        if wanted.len() < MAX_NAMES && !wanted.contains(&id) {
            wanted.push(id);
        }
    }
    wanted
}

/// The user with exactly this name, or else the only user found.
fn named(found: &Names, wanted: &str) -> Option<(String, String)> {
    let exact = found.iter().find(|(_, name)| name.as_str() == Some(wanted));
    let only = || found.iter().next().filter(|_| found.len() == 1);
    let (id, name) = exact.or_else(only)?;
    Some((id.clone(), name.as_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(json: &Json) -> Names {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn the_number_and_the_size_of_the_ids_are_bounded() {
        let long = "x".repeat(MAX_ID + 1);
        let odd = ["b", "a", "b", "", "\u{1b}", "a\"", &long, "6b030ec83f80db7ad", "a-b"];
        assert_eq!(ids_to_resolve(odd.into_iter()), ["b", "a", "6b030ec83f80db7ad", "a-b"]);
        let many: Vec<_> = (0..2 * MAX_NAMES).map(|number| format!("{number:064}")).collect();
        let task = json!({ "ids": ids_to_resolve(many.iter().map(String::as_str)) });
        assert_eq!(task["ids"].as_array().unwrap().len(), MAX_NAMES);
        // Linux allows 128 KiB.
        assert!(task.to_string().len() < 100_000);
    }

    #[test]
    fn a_name_must_be_unambiguous() {
        let is = |id: &str, name: &str| Some((id.to_owned(), name.to_owned()));
        let two = names(&json!({"1": "Ann", "2": "ann"}));
        assert_eq!(named(&two, "ann"), is("2", "ann"));
        assert_eq!(named(&two, "ANN"), None);
        let one = names(&json!({"1": "Ann"}));
        assert_eq!(named(&one, "ann"), is("1", "Ann"));
        for none in [json!({}), json!({"1": null}), json!({"1": 7})] {
            assert_eq!(named(&names(&none), "ann"), None);
        }
    }
}
