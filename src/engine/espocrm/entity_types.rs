//! EspoCRM's entity types: checks of records of unknown types need not be run.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::engine::checks::check::Check;
use crate::engine::limits::{MAX_ENTITY_TYPES, MAX_PARAMETER};

/// The entity types of an EspoCRM, if they are known.
///
/// For a record of an unknown type, EspoCRM's check does not deny access but fails, as it does
/// without a database. Any user can request such a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityTypes(Option<BTreeSet<Box<str>>>);

impl EntityTypes {
    /// Parses a list of names. If it is anything else, empty or too long, the types are unknown.
    #[must_use]
    pub fn from_json(json: &Value) -> Self {
        let names = json.as_array().filter(|names| (1..=MAX_ENTITY_TYPES).contains(&names.len()));
        let Some(names) = names else { return Self(None) };
        // Collecting into a set would add a sort to the binary.
        let mut types = BTreeSet::new();
        for name in names {
            match name.as_str().filter(|name| name.len() <= MAX_PARAMETER) {
                Some(name) => types.insert(name.into()),
                None => return Self(None),
            };
        }
        Self(Some(types))
    }

    /// Whether a check is for a record of an unknown type: `AclCheck` with one `--scope` and one
    /// `--id`. Checks of a scope alone and commands of extensions are never excluded.
    #[must_use]
    pub fn exclude(&self, check: &Check) -> bool {
        let Some(types) = &self.0 else { return false };
        let option = |prefix| {
            let mut values = check.arguments.iter().filter_map(|word| word.strip_prefix(prefix));
            values.next().filter(|value| !value.is_empty() && values.next().is_none())
        };
        check.is_access()
            && option("--id=").is_some()
            && option("--scope=").is_some_and(|scope| !types.contains(scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(command: &str) -> Check {
        Check::topic("u", command.split(' ').map(Box::from).collect())
    }

    #[test]
    fn only_checks_of_records_of_unknown_types_are_excluded() {
        let types = EntityTypes::from_json(&json!(["Account", "CThing"]));
        for command in [
            "AclCheck --userId=u --scope=Nothing --id=1 --action=read",
            "acl-check --id=1 --scope=account",
        ] {
            assert!(types.exclude(&check(command)), "{command}");
        }
        for command in [
            "AclCheck --userId=u --scope=Account --id=1 --action=read",
            "AclCheck --userId=u --scope=CThing --id=1",
            "AclCheck --userId=u --scope=Calendar",
            "AclCheck --scope=Nothing --id=",
            "AclCheck --scope= --id=1",
            "AclCheck --scope=Nothing --scope=Account --id=1",
            "AclCheck --type=Nothing --id=1",
            "CustomCheck --scope=Nothing --id=1",
        ] {
            assert!(!types.exclude(&check(command)), "{command}");
        }
        assert!(!types.exclude(&Check::authentication("--scope=x", "--id=1")));
    }

    #[test]
    fn nothing_is_excluded_if_the_types_are_unknown() {
        let long = "x".repeat(MAX_PARAMETER + 1);
        let many: Vec<String> = (0..=MAX_ENTITY_TYPES).map(|number| number.to_string()).collect();
        for json in [
            json!(null),
            json!([]),
            json!({"Account": {}}),
            json!(["Account", 1]),
            json!(["Account", long]),
            json!(many),
        ] {
            let types = EntityTypes::from_json(&json);
            assert!(!types.exclude(&check("AclCheck --scope=Nothing --id=1")), "{json}");
        }
    }
}
