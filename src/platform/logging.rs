//! The log, on standard error, which may be a file of ours. It holds nothing up, and one record is one
//! line, whatever a peer has put into it.

mod fold;
mod last;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write, stderr};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

pub use last::{Line, last};

use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{ConfigBuilder, LevelPadding, WriteLogger};
use time::macros::format_description;

use fold::Again;

use super::sys;
use crate::engine::printable::{Printable, PrintableLines, noun, plural};
use crate::engine::time::Time;
use crate::platform::exit::{Exit, Result};

/// Starts the log, in `file` if one is given; later calls do not change how it looks. Each line is the
/// time in UTC, the level and the text; in systemd's journal, which knows the time, a priority and the
/// text.
///
/// # Errors
/// If the file cannot be opened.
pub fn start(file: Option<&Path>) -> Result<()> {
    file.map_or(Ok(()), reopen)?;
    let style = if is_journal() { Style::Journal } else { Style::Plain };
    let mut config = ConfigBuilder::new();
    if style == Style::Journal {
        config.set_time_level(LevelFilter::Off).set_max_level(LevelFilter::Off);
    }
    let config = config
        .set_time_format_custom(format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        ))
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_level_padding(LevelPadding::Right)
        // Libraries know nothing that an administrator could use, and may know secrets.
        .add_filter_allow_str("espocrm_websocket")
        .build();
    let lines = Lines::new(StandardError, style);
    let inner = WriteLogger::new(LevelFilter::Debug, config, lines);
    let _ = log::set_boxed_logger(Box::new(Escaping { inner, style }));
    set_debug(false);
    Ok(())
}

/// Opens the log's file, perhaps again, after somebody has moved it away. It becomes our standard error.
///
/// # Errors
/// If that is not possible; the log goes where it went before.
pub fn reopen(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    // A pipe that nobody reads must not hold us up; and where root follows links that others may make,
    // it writes into their files.
    let follow = if sys::is_root() { libc::O_NOFOLLOW } else { 0 };
    options
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | follow);
    let opened = options.open(path).and_then(|file| sys::replace_standard_error(&file));
    opened.map_err(|error| {
        Exit::error(format!(
            "The log file {} cannot be opened: {error}. Its directory must exist and this user be \
             allowed to write there; see log_file.",
            path.display()
        ))
    })
}

/// After which time [`unfold`] has something to tell; never, if no line has come again.
#[must_use]
pub fn unfolds_in() -> Option<Duration> {
    let due = fold::fold().next_due()?;
    Some(due.saturating_duration_since(Instant::now()))
}

/// Tells how often the last line has come again, if that is due.
pub fn unfold() {
    let due = fold::fold().take_due(Instant::now());
    if let Some(Again { level, text, times }) = due {
        // Which nothing is folded with, since it is told once a minute.
        log::log!(level, "{}: {text}", plural(times, "more time", "more times"));
    }
}

/// Whether each event is logged.
pub fn set_debug(debug: bool) {
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
}

/// Writes an error that ends the program to standard error, in the journal with the priority of an
/// error. That standard error is full or closed is no reason to crash.
pub fn complain(text: &str) {
    let style = if is_journal() { Style::Journal } else { Style::Plain };
    let _ = stderr().write_all(complaint(text, style).as_bytes());
}

/// The priority stands in front of each line: each one is a record of the journal.
fn complaint(text: &str, style: Style) -> String {
    let prefix = match style {
        Style::Plain => String::new(),
        Style::Journal => format!("<{}>", priority(Level::Error)),
    };
    let text = format!("espocrm-websocket: {}", PrintableLines(text));
    text.lines().flat_map(|line| [prefix.as_str(), line, "\n"]).collect()
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    /// For systemd's journal: see `sd-daemon(3)`.
    Journal,
}

/// Whether what we write to standard error is a line of systemd's journal.
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stderr = stderr().as_fd().try_clone_to_owned().map(File::from);
    let identity = stderr.and_then(|stderr| stderr.metadata());
    identity.is_ok_and(|file| *stream == *format!("{}:{}", file.dev(), file.ino()))
}

fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Escapes what is not printable: line feeds, what steers a terminal, what turns text around.
struct Escaping<L> {
    inner: L,
    style: Style,
}

impl<L: Log> Log for Escaping<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let (level, metadata) = (record.level(), record.metadata());
        if !self.enabled(metadata) {
            return;
        }
        let text = Printable(record.args()).to_string();
        // Each event is to be seen in debug mode.
        if level <= Level::Info {
            let (again, is_new) = fold::fold().take(Instant::now(), level, &text);
            if let Some(Again { level, text, times }) = again {
                let metadata = Metadata::builder().level(level).target(metadata.target()).build();
                self.write(
                    &metadata,
                    &format!("{}: {text}", plural(times, "more time", "more times")),
                );
            }
            if !is_new {
                return;
            }
        }
        self.write(metadata, &text);
        if level <= Level::Warn {
            last::keep(level, text);
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

impl<L: Log> Escaping<L> {
    fn write(&self, metadata: &Metadata<'_>, text: &str) {
        let mut record = Record::builder();
        record.metadata(metadata.clone());
        match self.style {
            Style::Plain => self.inner.log(&record.args(format_args!("{text}")).build()),
            Style::Journal => {
                let priority = priority(metadata.level());
                self.inner.log(&record.args(format_args!("<{priority}>{text}")).build());
            }
        }
    }
}

/// Writes whole lines. What standard error does not take at once is lost, and that is said as soon
/// as it takes something again.
struct Lines<O> {
    output: O,
    style: Style,
    line: Vec<u8>,
    lost: u64,
    /// A line was written in part.
    torn: bool,
}

trait Output {
    /// Whether [`MAX_LINE`] bytes could be written without waiting.
    fn is_ready(&self) -> bool;

    /// Writes once.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

struct StandardError;

/// Bytes of a line, the rest is cut off: a pipe that takes anything takes so many.
const MAX_LINE: usize = 4_096;

/// How a line ends of which not all is said.
const END: &[u8] = b" ...\n";

/// Where the time ends in a line.
const TIME: usize = "2026-01-31T12:59:59.999Z".len();

impl Output for StandardError {
    fn is_ready(&self) -> bool {
        sys::takes_output(libc::STDERR_FILENO)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        stderr().write(bytes)
    }
}

impl<O: Output> Lines<O> {
    fn new(output: O, style: Style) -> Self {
        Self { output, style, line: Vec::new(), lost: 0, torn: false }
    }

    fn end_line(&mut self, line: &[u8]) {
        if self.lost > 0 {
            let begin = match self.style {
                Style::Plain => {
                    let time = String::from_utf8_lossy(line.get(..TIME).unwrap_or_default());
                    format!("{time} [WARN ] ")
                }
                Style::Journal => format!("<{}>", priority(Level::Warn)),
            };
            let lost = format!(
                "{begin}{} of the log {} lost here.\n",
                plural(self.lost, "line", "lines"),
                noun(self.lost, "was", "were")
            );
            if self.say(lost.as_bytes()) {
                self.lost = 0;
            }
        }
        if self.lost > 0 || !self.say(line) {
            self.lost += 1;
        }
    }

    /// Whether it could.
    fn say(&mut self, line: &[u8]) -> bool {
        let line = if self.torn { &[b"\n", line].concat() } else { line };
        if !self.output.is_ready() {
            return false;
        }
        let written = match self.output.write(line) {
            Err(error) if error.kind() == ErrorKind::Interrupted => self.output.write(line),
            written => written,
        };
        let length = written.unwrap_or(0);
        if length > 0 {
            self.torn = length < line.len();
        }
        length == line.len()
    }
}

impl<O: Output> Write for Lines<O> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            let mut line = std::mem::take(&mut self.line);
            if line.len() > MAX_LINE {
                let begin = line.get(..MAX_LINE - END.len()).unwrap_or_default();
                let text = String::from_utf8_lossy(begin);
                // A character that was cut.
                let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
                line = [text.as_bytes(), END].concat();
            }
            self.end_line(&line);
            // Its memory serves the next one.
            line.clear();
            line.shrink_to(MAX_LINE);
            self.line = line;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says once that something has begun to fail, and once that it works again.
#[derive(Debug, Default)]
pub struct Outage {
    last: Option<Time>,
    failures: u64,
    said: bool,
}

impl Outage {
    /// It has failed. Whether that is to be said now: if it was not since it worked last, and at
    /// most once a minute.
    pub fn failed(&mut self, now: Time) -> bool {
        self.failures += 1;
        let lately = self.last.is_some_and(|last| now.since(last).as_secs() < 60);
        if self.said || lately {
            return false;
        }
        self.last = Some(now);
        self.said = true;
        true
    }

    /// It works. If its failing was said, how often it has failed meanwhile.
    pub fn worked(&mut self) -> Option<u64> {
        let failures = std::mem::take(&mut self.failures);
        std::mem::take(&mut self.said).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what `takes` says of each line, and then nothing.
    #[derive(Default)]
    struct Stub {
        takes: Vec<io::Result<usize>>,
        is_stuck: bool,
        text: String,
    }

    impl Output for Stub {
        fn is_ready(&self) -> bool {
            !self.is_stuck
        }

        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = self.takes.pop().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
            Ok(length)
        }
    }

    fn log(lines: &mut Lines<Stub>, text: &str) {
        // As simplelog does.
        for piece in ["2026-01-31T12:59:59.999Z", " ", "[INFO ] ", text, "\n"] {
            lines.write_all(piece.as_bytes()).unwrap();
        }
    }

    /// What was written since the last time, without times.
    fn text(lines: &mut Lines<Stub>) -> String {
        std::mem::take(&mut lines.output.text).replace("2026-01-31T12:59:59.999Z ", "")
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told() {
        let mut lines = Lines::new(Stub::default(), Style::Plain);
        log(&mut lines, "one");
        assert_eq!(text(&mut lines), "[INFO ] one\n");
        lines.output.is_stuck = true;
        log(&mut lines, "two");
        log(&mut lines, "three");
        assert_eq!(text(&mut lines), "");
        lines.output.is_stuck = false;
        lines.output.takes = vec![Err(ErrorKind::StorageFull.into())];
        log(&mut lines, "four");
        lines.output.takes = vec![Err(ErrorKind::Interrupted.into())];
        log(&mut lines, "five");
        let lost = "[WARN ] 3 lines of the log were lost here.\n";
        assert_eq!(text(&mut lines), format!("{lost}[INFO ] five\n"));
        log(&mut lines, "six");
        assert_eq!(text(&mut lines), "[INFO ] six\n");
    }

    #[test]
    fn each_line_of_an_error_is_an_error_in_the_journal() {
        let text = "It failed:\n  <7>why\u{1b}";
        let plain = "espocrm-websocket: It failed:\n  <7>why\\u{1b}\n";
        assert_eq!(complaint(text, Style::Plain), plain);
        let journal = "<3>espocrm-websocket: It failed:\n<3>  <7>why\\u{1b}\n";
        assert_eq!(complaint(text, Style::Journal), journal);
    }

    #[test]
    fn a_line_that_was_torn_is_followed_by_a_new_one() {
        let mut lines = Lines::new(Stub::default(), Style::Plain);
        let full = || Err(ErrorKind::StorageFull.into());
        lines.output.takes = vec![full(), full(), Ok(35)];
        for number in ["one", "two", "three"] {
            log(&mut lines, number);
        }
        assert_eq!(text(&mut lines), "[INFO ] on");
        log(&mut lines, "four");
        let lost = "[WARN ] 3 lines of the log were lost here.\n";
        assert_eq!(text(&mut lines), format!("\n{lost}[INFO ] four\n"));
    }

    #[test]
    fn a_line_is_never_too_long_for_a_pipe_and_its_memory_is_not_kept() {
        let mut lines = Lines::new(Stub::default(), Style::Plain);
        for odd in ["", "x", "xx"] {
            log(&mut lines, &format!("{odd}{}", "€".repeat(100_000)));
            let length = lines.output.text.len();
            assert!((MAX_LINE - 3..=MAX_LINE).contains(&length), "{length}");
            assert!(text(&mut lines).ends_with("€ ...\n"));
            assert!(lines.line.capacity() <= MAX_LINE);
        }
    }

    #[test]
    fn an_outage_is_said_when_it_begins_and_when_it_ends() {
        let mut outage = Outage::default();
        assert_eq!(outage.worked(), None);
        assert!(outage.failed(Time::from_millis(5)));
        assert!(!outage.failed(Time::from_millis(1_000_000)));
        assert_eq!(outage.worked(), Some(2));
        assert_eq!(outage.worked(), None);
        // What fails now and then is not said each time.
        assert!(outage.failed(Time::from_millis(1_000_001)));
        assert_eq!(outage.worked(), Some(1));
        assert!(!outage.failed(Time::from_millis(1_060_000)));
        assert_eq!(outage.worked(), None);
        assert!(outage.failed(Time::from_millis(1_060_001)));
    }
}
