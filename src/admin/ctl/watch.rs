//! `espocrm-websocket status --watch`: a screen that is refreshed every second.

use std::io::{IsTerminal, Read, stdin, stdout};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use serde_json::Value as Json;

use super::screen::{self, Size};
use super::{Client, parse, print, print_while_read};
use crate::engine::printable::printable_json;
use crate::platform::clock;
use crate::platform::exit::{Exit, Result};
use crate::platform::signals::Signals;
use crate::platform::sys::{KeyMode, terminal_size};

const SECOND: Duration = Duration::from_secs(1);

/// Hides the cursor, breaks no lines, clears the screen.
const BEGIN: &str = "\x1b[?25l\x1b[?7l\x1b[2J";

/// Restores the cursor and line breaks.
const END: &str = "\x1b[?7h\x1b[?25h\r\n";

/// A screen with fewer lines has no footer.
const MIN_LINES: usize = 4;

/// Shows the state of a daemon until the user types `q`, a signal arrives or the output is closed.
/// Without a terminal it prints one line per second.
///
/// # Errors
/// If the daemon does not answer at first. Later the command waits for a daemon that restarts.
pub(super) fn watch(client: &Client, json: bool) -> Result<()> {
    let mut latest = (client.get("/status")?, Instant::now());
    let mut before: Option<(Json, Instant)> = None;
    let is_screen = !json && stdout().is_terminal();
    let mut pause = Pause::new(is_screen)?;
    let help = pause.help();
    let _screen = if is_screen { Some(Drawing::begin()?) } else { None };
    loop {
        let shown = if json {
            printable_json(&String::from_utf8_lossy(&latest.0)) + "\n"
        } else {
            let status = parse(&latest.0)?;
            let earlier = before.as_ref().filter(|(earlier, _)| {
                // A restarted daemon counts from zero.
                earlier.get("pid") == status.get("pid")
            });
            let earlier = earlier.map(|(earlier, at)| (earlier, latest.1 - *at));
            let text = if is_screen {
                frame(|size| screen::screen(&status, earlier, size), help)
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
            if pause.wait(SECOND)? {
                return Ok(());
            }
            match client.get("/status") {
                Ok(answer) => {
                    latest = (answer, Instant::now());
                    break;
                }
                Err(error) => {
                    let error = error.to_string();
                    let text = if is_screen {
                        frame(|size| wrapped(&error, size), help)
                    } else {
                        format!("{error}\n")
                    };
                    if !print_while_read(&text)? {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The terminal in screen mode; dropping it restores the terminal.
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

/// The output for a full screen: as many lines as fit, with the help for keys in the last one.
fn frame(lines: impl FnOnce(Size) -> Vec<String>, help: &str) -> String {
    let (columns, rows) = terminal_size(stdout().as_raw_fd()).unwrap_or((80, 24));
    let size = Size::of_terminal(columns, rows);
    let mut text = "\x1b[H".to_owned();
    let shown = lines(size);
    for (number, line) in shown.iter().take(size.lines).enumerate() {
        // No line break after the last line, which would scroll the terminal.
        text = text + if number > 0 { "\r\n" } else { "" } + line + "\x1b[K";
    }
    if rows >= MIN_LINES {
        let help: String = help.chars().take(size.columns).collect();
        text = text + "\r\n" + &help + "\x1b[K";
    }
    text + "\x1b[J"
}

fn wrapped(text: &str, size: Size) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        if let Some(last) = lines.last_mut()
            && last.chars().count() + 1 + word.chars().count() <= size.columns
        {
            let space = if last.is_empty() { "" } else { " " };
            *last = format!("{last}{space}{word}");
        } else {
            lines.push(word.chars().take(size.columns).collect());
        }
    }
    lines
}

/// Waits until a signal arrives or the user types `q`.
struct Pause {
    poll: Poll,
    events: Events,
    signals: Signals,
    /// Set while keys are read from the terminal.
    keys: Option<KeyMode>,
}

const SIGNALS: Token = Token(0);
const KEYS: Token = Token(1);

impl Pause {
    fn new(has_keys: bool) -> Result<Self> {
        let made = || {
            let poll = Poll::new()?;
            let mut signals = Signals::new()?;
            signals.register(poll.registry(), SIGNALS)?;
            let terminal = stdin().as_raw_fd();
            let mut keys = if has_keys { KeyMode::begin(terminal) } else { None };
            let mut source = SourceFd(&terminal);
            if keys.is_some()
                && poll.registry().register(&mut source, KEYS, Interest::READABLE).is_err()
            {
                keys = None;
            }
            Ok(Self { poll, events: Events::with_capacity(4), signals, keys })
        };
        made().map_err(|error: std::io::Error| Exit::error(error.to_string()))
    }

    fn help(&self) -> &'static str {
        if self.keys.is_some() { "q: quit" } else { "Ctrl-C: quit" }
    }

    /// Waits for this time. Returns whether a signal or a key has ended the command.
    fn wait(&mut self, time: Duration) -> Result<bool> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.poll.poll(&mut self.events, Some(left)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    return Err(Exit::error(error.to_string()));
                }
                _ => {}
            }
            let pending = self.signals.take();
            if pending.stop || pending.reload {
                return Ok(true);
            }
            if self.events.iter().any(|event| event.token() == KEYS) && read_quit_key() {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }
}

/// Reads the typed keys. Returns whether `q` is among them.
fn read_quit_key() -> bool {
    let mut typed = [0; 256];
    let length = stdin().lock().read(&mut typed).unwrap_or(0);
    typed.get(..length).unwrap_or_default().iter().any(|key| matches!(key, b'q' | b'Q'))
}
