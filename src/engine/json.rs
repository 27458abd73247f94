//! JSON as it is written: a few fields at a time, in their order.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

use serde::de::{Deserialize, Deserializer, Visitor};

use super::printable::printable_json;

/// An object, or a list, that is being written.
#[derive(Debug)]
pub struct Json {
    text: String,
    end: char,
    is_empty: bool,
}

impl Json {
    /// An object without fields.
    #[must_use]
    pub fn object() -> Self {
        Self { text: "{".to_owned(), end: '}', is_empty: true }
    }

    /// A list without items.
    #[must_use]
    pub fn list() -> Self {
        Self { text: "[".to_owned(), end: ']', is_empty: true }
    }

    /// Adds a field that is a text.
    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.field(name, &quoted(value))
    }

    /// Adds a field that is a number, a truth value, or JSON already.
    pub fn field(&mut self, name: &str, value: &dyn Display) -> &mut Self {
        let _ = write!(self.separated(), "{}:{value}", quoted(name));
        self
    }

    /// Adds an item that is a text.
    pub fn item(&mut self, value: &str) -> &mut Self {
        self.element(&quoted(value))
    }

    /// Adds an item that is a number or JSON already.
    pub fn element(&mut self, value: &dyn Display) -> &mut Self {
        let _ = write!(self.separated(), "{value}");
        self
    }

    /// The whole of it.
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

/// A JSON string, of printable characters only: administrators read it on a terminal.
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

/// A JSON string, borrowed from the input unless it holds escapes. (`Cow`'s own `Deserialize`
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
    fn it_is_written_as_json() {
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
