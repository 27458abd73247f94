//! EspoCRM's topic categories (metadata `app.webSocket.categories`) and their topics.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::engine::checks::command::{BadCommand, Template};
use crate::engine::limits::{MAX_PARAMETER, MAX_TOPIC};

/// All categories of an EspoCRM, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    by_name: BTreeMap<String, Category>,
    /// Length of the longest name in bytes.
    longest: usize,
}

/// One category.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// Names of the parameters that follow the category's name in a topic (`paramList`).
    pub parameters: Vec<String>,
    /// Who may subscribe.
    pub access: SubscribePolicy,
}

/// Who may subscribe to a category's topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubscribePolicy {
    /// Every authenticated user.
    Everyone,
    /// Users for whom this command grants access. The second field is the command's text.
    Checked(Template, String),
    /// No user, since the category's definition is invalid.
    Invalid(BadCategory),
}

/// Why a category's definition is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadCategory {
    /// `accessCheckCommand` cannot be run.
    Command(BadCommand),
    /// `accessCheckCommand` is not a string.
    CommandType,
    /// `paramList` is not a list of strings.
    ParameterType,
    /// The definition is not an object.
    Type,
}

impl fmt::Display for BadCategory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(error) => write!(f, "its accessCheckCommand cannot be run: {error}"),
            Self::CommandType => f.write_str("its accessCheckCommand is not a string"),
            Self::ParameterType => f.write_str("its paramList is not a list of names"),
            Self::Type => f.write_str("its definition is not an object"),
        }
    }
}

/// The check that is required before a user may subscribe to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule<'a> {
    /// No check.
    Open,
    /// This command with these parameters.
    Check(&'a Template, Vec<&'a str>),
}

/// Why a topic is invalid for this EspoCRM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidTopic {
    /// Over [`MAX_TOPIC`] bytes.
    TooLong,
    /// It belongs to no category.
    Unknown,
    /// A parameter is missing or malformed.
    BadParameter,
    /// The category's definition is invalid.
    Broken,
}

impl Categories {
    /// Parses the categories. PHP encodes any empty array as `[]`. Topics of a category with an
    /// invalid definition are rejected.
    #[must_use]
    pub fn from_json(json: &Value) -> Self {
        // Collecting into a map would add a sort to the binary.
        let mut by_name = BTreeMap::new();
        for (name, value) in json.as_object().into_iter().flatten() {
            if !name.is_empty() {
                by_name.insert(name.clone(), Category::from_json(value));
            }
        }
        Self::new(by_name)
    }

    fn new(by_name: BTreeMap<String, Category>) -> Self {
        let longest = by_name.keys().map(String::len).max().unwrap_or(0);
        Self { by_name, longest }
    }

    /// Replaces invalid definitions by those of `previous`.
    #[must_use]
    pub fn or_previous(mut self, previous: &Self) -> Self {
        for (name, category) in &mut self.by_name {
            if let (SubscribePolicy::Invalid(_), Some(valid)) =
                (&category.access, previous.by_name.get(name))
            {
                *category = valid.clone();
            }
        }
        self
    }

    /// Names and definitions, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Category)> {
        self.by_name.iter().map(|(name, category)| (name.as_str(), category))
    }

    /// The names of the console commands that check access to topics.
    pub fn commands(&self) -> impl Iterator<Item = &str> {
        self.by_name.values().filter_map(|category| match &category.access {
            SubscribePolicy::Checked(template, _) => Some(template.name()),
            SubscribePolicy::Everyone | SubscribePolicy::Invalid(_) => None,
        })
    }

    /// The name of the category that a topic belongs to.
    #[must_use]
    pub fn name_of(&self, topic: &str) -> Option<&str> {
        let rest = self.find(topic)?.1.map_or(0, |rest| rest.len() + 1);
        let name = topic.get(..topic.len() - rest)?;
        self.by_name.get_key_value(name).map(|(name, _)| name.as_str())
    }

    /// Finds the rule for a topic. A topic is the name of a category followed by its parameters,
    /// separated by dots; further segments are part of the topic but not of the check. Names may
    /// contain dots: the longest match takes precedence.
    ///
    /// # Errors
    /// [`InvalidTopic`]; such a topic must neither be checked nor granted.
    pub fn rule<'a>(&'a self, topic: &'a str) -> Result<Rule<'a>, InvalidTopic> {
        if topic.len() > MAX_TOPIC {
            return Err(InvalidTopic::TooLong);
        }
        let (category, rest) = self.find(topic).ok_or(InvalidTopic::Unknown)?;
        let mut segments = rest.map(|rest| rest.split('.')).into_iter().flatten();
        let mut parameters = Vec::with_capacity(category.parameters.len());
        for _ in &category.parameters {
            let segment = segments.next().filter(|segment| is_parameter(segment));
            parameters.push(segment.ok_or(InvalidTopic::BadParameter)?);
        }
        match &category.access {
            SubscribePolicy::Everyone => Ok(Rule::Open),
            SubscribePolicy::Checked(template, _) => Ok(Rule::Check(template, parameters)),
            SubscribePolicy::Invalid(_) => Err(InvalidTopic::Broken),
        }
    }

    /// The category with the longest name that is a prefix of `topic`, and the part after its dot.
    fn find<'a>(&'a self, topic: &'a str) -> Option<(&'a Category, Option<&'a str>)> {
        if let Some(category) = self.by_name.get(topic) {
            return Some((category, None));
        }
        let dots = topic.rmatch_indices('.').map(|(at, _)| at);
        dots.skip_while(|at| *at > self.longest)
            .find_map(|at| Some((self.by_name.get(topic.get(..at)?)?, topic.get(at + 1..))))
    }
}

impl Category {
    fn from_json(json: &Value) -> Self {
        match Self::try_from_json(json) {
            Ok(category) => category,
            Err(error) => Self { parameters: Vec::new(), access: SubscribePolicy::Invalid(error) },
        }
    }

    fn try_from_json(json: &Value) -> Result<Self, BadCategory> {
        let field = |name: &str| match json {
            Value::Object(fields) => Ok(fields.get(name).unwrap_or(&Value::Null)),
            Value::Array(items) if items.is_empty() => Ok(&Value::Null),
            Value::Null => Ok(&Value::Null),
            _ => Err(BadCategory::Type),
        };
        let parameters = match field("paramList")? {
            Value::Null => Vec::new(),
            Value::Array(items) => {
                items.iter().map(name).collect::<Option<_>>().ok_or(BadCategory::ParameterType)?
            }
            _ => return Err(BadCategory::ParameterType),
        };
        let access = match field("accessCheckCommand")? {
            // Values that are false in PHP.
            Value::Null | Value::Bool(false) => SubscribePolicy::Everyone,
            Value::String(command) if command.is_empty() => SubscribePolicy::Everyone,
            Value::String(command) => {
                let template = Template::parse(command, &parameters);
                SubscribePolicy::Checked(template.map_err(BadCategory::Command)?, command.clone())
            }
            _ => return Err(BadCategory::CommandType),
        };
        Ok(Self { parameters, access })
    }
}

fn name(json: &Value) -> Option<String> {
    json.as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Letters, digits, `_` and `-`, but not the beginning of an option.
fn is_parameter(segment: &str) -> bool {
    (1..=MAX_PARAMETER).contains(&segment.len())
        && !segment.starts_with('-')
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// The default categories of EspoCRM 9.3.
    pub(crate) fn out_of_the_box() -> Categories {
        let check = |action: &str| {
            format!("AclCheck --userId=:userId --scope=:scope --id=:id --action={action}")
        };
        Categories::from_json(&json!({
            "newNotification": [],
            "appParamsUpdate": {},
            "popupNotifications.event": {},
            "streamUpdate": {"paramList": ["scope", "id"], "accessCheckCommand": check("stream")},
            "recordUpdate": {"paramList": ["scope", "id"], "accessCheckCommand": check("read")},
            "calendarUpdate": {"accessCheckCommand": "AclCheck --userId=:userId --scope=Calendar"},
        }))
    }

    fn command(categories: &Categories, topic: &str) -> Result<Option<String>, InvalidTopic> {
        Ok(match categories.rule(topic)? {
            Rule::Open => None,
            Rule::Check(template, parameters) => {
                Some(template.arguments("u", &parameters).join(" "))
            }
        })
    }

    #[test]
    fn topics_of_espocrm_have_their_rules() {
        let categories = out_of_the_box();
        for topic in [
            "newNotification",
            "popupNotifications.event",
            "appParamsUpdate",
            "newNotification.anything.é #1",
        ] {
            assert_eq!(command(&categories, topic), Ok(None), "{topic}");
        }
        for (topic, arguments) in [
            (
                "recordUpdate.Account.6b0",
                "AclCheck --userId=u --scope=Account --id=6b0 --action=read",
            ),
            (
                "streamUpdate.C_X.0f8f-1.more.of it",
                "AclCheck --userId=u --scope=C_X --id=0f8f-1 --action=stream",
            ),
            ("calendarUpdate", "AclCheck --userId=u --scope=Calendar"),
        ] {
            assert_eq!(command(&categories, topic), Ok(Some(arguments.into())), "{topic}");
        }
    }

    #[test]
    fn other_topics_are_rejected() {
        let categories = out_of_the_box();
        let long = format!("newNotification.{}", "x".repeat(MAX_TOPIC));
        let parameter = format!("recordUpdate.Account.{}", "x".repeat(MAX_PARAMETER + 1));
        for (topic, error) in [
            ("", InvalidTopic::Unknown),
            (".", InvalidTopic::Unknown),
            ("unknown", InvalidTopic::Unknown),
            ("newNotificatio", InvalidTopic::Unknown),
            ("newNotifications", InvalidTopic::Unknown),
            ("popupNotifications", InvalidTopic::Unknown),
            ("popupNotifications.other", InvalidTopic::Unknown),
            ("recordUpdate", InvalidTopic::BadParameter),
            ("recordUpdate.Account", InvalidTopic::BadParameter),
            ("recordUpdate.Account.", InvalidTopic::BadParameter),
            ("recordUpdate..1", InvalidTopic::BadParameter),
            ("recordUpdate.Account.-1", InvalidTopic::BadParameter),
            ("recordUpdate.Account.1 --x", InvalidTopic::BadParameter),
            ("recordUpdate.Account.é", InvalidTopic::BadParameter),
            ("recordUpdate.Account.1\0", InvalidTopic::BadParameter),
            ("recordUpdate.Account.:userId", InvalidTopic::BadParameter),
            (&parameter, InvalidTopic::BadParameter),
            (&long, InvalidTopic::TooLong),
        ] {
            assert_eq!(categories.rule(topic), Err(error), "{topic}");
        }
    }

    #[test]
    fn the_longest_name_takes_precedence() {
        let categories = Categories::from_json(&json!({
            "a": {"paramList": ["x"], "accessCheckCommand": "A :x"},
            "a.b": {"paramList": ["x", "y"], "accessCheckCommand": "B :x :y"},
            "a.b.c": {"accessCheckCommand": "C"},
        }));
        for (topic, expected) in [
            ("a.1", Ok("A 1")),
            ("a.b", Err(InvalidTopic::BadParameter)),
            ("a.b.1", Err(InvalidTopic::BadParameter)),
            ("a.b.1.2", Ok("B 1 2")),
            ("a.b.c", Ok("C")),
            ("a.b.c.d", Ok("C")),
            ("a.bb.c", Ok("A bb")),
        ] {
            let expected = expected.map(|command| Some(command.to_owned()));
            assert_eq!(command(&categories, topic), expected, "{topic}");
        }
    }

    #[test]
    fn topics_of_an_invalid_category_are_rejected() {
        let categories = Categories::from_json(&json!({
            "shell": {"accessCheckCommand": "A; B"},
            "number": {"accessCheckCommand": 7},
            "array": {"accessCheckCommand": ["A"]},
            "true": {"accessCheckCommand": true},
            "text": "x",
            "list": ["x"],
            "params": {"paramList": "x"},
            "paramType": {"paramList": [1]},
            "": {},
        }));
        assert_eq!(categories.iter().count(), 8);
        for (name, _) in categories.iter() {
            assert_eq!(categories.rule(name), Err(InvalidTopic::Broken), "{name}");
        }
        assert_eq!(categories.rule(""), Err(InvalidTopic::Unknown));
    }

    #[test]
    fn a_command_that_is_false_in_php_means_no_check() {
        let categories = Categories::from_json(&json!({
            "a": null, "b": [], "c": {}, "d": {"accessCheckCommand": null, "paramList": []},
            "e": {"accessCheckCommand": ""}, "f": {"accessCheckCommand": false, "x": 1},
        }));
        for name in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(categories.rule(name), Ok(Rule::Open), "{name}");
        }
    }

    #[test]
    fn any_json_is_accepted() {
        for json in [json!(null), json!([]), json!("x"), json!(7), json!([1])] {
            assert_eq!(Categories::from_json(&json), Categories::default());
        }
    }

    #[test]
    fn a_category_that_becomes_invalid_keeps_its_previous_definition() {
        let previous = Categories::from_json(&json!({"a": {"accessCheckCommand": "A"}, "b": {}}));
        let new = Categories::from_json(&json!({
            "a": {"accessCheckCommand": "A | B"}, "c": {"paramList": 1},
        }))
        .or_previous(&previous);
        assert_eq!(command(&new, "a"), Ok(Some("A".into())));
        assert_eq!(new.rule("b"), Err(InvalidTopic::Unknown));
        assert_eq!(new.rule("c"), Err(InvalidTopic::Broken));
    }
}
