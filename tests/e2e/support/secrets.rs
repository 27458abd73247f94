//! What nobody may ever be told, and what no line of the log may hold: each daemon is held to it at
//! its end, whatever its test was about.

use std::collections::BTreeSet;
use std::sync::Mutex;

/// Every token and passphrase that any test has used so far.
static SECRETS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Remembers a secret; unless it might as well stand in a sentence.
pub fn keep_secret(text: &str) {
    let is_plain = text.chars().all(|char| matches!(char, 'a'..='z' | ' ' | '-'));
    if text.len() >= 6 && !is_plain {
        SECRETS.lock().unwrap().insert(text.to_owned());
    }
}

/// Remembers the token of a request.
pub fn keep_token_secret(request: &str) {
    if let Some((_, rest)) = request.split_once("authToken=") {
        keep_secret(rest.split(['&', ' ', '#', '\r']).next().unwrap());
    }
}

/// What somebody may read. If it is no UTF-8, it becomes an [`indiscretion`].
pub fn readable(bytes: Vec<u8>) -> String {
    let lossy = |bytes: &[u8]| format!("\0{}", String::from_utf8_lossy(bytes));
    String::from_utf8(bytes).unwrap_or_else(|error| lossy(error.as_bytes()))
}

/// What is wrong with this text that somebody may read, if anything is.
pub fn indiscretion(text: &str) -> Option<String> {
    // Whatever the user is called: the tokens of the stand-in begin like this.
    let usual = ["tok-".to_owned()];
    let secrets = SECRETS.lock().unwrap();
    let told = usual.iter().chain(&*secrets).find(|secret| text.contains(&**secret));
    if let Some(secret) = told {
        return Some(format!("the secret {secret:?} was told: {text}"));
    }
    let is_odd = |char: char| match char {
        // What is invisible or turns text around.
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
