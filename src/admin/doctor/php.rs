//! What only PHP can tell, or has to do: by one script that EspoCRM's user runs in EspoCRM's root.
//!
//! It keeps a client's TLS, with its store of authorities, and the resolving of names out of this
//! program, and sends by the very library that EspoCRM sends by.

use std::time::Duration;

use serde_json::{Value, json};

use super::report::Finding;
use crate::espocrm::{Installation, Script};

const SCRIPT: Script = Script {
    text: include_str!("doctor.php"),
    variable: "ESPOCRM_WEBSOCKET_DOCTOR",
    mark: "espocrm-websocket-doctor:",
    // More than the script's own deadlines together.
    timeout: Duration::from_secs(60),
};

/// Has the script do a task, and tells what came of it.
///
/// # Errors
/// Why it could not be done.
pub(super) fn ask(espocrm: &Installation, task: &Value, stop: &mut dyn FnMut() -> bool) -> Answer {
    SCRIPT.run(espocrm, task, stop)
}

/// What the script says.
pub(super) type Answer = Result<Value, String>;

/// Which PHP it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    pub version: String,
    pub opcache: bool,
    pub openssl: bool,
    /// The version of php-zmq, if it has it.
    pub zmq: Option<String>,
    pub ini: String,
    /// Where it looks for further `.ini` files.
    pub scanned: String,
    /// Directories of EspoCRM that its user cannot write.
    pub unwritable: Vec<String>,
}

impl About {
    pub(super) fn task() -> Value {
        json!({"task": "about"})
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

    /// Whether it is one that runs EspoCRM well.
    pub(super) fn judge(&self, php: &str, user: &str) -> Finding {
        let found = format!("PHP {} runs as {user}: {php}", self.version);
        if self.opcache {
            return Finding::good("php", found + ", with opcache");
        }
        let ini = if self.ini.is_empty() { "php.ini" } else { &self.ini };
        Finding::doubt(
            "php",
            found + ", without opcache",
            format!(
                "Each access check is run in a PHP process of its own, which costs ten times as \
                 much.\nInstall or enable opcache for the command line: zend_extension=opcache in \
                 {ini} or in {}.",
                if self.scanned.is_empty() { "a file beside it" } else { &self.scanned }
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn php_without_opcache_costs_more() {
        let answer = json!({
            "version": "8.2.1", "opcache": true, "openssl": true, "zmq": "1.1.3",
            "ini": "/etc/php.ini", "scanned": "/etc/php.d", "unwritable": ["data/cache", 7],
        });
        let about = About::of(&answer);
        assert_eq!(about.zmq.as_deref(), Some("1.1.3"));
        assert_eq!(about.unwritable, ["data/cache"]);
        assert!(about.judge("php", "www-data").is_good());
        let about = About { opcache: false, ..about };
        let finding = about.judge("php", "www-data");
        assert_eq!(finding.state, State::Doubt);
        assert!(finding.fix.contains("/etc/php.ini or in /etc/php.d"), "{}", finding.fix);
        assert_eq!(About::of(&json!(null)), About::default());
    }
}
