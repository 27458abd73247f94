//! PHP that sends messages as EspoCRM does.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

pub struct Php;

impl Php {
    /// Sends messages with php-cli and php-zmq, one connection per message.
    pub fn send(zeromq: &str, messages: &[Value]) {
        let lines: Vec<String> = messages.iter().map(ToString::to_string).collect();
        Self::send_raw(zeromq, &lines.join("\n"));
    }

    /// Sends lines of any content.
    pub fn send_raw(zeromq: &str, lines: &str) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/send.php");
        let mut php = Command::new("php");
        let mut php = php.args([script, zeromq]).stdin(Stdio::piped()).spawn().unwrap();
        php.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(php.wait().unwrap().success());
    }
}
