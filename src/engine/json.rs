//! Writes JSON field by field, and reads strings without copying.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

use serde::de::{Deserialize, Deserializer, Visitor};

use super::printable::printable_json;

/// An object or a list that is being written.
#[derive(Debug)]
pub struct Json {
    text: String,
    end: char,
    is_empty: bool,
}

impl Json {
    /// An empty object.
    #[must_use]
    pub fn object() -> Self {
        Self { text: "{".to_owned(), end: '}', is_empty: true }
    }

    /// An empty list.
    #[must_use]
    pub fn list() -> Self {
        Self { text: "[".to_owned(), end: ']', is_empty: true }
    }

    /// Adds a field with a string.
    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.field(name, &quoted(value))
    }

    /// Adds a field with a number, a boolean or a JSON text.
    pub fn field(&mut self, name: &str, value: &dyn Display) -> &mut Self {
        let _ = write!(self.separated(), "{}:{value}", quoted(name));
        self
    }

    /// Adds a string as an item.
    pub fn item(&mut self, value: &str) -> &mut Self {
        self.element(&quoted(value))
    }

    /// Adds a number or a JSON text as an item.
    pub fn element(&mut self, value: &dyn Display) -> &mut Self {
        let _ = write!(self.separated(), "{value}");
        self
    }

    /// Returns the complete JSON text.
    #[must_use]
    pub fn end(mut self) -> String {
        self.text.push(self.end);
        self.text
    }

    fn separated(&mut self) -> &mut String {
        if !std::mem::take(&mut self.is_empty) {
            self.text.push(',');
        }
        &mut self.text
    }
}

/// A JSON string of printable characters only, since administrators read it on a terminal.
fn quoted(text: &str) -> String {
    printable_json(&Quoted(text).to_string())
}

/// Formats a text as a JSON string.
pub(crate) struct Quoted<'a>(pub &'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self.0).map_err(|_| fmt::Error)?;
        f.write_str(&json)
    }
}

/// A JSON string, borrowed from the input unless it contains escapes. (The `Deserialize` of `Cow`
/// always copies.)
#[derive(PartialEq, Eq)]
pub(crate) struct Text<'a>(pub Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Str;

        impl<'de> Visitor<'de> for Str {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_lists_are_valid_json() {
        let mut inner = Json::list();
        inner.element(&1).item("\"\u{7}ä");
        let mut json = Json::object();
        json.text("a\n", "b").field("c", &true).field("d", &inner.end());
        assert_eq!(json.end(), r#"{"a\n":"b","c":true,"d":[1,"\"\u0007ä"]}"#);
        let mut json = Json::list();
        json.item("\u{9b}2J\u{7f}\u{202e}\u{e0001}");
        assert_eq!(json.end(), r#"["\u009b2J\u007f\u202e\udb40\udc01"]"#);
        assert_eq!((Json::object().end(), Json::list().end()), ("{}".into(), "[]".into()));
    }
}
