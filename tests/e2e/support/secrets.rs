//! Texts that must not be exposed, and that no log line may contain: the log of each daemon is
//! checked at its end, regardless of the test.

use std::collections::BTreeSet;
use std::sync::Mutex;

/// Every token and passphrase that any test has used so far.
static SECRETS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Registers a secret, unless it could also be an ordinary word.
pub fn register_secret(text: &str) {
    let is_plain = text.chars().all(|char| matches!(char, 'a'..='z' | ' ' | '-'));
    if text.len() >= 6 && !is_plain {
        SECRETS.lock().unwrap().insert(text.to_owned());
    }
}

/// Registers the token of a request.
pub fn register_token(request: &str) {
    if let Some((_, rest)) = request.split_once("authToken=") {
        register_secret(rest.split(['&', ' ', '#', '\r']).next().unwrap());
    }
}

/// Text for readers. Invalid UTF-8 becomes text that [`find_leak`] reports.
pub fn readable(bytes: Vec<u8>) -> String {
    let lossy = |bytes: &[u8]| format!("\0{}", String::from_utf8_lossy(bytes));
    String::from_utf8(bytes).unwrap_or_else(|error| lossy(error.as_bytes()))
}

/// What is wrong with a text for readers, if anything.
pub fn find_leak(text: &str) -> Option<String> {
    // For any user: the tokens of the stand-in begin like this.
    let usual = ["tok-".to_owned()];
    let secrets = SECRETS.lock().unwrap();
    let leaked = usual.iter().chain(&*secrets).find(|secret| text.contains(&**secret));
    if let Some(secret) = leaked {
        return Some(format!("the secret {secret:?} was exposed: {text}"));
    }
    let is_odd = |char: char| match char {
        // Invisible characters, and those that change the direction of text.
        '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{feff}'
        | '\u{e000}'..='\u{f8ff}'
        | '\u{e0000}'..='\u{10ffff}' => true,
        _ => char.is_control(),
    };
    let odd = text.chars().find(|char| is_odd(*char))?;
    Some(format!("{odd:?} is not printable: {text:?}"))
}
