//! `espocrm-websocket status --watch`: a screen that is drawn anew each second.

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use serde_json::Value as Json;

use super::{Client, parse, print, print_while_read, screen};
use crate::core::printable::printable_json;
use crate::shell::clock;
use crate::shell::fatal::{Fatal, Result};
use crate::shell::signals::Signals;

const SECOND: Duration = Duration::from_secs(1);

/// Hides the cursor, breaks no lines, clears the screen.
const BEGIN: &str = "\x1b[?25l\x1b[?7l\x1b[2J";

/// Takes that back.
const END: &str = "\x1b[?7h\x1b[?25h\r\n";

/// Shows a daemon until a signal ends that, or nobody reads it. Where that is no terminal, in one line
/// each time.
///
/// # Errors
/// If it does not answer at first. A daemon that is restarted later is waited for.
pub fn watch(client: &Client, json: bool) -> Result<()> {
    let mut latest = (client.get("/status")?, Instant::now());
    let mut before: Option<(Json, Instant)> = None;
    let mut pause = Pause::new()?;
    let is_screen = !json && stdout().is_terminal();
    let _screen = if is_screen { Some(Drawing::begin()?) } else { None };
    loop {
        let shown = if json {
            printable_json(&String::from_utf8_lossy(&latest.0)) + "\n"
        } else {
            let status = parse(&latest.0)?;
            let earlier = before.as_ref().filter(|(earlier, _)| {
                // Another daemon counts from the beginning.
                earlier.get("pid") == status.get("pid")
            });
            let earlier = earlier.map(|(earlier, at)| (earlier, latest.1 - *at));
            let text = if is_screen {
                drawn(&screen::screen(&status, earlier))
            } else {
                format!("{} {}\n", clock::date(), screen::line(&status, earlier))
            };
            before = Some((status, latest.1));
            text
        };
        if !print_while_read(&shown)? {
            return Ok(());
        }
        loop {
            if pause.is_ended(SECOND)? {
                return Ok(());
            }
            match client.get("/status") {
                Ok(answer) => {
                    latest = (answer, Instant::now());
                    break;
                }
                Err(error) => {
                    let error = error.to_string();
                    let text =
                        if is_screen { drawn(&wrapped(&error)) } else { format!("{error}\n") };
                    if !print_while_read(&text)? {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// While it lives the terminal is a screen.
struct Drawing;

impl Drawing {
    fn begin() -> Result<Self> {
        print(BEGIN).map(|()| Self)
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        let _ = print(END);
    }
}

/// Lines from the top of the screen on, and nothing else.
fn drawn(lines: &[String]) -> String {
    let mut text = "\x1b[H".to_owned();
    for line in lines {
        text = text + line + "\x1b[K\r\n";
    }
    text + "\x1b[J"
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        if let Some(last) = lines.last_mut()
            && last.len() + 1 + word.len() <= screen::COLUMNS
        {
            let space = if last.is_empty() { "" } else { " " };
            *last = format!("{last}{space}{word}");
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Waits, but not longer than until a signal.
struct Pause {
    poll: Poll,
    events: Events,
    signals: Signals,
}

impl Pause {
    fn new() -> Result<Self> {
        let made = || {
            let poll = Poll::new()?;
            let mut signals = Signals::new()?;
            signals.register(poll.registry(), Token(0))?;
            Ok(Self { poll, events: Events::with_capacity(4), signals })
        };
        made().map_err(|error: std::io::Error| Fatal::new(error.to_string()))
    }

    /// Whether a signal has ended it.
    fn is_ended(&mut self, time: Duration) -> Result<bool> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.poll.poll(&mut self.events, Some(left)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    return Err(Fatal::new(error.to_string()));
                }
                _ => {}
            }
            let pending = self.signals.take();
            if pending.stop || pending.reload {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }
}
