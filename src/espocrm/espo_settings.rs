//! The settings of an EspoCRM.

use std::fmt;

use serde_json::{Map, Value};

use crate::engine::espocrm::category::Categories;
use crate::engine::espocrm::entity_types::EntityTypes;
use crate::engine::espocrm::version::Version;
use crate::engine::printable::printable;

/// EspoCRM's version, configuration and categories, as its own code reads them.
#[derive(Clone, PartialEq)]
pub struct EspoSettings {
    /// EspoCRM's version.
    pub version: Version,
    /// The version of the PHP that ran the probe.
    pub php: String,
    /// Whether that PHP has opcache.
    pub opcache: bool,
    /// Metadata `app.webSocket.categories`.
    pub categories: Categories,
    /// The entity types; unknown if EspoCRM's cache is off, since changes would not be detected.
    pub entity_types: EntityTypes,
    parameters: Map<String, Value>,
}

/// The prefix of the result line in the probe's output.
const MARK: &[u8] = b"espocrm-websocket-probe:";

/// The prefix of the line with which a PHP other than the command line reports its SAPI instead.
const SAPI_MARK: &[u8] = b"espocrm-websocket-sapi:";

impl EspoSettings {
    /// Parses the output of the probe, which may contain other lines. `None` without a valid
    /// result.
    #[must_use]
    pub fn from_output(output: &[u8]) -> Option<Self> {
        let mut lines =
            output.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(MARK));
        let mut espo_settings: Value = serde_json::from_slice(lines.next_back()?).ok()?;
        let mut take = |name| espo_settings.get_mut(name).map(Value::take).unwrap_or_default();
        let Value::Object(parameters) = take("parameters") else { return None };
        let php = text(&take("php")).unwrap_or_default();
        let opcache = take("opcache") == Value::Bool(true);
        let entity_types = EntityTypes::from_json(&take("entityTypes"));
        Some(Self { php, opcache, entity_types, ..Self::new(parameters, &take("categories")) })
    }

    /// The SAPI that a PHP other than the command line has reported in the probe's output. A CGI
    /// binary also prints HTTP headers.
    #[must_use]
    pub fn wrong_sapi(output: &[u8]) -> Option<String> {
        let mut lines = output.split(|byte| *byte == b'\n');
        let name = lines.find_map(|line| line.strip_prefix(SAPI_MARK))?.trim_ascii();
        let name = name.get(..name.len().min(32)).unwrap_or_default();
        Some(printable(&String::from_utf8_lossy(name)))
    }

    /// The settings of an EspoCRM with these parameters and categories.
    #[must_use]
    pub fn new(parameters: Map<String, Value>, categories: &Value) -> Self {
        let version = parameters.get("version").and_then(text).unwrap_or_default();
        Self {
            version: Version::new(&version),
            php: String::new(),
            opcache: false,
            categories: Categories::from_json(categories),
            entity_types: EntityTypes::default(),
            parameters,
        }
    }

    /// A parameter of EspoCRM's configuration as text; `None` if it is empty or of another type.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        self.parameters.get(name).and_then(text)
    }

    /// A parameter as text with its white space.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<String> {
        match self.parameters.get(name)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            other => text(other),
        }
    }

    /// Whether EspoCRM's configuration has this parameter.
    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        self.parameters.get(name).is_some_and(|value| !value.is_null())
    }

    /// A parameter converted to a boolean as PHP does.
    #[must_use]
    pub fn is_true(&self, name: &str) -> bool {
        match self.parameters.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => *value,
            Some(Value::Number(value)) => value.as_f64() != Some(0.0),
            Some(Value::String(value)) => !matches!(&**value, "" | "0"),
            Some(Value::Array(value)) => !value.is_empty(),
            Some(Value::Object(value)) => !value.is_empty(),
        }
    }
}

/// Omits the parameters, since one of them is a secret.
impl fmt::Debug for EspoSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, php, opcache, categories, entity_types, parameters: _ } = self;
        f.debug_struct("EspoSettings")
            .field("version", version)
            .field("php", php)
            .field("opcache", opcache)
            .field("categories", categories)
            .field("entity_types", entity_types)
            .finish_non_exhaustive()
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn espo_settings(parameters: &Value) -> EspoSettings {
        let json = json!({"php": "8.2.0", "parameters": parameters, "categories": []});
        let output = format!("Warning: x\n\nespocrm-websocket-probe:{json}\n");
        EspoSettings::from_output(output.as_bytes()).unwrap()
    }

    #[test]
    fn the_result_line_is_found_among_other_output() {
        let output = br#"
Deprecated: something in /var/www/html/x.php on line 3
espocrm-websocket-probe:{"parameters":[],"categories":{}}
espocrm-websocket-probe:{"php":"7.4.33","parameters":{"version":"9.2.7"},"categories":{"a":[]}}
after"#;
        let espo_settings = EspoSettings::from_output(output).unwrap();
        assert_eq!((espo_settings.version, &*espo_settings.php), (Version::new("9.2.7"), "7.4.33"));
        assert_eq!(espo_settings.categories.iter().count(), 1);
    }

    #[test]
    fn a_php_other_than_the_command_line_reports_its_sapi() {
        for output in [
            &b"X-Powered-By: PHP/8.2\r\nContent-type: text/html\r\n\r\n\nespocrm-websocket-sapi:cgi-fcgi\n"[..],
            b"espocrm-websocket-sapi: cgi-fcgi\r\n",
        ] {
            assert_eq!(EspoSettings::wrong_sapi(output).as_deref(), Some("cgi-fcgi"));
            assert_eq!(EspoSettings::from_output(output), None);
        }
        assert_eq!(EspoSettings::wrong_sapi(b"\nespocrm-websocket-probe:{}"), None);
        assert_eq!(EspoSettings::wrong_sapi(b"x espocrm-websocket-sapi:cgi"), None);
        let quoted = [SAPI_MARK, b"it's \"x\""].concat();
        assert_eq!(EspoSettings::wrong_sapi(&quoted).as_deref(), Some("it's \"x\""));
        let long = [SAPI_MARK, &[0x1b; 100]].concat();
        assert_eq!(EspoSettings::wrong_sapi(&long).unwrap(), "\\u{1b}".repeat(32));
    }

    #[test]
    fn invalid_output_gives_no_settings() {
        for output in [
            &b""[..],
            b"espocrm-websocket-probe:",
            b"espocrm-websocket-probe:{",
            b"espocrm-websocket-probe:null",
            b"espocrm-websocket-probe:{\"parameters\":7}",
            b" espocrm-websocket-probe:{\"parameters\":{}}",
            b"espocrm-websocket-probe:{\"parameters\":{},\"x\":\"\xff\"}",
        ] {
            assert_eq!(EspoSettings::from_output(output), None);
        }
    }

    #[test]
    fn debug_output_contains_no_secret() {
        let espo_settings = espo_settings(&json!({"webSocketSslCertificatePassphrase": "tiger"}));
        assert_eq!(
            espo_settings.secret("webSocketSslCertificatePassphrase").as_deref(),
            Some("tiger")
        );
        assert!(!format!("{espo_settings:?}").contains("tiger"));
    }

    #[test]
    fn values_are_converted_as_loosely_as_in_php() {
        let espo_settings = espo_settings(&json!({
            "number": 8080, "text": " 8080 ", "empty": "", "null": null, "zero": 0,
            "zeroText": "0", "yes": true, "no": false, "list": [1], "none": [], "word": "false",
        }));
        for (name, expected) in [
            ("number", Some("8080")),
            ("text", Some("8080")),
            ("zero", Some("0")),
            ("empty", None),
            ("null", None),
            ("yes", None),
            ("list", None),
            ("missing", None),
        ] {
            assert_eq!(espo_settings.text(name).as_deref(), expected, "{name}");
        }
        for name in ["number", "text", "yes", "list", "word"] {
            assert!(espo_settings.is_true(name), "{name}");
        }
        for name in ["empty", "null", "zero", "zeroText", "no", "none", "missing"] {
            assert!(!espo_settings.is_true(name), "{name}");
        }
    }
}
