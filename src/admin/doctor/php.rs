//! Tasks for PHP: one script, run by EspoCRM's user in EspoCRM's root.
//!
//! The script keeps name resolution out of this program, and sends messages with the library that
//! EspoCRM uses.

use std::time::Duration;

use serde_json::{Value, json};

use super::report::Finding;
use crate::espocrm::{Installation, Script};

const SCRIPT: Script = Script {
    text: include_str!("doctor.php"),
    variable: "ESPOCRM_WEBSOCKET_DOCTOR",
    mark: "espocrm-websocket-doctor:",
    timeout: Duration::from_secs(60),
};

/// Runs a task and returns its result.
///
/// # Errors
/// If PHP could not run the task.
pub(super) fn run_task(
    espocrm: &Installation,
    task: &Value,
    stop: &mut dyn FnMut() -> bool,
) -> Answer {
    SCRIPT.run(espocrm, task, stop)
}

/// The result of a task.
pub(super) type Answer = Result<Value, String>;

/// The PHP that runs EspoCRM.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PhpInfo {
    pub version: String,
    pub opcache: bool,
    pub openssl: bool,
    /// The version of php-zmq, if it is loaded.
    pub zmq: Option<String>,
    pub ini: String,
    /// The directory of additional `.ini` files.
    pub scanned: String,
    /// Directories of EspoCRM that its user cannot write to.
    pub unwritable: Vec<String>,
}

impl PhpInfo {
    pub(super) fn task() -> Value {
        json!({"task": "info"})
    }

    pub(super) fn of(answer: &Value) -> Self {
        let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
        let truth = |name: &str| answer.get(name) == Some(&Value::Bool(true));
        let unwritable = answer.get("unwritable").and_then(Value::as_array);
        let unwritable = unwritable.into_iter().flatten().filter_map(Value::as_str);
        Self {
            version: text("version").to_owned(),
            opcache: truth("opcache"),
            openssl: truth("openssl"),
            zmq: answer.get("zmq").and_then(Value::as_str).map(str::to_owned),
            ini: text("ini").to_owned(),
            scanned: text("scanned").to_owned(),
            unwritable: unwritable.map(str::to_owned).collect(),
        }
    }

    /// Whether it is suitable for access checks.
    pub(super) fn judge(&self, php: &str, user: &str) -> Finding {
        let found = format!("PHP {} ({php}) runs as {user}", self.version);
        if self.opcache {
            return Finding::ok("php", found + ", with opcache");
        }
        let ini = if self.ini.is_empty() { "php.ini" } else { &self.ini };
        Finding::warning(
            "php",
            found + ", without opcache",
            format!(
                "Without it, each access check starts a PHP process, which costs ten times as \
                 much.\nInstall or enable opcache for the PHP CLI: zend_extension=opcache in \
                 {ini} or in {}.",
                if self.scanned.is_empty() {
                    "a file in the same directory"
                } else {
                    &self.scanned
                }
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn php_without_opcache_is_a_warning() {
        let answer = json!({
            "version": "8.2.1", "opcache": true, "openssl": true, "zmq": "1.1.3",
            "ini": "/etc/php.ini", "scanned": "/etc/php.d", "unwritable": ["data/cache", 7],
        });
        let info = PhpInfo::of(&answer);
        assert_eq!(info.zmq.as_deref(), Some("1.1.3"));
        assert_eq!(info.unwritable, ["data/cache"]);
        assert!(info.judge("php", "www-data").is_ok());
        let info = PhpInfo { opcache: false, ..info };
        let finding = info.judge("php", "www-data");
        assert_eq!(finding.state, State::Warning);
        assert!(finding.fix.contains("/etc/php.ini or in /etc/php.d"), "{}", finding.fix);
        assert_eq!(PhpInfo::of(&json!(null)), PhpInfo::default());
    }
}
