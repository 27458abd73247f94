//! Turns the command template of EspoCRM's metadata into the argument vector of an access check.

use std::fmt;

use crate::engine::printable::Printable;

/// A category's `accessCheckCommand`, for instance
/// `AclCheck --userId=:userId --scope=:scope --id=:id --action=read`.
///
/// The template is split into words once; values are inserted into the words literally. They are
/// never parsed, so they cannot add a word, an option or a placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    words: Vec<Vec<Piece>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    UserId,
    /// The parameter of this index in the category's `paramList`.
    Parameter(usize),
}

/// Why a command cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadCommand {
    /// It contains a character that requires a shell.
    Shell(char),
    /// A quotation mark is not closed.
    Unclosed,
    /// The first word is an option, or contains a placeholder that users could choose.
    NoName,
}

impl fmt::Display for BadCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shell(c) => {
                write!(
                    f,
                    "it contains '{}', but commands are not run through a shell",
                    Printable(c)
                )
            }
            Self::Unclosed => f.write_str("a quotation mark is not closed"),
            Self::NoName => f.write_str("it does not begin with the name of a command"),
        }
    }
}

impl Template {
    /// Parses a command. `parameters` are the names of the category's `paramList`; `:userId` and
    /// `:name` for each of them are placeholders, any other colon is an ordinary character.
    ///
    /// # Errors
    /// [`BadCommand`]; the topics of such a category must be rejected.
    pub fn parse(command: &str, parameters: &[String]) -> Result<Self, BadCommand> {
        let words = split(command)?;
        let words: Vec<Vec<Piece>> = words.iter().map(|word| pieces(word, parameters)).collect();
        match words.first().map(Vec::as_slice) {
            Some([Piece::Literal(name)]) if !name.starts_with('-') => Ok(Self { words }),
            _ => Err(BadCommand::NoName),
        }
    }

    /// The name of EspoCRM's console command.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.words.first().map(Vec::as_slice) {
            Some([Piece::Literal(name)]) => name,
            _ => "",
        }
    }

    /// The argument vector for this user and these parameters, which must be as many as the
    /// category has.
    #[must_use]
    pub fn arguments(&self, user: &str, parameters: &[&str]) -> Box<[Box<str>]> {
        let value = |piece: &'_ Piece| match piece {
            Piece::Literal(text) => text.clone(),
            Piece::UserId => user.to_owned(),
            Piece::Parameter(index) => parameters.get(*index).copied().unwrap_or("").to_owned(),
        };
        let words = self.words.iter();
        words.map(|word| word.iter().map(value).collect::<String>().into_boxed_str()).collect()
    }
}

/// Splits at white space like a shell, respecting `'…'` and `"…"`.
fn split(command: &str) -> Result<Vec<String>, BadCommand> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in command.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_ascii_whitespace() => words.extend(word.take()),
            (Some('\''), _) => word.get_or_insert_default().push(c),
            (_, '$' | '`' | '\\') => return Err(BadCommand::Shell(c)),
            (None, '|' | '&' | ';' | '<' | '>' | '(' | ')' | '*' | '?' | '#' | '~') => {
                return Err(BadCommand::Shell(c));
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(BadCommand::Unclosed);
    }
    words.extend(word);
    Ok(words)
}

fn pieces(word: &str, parameters: &[String]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once(':') {
        literal.push_str(before);
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, after_name) = after.split_at(end.unwrap_or(after.len()));
        let placeholder = match name {
            "userId" => Some(Piece::UserId),
            _ => parameters.iter().position(|parameter| parameter == name).map(Piece::Parameter),
        };
        if let Some(piece) = placeholder {
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(piece);
        } else {
            literal.push(':');
            literal.push_str(name);
        }
        rest = after_name;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(command: &str, names: &[&str], user: &str, values: &[&str]) -> Vec<String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let template = Template::parse(command, &names).unwrap();
        template.arguments(user, values).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn commands_of_espocrm_itself() {
        assert_eq!(
            arguments(
                "AclCheck --userId=:userId --scope=:scope --id=:id --action=read",
                &["scope", "id"],
                "u1",
                &["Account", "6b0"]
            ),
            ["AclCheck", "--userId=u1", "--scope=Account", "--id=6b0", "--action=read"]
        );
        assert_eq!(
            arguments("AclCheck --userId=:userId --scope=Calendar", &[], "u1", &[]),
            ["AclCheck", "--userId=u1", "--scope=Calendar"]
        );
    }

    #[test]
    fn values_are_not_parsed_again() {
        assert_eq!(
            arguments("Check :a :b :userId", &["a", "b"], ":a", &[":b --x", ":userId"]),
            ["Check", ":b --x", ":userId", ":a"]
        );
    }

    #[test]
    fn a_placeholder_is_the_longest_name() {
        assert_eq!(
            arguments("C --x=:idList,:id,:id.:userIdX :", &["id", "idList"], "u", &["1", "2"]),
            ["C", "--x=2,1,1.:userIdX", ":"]
        );
        assert_eq!(
            arguments("C 10:30 http://h/:id :other", &["id"], "u", &["1"]),
            ["C", "10:30", "http://h/1", ":other"]
        );
    }

    #[test]
    fn quotes_keep_words_together() {
        assert_eq!(
            arguments("  C\t--a=\":id x\"  '$b' \"\" d''e ", &["id"], "u", &["1"]),
            ["C", "--a=1 x", "$b", "", "de"]
        );
    }

    #[test]
    fn commands_that_need_a_shell_or_have_no_name_are_rejected() {
        for (command, error) in [
            ("C $HOME", BadCommand::Shell('$')),
            ("C \"`id`\"", BadCommand::Shell('`')),
            ("C; rm", BadCommand::Shell(';')),
            ("C > x", BadCommand::Shell('>')),
            ("C a\\ b", BadCommand::Shell('\\')),
            ("C 'a", BadCommand::Unclosed),
            ("C \"", BadCommand::Unclosed),
            ("", BadCommand::NoName),
            ("  ", BadCommand::NoName),
            ("''", BadCommand::NoName),
            ("--x", BadCommand::NoName),
            (":userId", BadCommand::NoName),
            ("x:id", BadCommand::NoName),
        ] {
            assert_eq!(Template::parse(command, &["id".into()]), Err(error), "{command}");
        }
    }
}
