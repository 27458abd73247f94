//! The log, on standard error or in a file. Writing never blocks, and one record is one line: text
//! from outside is escaped.

mod last;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write, stderr};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use last::{Line, last};

use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{ConfigBuilder, LevelPadding, WriteLogger};
use time::macros::format_description;

use super::clock::Clock;
use super::sys;
use crate::engine::printable::{Printable, PrintableLines, noun, plural};
use crate::engine::rate_limited_log::RateLimitedLog;
use crate::engine::time::Time;
use crate::platform::exit::{Exit, Result};

/// Starts the log, in `file` if one is given. Later calls do not change its format. Each line has
/// the time in UTC, the level and the text; in systemd's journal, which records the time, a
/// priority and the text.
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
        // Messages of libraries do not help administrators and may contain secrets.
        .add_filter_allow_str("espocrm_websocket")
        .build();
    let lines = Lines::new(StandardError, style);
    let inner = WriteLogger::new(LevelFilter::Debug, config, lines);
    let _ = log::set_boxed_logger(Box::new(Escaping { inner, style }));
    set_debug(false);
    Ok(())
}

/// Opens the log file and makes it standard error. Also reopens it after log rotation.
///
/// # Errors
/// If the file cannot be opened; the destination of the log does not change then.
pub fn reopen(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    // O_NONBLOCK: a pipe without a reader must not block the daemon. O_NOFOLLOW: root must not
    // write to a file that another user has chosen by a symbolic link.
    let follow = if sys::is_root() { libc::O_NOFOLLOW } else { 0 };
    options
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | follow);
    let opened = options.open(path).and_then(|file| sys::replace_standard_error(&file));
    opened.map_err(|error| {
        Exit::error(format!(
            "The log file {} cannot be opened: {error}. Its directory must exist and be writable \
             by this user; see log_file.",
            path.display()
        ))
    })
}

/// The last line, whose repetitions are counted.
static REPEATS: Mutex<RateLimitedLog<Text>> = Mutex::new(RateLimitedLog::new());

static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::start);

type Text = (Level, String);

/// Bytes of a line; repetitions of longer lines are not counted.
const MAX_REPEATED: usize = 1_024;

fn repeats() -> MutexGuard<'static, RateLimitedLog<Text>> {
    REPEATS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time until [`log_repeats`] has something to log; `None` without repeated lines.
#[must_use]
pub fn repeats_due_in() -> Option<Duration> {
    Some(repeats().next_due()?.since(CLOCK.now()))
}

/// Logs how often the last line was repeated, if that is due.
pub fn log_repeats() {
    let due = repeats().take_due(CLOCK.now());
    for ((level, text), count) in due {
        // This line itself is never a repetition, since it is logged at most once a minute.
        log::log!(level, "{}", repeated(&text, count));
    }
}

fn repeated(text: &str, count: u64) -> String {
    format!("{}: {text}", plural(count, "more time", "more times"))
}

/// Takes the next line. Returns the repetitions to log before it, and whether to log the line
/// itself.
fn next_line(log: &mut RateLimitedLog<Text>, line: &Text, now: Time) -> (Vec<(Text, u64)>, bool) {
    let ended = log.take_others(line, now);
    (ended, line.1.len() > MAX_REPEATED || log.occurred(line, now))
}

/// Sets whether each event is logged.
pub fn set_debug(debug: bool) {
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
}

/// Writes an error that ends the program to standard error, in the journal with priority `err`.
/// Ignores a standard error that is full or closed.
pub fn print_error(text: &str) {
    let style = if is_journal() { Style::Journal } else { Style::Plain };
    let _ = stderr().write_all(format_error(text, style).as_bytes());
}

/// Prefixes each line with the priority, since each line is a record of the journal.
fn format_error(text: &str, style: Style) -> String {
    let prefix = match style {
        Style::Plain => String::new(),
        Style::Journal => format!("<{}>", priority(Level::Error)),
    };
    let text = format!("espocrm-websocket: {}", PrintableLines(text));
    text.lines().flat_map(|line| [prefix.as_str(), line, "\n"]).collect()
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    /// For systemd's journal: see `sd-daemon(3)`.
    Journal,
}

/// Whether standard error is connected to systemd's journal.
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

/// Escapes characters that are not printable: line feeds, terminal control characters,
/// bidirectional formatting.
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
        let line = (level, Printable(record.args()).to_string());
        // Debug lines are not counted, since debug mode shows each event.
        if level <= Level::Info {
            let (ended, is_new) = next_line(&mut repeats(), &line, CLOCK.now());
            for ((level, text), count) in ended {
                let metadata = Metadata::builder().level(level).target(metadata.target()).build();
                self.write(&metadata, &repeated(&text, count));
            }
            if !is_new {
                return;
            }
        }
        self.write(metadata, &line.1);
        if level <= Level::Warn {
            last::keep(level, line.1);
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

/// Writes whole lines. Drops lines that standard error does not accept immediately, and reports
/// their number when it accepts output again.
struct Lines<O> {
    output: O,
    style: Style,
    line: Vec<u8>,
    lost: u64,
    /// The last line was written only partly.
    is_torn: bool,
}

trait Output {
    /// Whether [`MAX_LINE`] bytes can be written without blocking.
    fn is_ready(&self) -> bool;

    /// Makes one attempt to write.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

struct StandardError;

/// Bytes of a line; longer lines are truncated. A writable pipe accepts at least this many
/// (`PIPE_BUF`).
const MAX_LINE: usize = 4_096;

/// The end of a truncated line.
const END: &[u8] = b" ...\n";

/// The length of the time in a line.
const TIME: usize = "2026-01-31T12:59:59.999Z".len();

impl Output for StandardError {
    fn is_ready(&self) -> bool {
        sys::is_writable(libc::STDERR_FILENO)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        stderr().write(bytes)
    }
}

impl<O: Output> Lines<O> {
    fn new(output: O, style: Style) -> Self {
        Self { output, style, line: Vec::new(), lost: 0, is_torn: false }
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
                "{begin}{} {} lost here.\n",
                plural(self.lost, "log line", "log lines"),
                noun(self.lost, "was", "were")
            );
            if self.write_line(lost.as_bytes()) {
                self.lost = 0;
            }
        }
        if self.lost > 0 || !self.write_line(line) {
            self.lost += 1;
        }
    }

    /// Returns whether the whole line was written.
    fn write_line(&mut self, line: &[u8]) -> bool {
        let line = if self.is_torn { &[b"\n", line].concat() } else { line };
        if !self.output.is_ready() {
            return false;
        }
        let written = match self.output.write(line) {
            Err(error) if error.kind() == ErrorKind::Interrupted => self.output.write(line),
            written => written,
        };
        let length = written.unwrap_or(0);
        if length > 0 {
            self.is_torn = length < line.len();
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
                // Remove a truncated character.
                let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
                line = [text.as_bytes(), END].concat();
            }
            self.end_line(&line);
            // Reuse the buffer for the next line.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the results in `results`, from the end, and then accepts everything.
    #[derive(Default)]
    struct Stub {
        results: Vec<io::Result<usize>>,
        is_stuck: bool,
        text: String,
    }

    impl Output for Stub {
        fn is_ready(&self) -> bool {
            !self.is_stuck
        }

        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = self.results.pop().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
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

    /// The output since the last call, without times.
    fn text(lines: &mut Lines<Stub>) -> String {
        std::mem::take(&mut lines.output.text).replace("2026-01-31T12:59:59.999Z ", "")
    }

    #[test]
    fn lost_lines_are_counted_and_reported() {
        let mut lines = Lines::new(Stub::default(), Style::Plain);
        log(&mut lines, "one");
        assert_eq!(text(&mut lines), "[INFO ] one\n");
        lines.output.is_stuck = true;
        log(&mut lines, "two");
        log(&mut lines, "three");
        assert_eq!(text(&mut lines), "");
        lines.output.is_stuck = false;
        lines.output.results = vec![Err(ErrorKind::StorageFull.into())];
        log(&mut lines, "four");
        lines.output.results = vec![Err(ErrorKind::Interrupted.into())];
        log(&mut lines, "five");
        let lost = "[WARN ] 3 log lines were lost here.\n";
        assert_eq!(text(&mut lines), format!("{lost}[INFO ] five\n"));
        log(&mut lines, "six");
        assert_eq!(text(&mut lines), "[INFO ] six\n");
    }

    #[test]
    fn each_line_of_an_error_has_a_priority_in_the_journal() {
        let text = "It failed:\n  <7>why\u{1b}";
        let plain = "espocrm-websocket: It failed:\n  <7>why\\u{1b}\n";
        assert_eq!(format_error(text, Style::Plain), plain);
        let journal = "<3>espocrm-websocket: It failed:\n<3>  <7>why\\u{1b}\n";
        assert_eq!(format_error(text, Style::Journal), journal);
    }

    #[test]
    fn a_partly_written_line_is_terminated() {
        let mut lines = Lines::new(Stub::default(), Style::Plain);
        let full = || Err(ErrorKind::StorageFull.into());
        lines.output.results = vec![full(), full(), Ok(35)];
        for number in ["one", "two", "three"] {
            log(&mut lines, number);
        }
        assert_eq!(text(&mut lines), "[INFO ] on");
        log(&mut lines, "four");
        let lost = "[WARN ] 3 log lines were lost here.\n";
        assert_eq!(text(&mut lines), format!("\n{lost}[INFO ] four\n"));
    }

    #[test]
    fn long_lines_are_truncated_and_their_memory_is_freed() {
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
    fn repetitions_are_counted_until_another_line() {
        let (mut log, now) = (RateLimitedLog::new(), Time::default());
        let mut next = |level, text: &str| next_line(&mut log, &(level, text.to_owned()), now);
        assert_eq!(next(Level::Warn, "a"), (vec![], true));
        for _ in 0..3 {
            assert_eq!(next(Level::Warn, "a"), (vec![], false));
        }
        let repeats = vec![((Level::Warn, "a".to_owned()), 3)];
        assert_eq!(next(Level::Warn, "b"), (repeats, true));
        assert_eq!(next(Level::Error, "b"), (vec![], true));
        let very_long = "x".repeat(MAX_REPEATED + 1);
        assert_eq!(next(Level::Warn, &very_long), (vec![], true));
        assert_eq!(next(Level::Warn, &very_long), (vec![], true));
    }

    #[test]
    fn a_line_that_is_repeated_once_a_minute_is_logged_each_time() {
        let mut log = RateLimitedLog::new();
        let mut next = |seconds: u64| {
            let now = Time::from_millis(seconds * 1_000);
            next_line(&mut log, &(Level::Warn, "a".to_owned()), now)
        };
        assert_eq!(next(0), (vec![], true));
        assert_eq!(next(59), (vec![], false));
        assert_eq!(next(60), (vec![((Level::Warn, "a".to_owned()), 1)], true));
        assert_eq!(next(120), (vec![], true));
    }
}
