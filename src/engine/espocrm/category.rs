//! EspoCRM's topic categories (metadata `app.webSocket.categories`) and the topics that are of
//! them.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::engine::checks::command::{BadCommand, Template};
use crate::engine::limits::{MAX_PARAMETER, MAX_TOPIC};

/// All categories of an EspoCRM, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    by_name: BTreeMap<String, Category>,
    /// Bytes of the longest name.
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
    Everybody,
    /// Whom this command allows.
    Checked(Template, String),
    /// Nobody: the category's definition is broken.
    Nobody(BadCategory),
}

/// What is wrong with a category's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadCategory {
    /// `accessCheckCommand` cannot be run.
    Command(BadCommand),
    /// `accessCheckCommand` is not a text.
    CommandType,
    /// `paramList` is not a list of texts.
    ParameterType,
    /// The definition is not an object.
    Type,
}

impl fmt::Display for BadCategory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(error) => write!(f, "its accessCheckCommand cannot be run: {error}"),
            Self::CommandType => f.write_str("its accessCheckCommand is not a text"),
            Self::ParameterType => f.write_str("its paramList is not a list of names"),
            Self::Type => f.write_str("its definition is not an object"),
        }
    }
}

/// What has to be asked before a user may see a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule<'a> {
    /// Nothing.
    Open,
    /// This command with these parameters.
    Check(&'a Template, Vec<&'a str>),
}

/// Why a topic is no topic of this EspoCRM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTopic {
    /// Over [`MAX_TOPIC`] bytes.
    TooLong,
    /// No category has its name.
    Unknown,
    /// A parameter is missing or not well-formed.
    BadParameter,
    /// The category's definition is broken.
    Broken,
}

impl Categories {
    /// Reads the categories from JSON. An empty PHP array is encoded as `[]`, whatever it was
    /// meant to be; a category whose definition is broken is served to nobody.
    #[must_use]
    pub fn from_json(json: &Value) -> Self {
        let entries = json.as_object().into_iter().flatten();
        let by_name: BTreeMap<String, Category> = entries
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.clone(), Category::from_json(value)))
            .collect();
        Self::new(by_name)
    }

    fn new(by_name: BTreeMap<String, Category>) -> Self {
        let longest = by_name.keys().map(String::len).max().unwrap_or(0);
        Self { by_name, longest }
    }

    /// These categories, with the definitions of `old` in the place of those that are broken.
    #[must_use]
    pub fn or_old(mut self, old: &Self) -> Self {
        for (name, category) in &mut self.by_name {
            if let (SubscribePolicy::Nobody(_), Some(old)) =
                (&category.access, old.by_name.get(name))
            {
                *category = old.clone();
            }
        }
        self
    }

    /// Name and definition of each, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Category)> {
        self.by_name.iter().map(|(name, category)| (name.as_str(), category))
    }

    /// The names of the console commands that check access to topics.
    pub fn commands(&self) -> impl Iterator<Item = &str> {
        self.by_name.values().filter_map(|category| match &category.access {
            SubscribePolicy::Checked(template, _) => Some(template.name()),
            SubscribePolicy::Everybody | SubscribePolicy::Nobody(_) => None,
        })
    }

    /// The name of the category that a topic is of.
    #[must_use]
    pub fn name_of(&self, topic: &str) -> Option<&str> {
        let rest = self.find(topic)?.1.map_or(0, |rest| rest.len() + 1);
        let name = topic.get(..topic.len() - rest)?;
        self.by_name.get_key_value(name).map(|(name, _)| name.as_str())
    }

    /// Finds what has to be asked for a topic. A topic is a category's name, then its parameters,
    /// separated by dots; whatever follows them just makes another topic. Names may hold dots: the
    /// longest one counts.
    ///
    /// # Errors
    /// [`NoTopic`]; nothing may be run or granted for such a topic.
    pub fn rule<'a>(&'a self, topic: &'a str) -> Result<Rule<'a>, NoTopic> {
        if topic.len() > MAX_TOPIC {
            return Err(NoTopic::TooLong);
        }
        let (category, rest) = self.find(topic).ok_or(NoTopic::Unknown)?;
        let mut segments = rest.map(|rest| rest.split('.')).into_iter().flatten();
        let mut parameters = Vec::with_capacity(category.parameters.len());
        for _ in &category.parameters {
            let segment = segments.next().filter(|segment| is_parameter(segment));
            parameters.push(segment.ok_or(NoTopic::BadParameter)?);
        }
        match &category.access {
            SubscribePolicy::Everybody => Ok(Rule::Open),
            SubscribePolicy::Checked(template, _) => Ok(Rule::Check(template, parameters)),
            SubscribePolicy::Nobody(_) => Err(NoTopic::Broken),
        }
    }

    /// The category with the longest name that begins `topic`, and what follows its dot.
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
            Err(error) => Self { parameters: Vec::new(), access: SubscribePolicy::Nobody(error) },
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
            // What PHP takes for false.
            Value::Null | Value::Bool(false) => SubscribePolicy::Everybody,
            Value::String(command) if command.is_empty() => SubscribePolicy::Everybody,
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

/// Letters, digits, `_` and `-`, and not the beginning of an option.
fn is_parameter(segment: &str) -> bool {
    (1..=MAX_PARAMETER).contains(&segment.len())
        && !segment.starts_with('-')
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// The categories of EspoCRM 9.3.
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

    fn command(categories: &Categories, topic: &str) -> Result<Option<String>, NoTopic> {
        Ok(match categories.rule(topic)? {
            Rule::Open => None,
            Rule::Check(template, parameters) => {
                Some(template.arguments("u", &parameters).join(" "))
            }
        })
    }

    #[test]
    fn the_topics_of_espocrm() {
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
    fn other_topics_are_refused() {
        let categories = out_of_the_box();
        let long = format!("newNotification.{}", "x".repeat(MAX_TOPIC));
        let parameter = format!("recordUpdate.Account.{}", "x".repeat(MAX_PARAMETER + 1));
        for (topic, error) in [
            ("", NoTopic::Unknown),
            (".", NoTopic::Unknown),
            ("unknown", NoTopic::Unknown),
            ("newNotificatio", NoTopic::Unknown),
            ("newNotifications", NoTopic::Unknown),
            ("popupNotifications", NoTopic::Unknown),
            ("popupNotifications.other", NoTopic::Unknown),
            ("recordUpdate", NoTopic::BadParameter),
            ("recordUpdate.Account", NoTopic::BadParameter),
            ("recordUpdate.Account.", NoTopic::BadParameter),
            ("recordUpdate..1", NoTopic::BadParameter),
            ("recordUpdate.Account.-1", NoTopic::BadParameter),
            ("recordUpdate.Account.1 --x", NoTopic::BadParameter),
            ("recordUpdate.Account.é", NoTopic::BadParameter),
            ("recordUpdate.Account.1\0", NoTopic::BadParameter),
            ("recordUpdate.Account.:userId", NoTopic::BadParameter),
            (&parameter, NoTopic::BadParameter),
            (&long, NoTopic::TooLong),
        ] {
            assert_eq!(categories.rule(topic), Err(error), "{topic}");
        }
    }

    #[test]
    fn the_longest_name_counts() {
        let categories = Categories::from_json(&json!({
            "a": {"paramList": ["x"], "accessCheckCommand": "A :x"},
            "a.b": {"paramList": ["x", "y"], "accessCheckCommand": "B :x :y"},
            "a.b.c": {"accessCheckCommand": "C"},
        }));
        for (topic, expected) in [
            ("a.1", Ok("A 1")),
            ("a.b", Err(NoTopic::BadParameter)),
            ("a.b.1", Err(NoTopic::BadParameter)),
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
    fn a_broken_category_is_served_to_nobody() {
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
            assert_eq!(categories.rule(name), Err(NoTopic::Broken), "{name}");
        }
        assert_eq!(categories.rule(""), Err(NoTopic::Unknown));
    }

    #[test]
    fn php_falsehood_is_no_command() {
        let categories = Categories::from_json(&json!({
            "a": null, "b": [], "c": {}, "d": {"accessCheckCommand": null, "paramList": []},
            "e": {"accessCheckCommand": ""}, "f": {"accessCheckCommand": false, "x": 1},
        }));
        for name in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(categories.rule(name), Ok(Rule::Open), "{name}");
        }
    }

    #[test]
    fn categories_may_be_of_any_json() {
        for json in [json!(null), json!([]), json!("x"), json!(7), json!([1])] {
            assert_eq!(Categories::from_json(&json), Categories::default());
        }
    }

    #[test]
    fn a_category_that_breaks_keeps_its_old_definition() {
        let old = Categories::from_json(&json!({"a": {"accessCheckCommand": "A"}, "b": {}}));
        let new = Categories::from_json(&json!({
            "a": {"accessCheckCommand": "A | B"}, "c": {"paramList": 1},
        }))
        .or_old(&old);
        assert_eq!(command(&new, "a"), Ok(Some("A".into())));
        assert_eq!(new.rule("b"), Err(NoTopic::Unknown));
        assert_eq!(new.rule("c"), Err(NoTopic::Broken));
    }
}
