//! The output of `status`, on a terminal and elsewhere.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Control, Daemon, Pusher, Standin, command, eventually, run};

const COLUMNS: usize = 80;
const LINES: usize = 24;

/// A daemon with varied traffic.
fn busy(standin: &Standin) -> (Daemon, Control, Vec<Client>) {
    let (mut daemon, control) = Control::start(standin, &["--max-per-user", "1234"]);
    let mut tabs: Vec<Client> = (0..20).map(|n| daemon.connect(&format!("user{n}"))).collect();
    for (number, tab) in tabs.iter_mut().enumerate() {
        tab.subscribe(&format!("recordUpdate.Account.{number}"));
        tab.subscribe("newNotification");
        tab.subscribe("streamUpdate.Account.1");
        tab.subscribe("recordUpdate.Account.deny");
    }
    control.expect("/subscriptions/streamUpdate", 20);
    let pusher = Pusher::connect(&daemon.zeromq);
    for bytes in [&b"x"[..], &b"[".repeat(600), &vec![b'x'; 1_200_000]] {
        pusher.send_bytes(bytes);
    }
    pusher.send_parts(&[b"a", b"b"]);
    pusher.send(&json!({"topicId": "unknown"}));
    Client::open(daemon.address, "bob", "tok-wrong").expect_close(1008);
    let mut stranger = Client::tcp(daemon.address);
    stranger.send(b"GET / HTTP/1.1\r\n\r\n");
    daemon.wait_for("A request was rejected because it is not a WebSocket handshake");
    control.expect("/messages/received", 5);
    (daemon, control, tabs)
}

#[test]
fn the_status_fits_on_a_terminal() {
    let standin = Standin::new();
    let (daemon, control, tabs) = busy(&standin);
    let screen = control.output_of(&["status"]);
    println!("{screen}");
    assert!(screen.lines().count() < LINES, "{screen}");
    for line in screen.lines() {
        assert!(line.chars().count() < COLUMNS, "{line}");
    }
    for text in [
        format!("ws://{}, EspoCRM sends to {}", daemon.address, daemon.zeromq),
        "\nConnections   20 of 10,000, users 20, opened 2".to_owned(),
        "malformed 1".to_owned(),
        "token_denied 1".to_owned(),
        "per user 1,234".to_owned(),
        "\nWarnings ".to_owned(),
    ] {
        assert!(screen.contains(&text), "{text} is not in\n{screen}");
    }
    drop(tabs);
}

/// The final content of a terminal of some size, and whether its cursor is visible. It supports
/// only the control sequences that the program uses.
struct Terminal {
    columns: usize,
    lines: Vec<String>,
    row: usize,
    column: usize,
    is_cursor_shown: bool,
    wraps: bool,
    drawn: usize,
}

impl Terminal {
    fn show(text: &str, columns: usize, rows: usize) -> Self {
        let lines = vec![String::new(); rows];
        let (row, column, drawn) = (0, 0, 0);
        let mut terminal =
            Self { columns, lines, row, column, is_cursor_shown: true, wraps: true, drawn };
        let mut rest = text;
        while let Some(char) = rest.chars().next() {
            rest = &rest[char.len_utf8()..];
            match char {
                '\u{1b}' => {
                    let end = rest.find(|char: char| char.is_ascii_alphabetic()).unwrap();
                    terminal.command(&rest[..=end]);
                    rest = &rest[end + 1..];
                }
                '\r' => terminal.column = 0,
                '\n' => {
                    terminal.row += 1;
                    assert!(terminal.row < rows || rest.is_empty(), "the screen scrolls");
                }
                char => {
                    assert!(
                        terminal.column < terminal.columns,
                        "a line wraps: {}",
                        terminal.lines[terminal.row]
                    );
                    let line = &mut terminal.lines[terminal.row];
                    let begin: String = line.chars().take(terminal.column).collect();
                    let end: String = line.chars().skip(terminal.column + 1).collect();
                    *line = format!("{begin}{char}{end}");
                    terminal.column += 1;
                }
            }
        }
        terminal
    }

    fn command(&mut self, command: &str) {
        match command {
            "[H" => {
                (self.row, self.column) = (0, 0);
                self.drawn += 1;
            }
            "[K" => {
                let line = &mut self.lines[self.row];
                *line = line.chars().take(self.column).collect();
            }
            "[J" => {
                self.command("[K");
                self.lines[self.row + 1..].iter_mut().for_each(String::clear);
            }
            "[2J" => self.lines.iter_mut().for_each(String::clear),
            "[?25l" => self.is_cursor_shown = false,
            "[?25h" => self.is_cursor_shown = true,
            "[?7l" => self.wraps = false,
            "[?7h" => self.wraps = true,
            other => panic!("{other:?}"),
        }
    }
}

/// `status --watch` in a pseudo terminal of some size, and its keyboard input.
struct Watching {
    script: Child,
    typescript: PathBuf,
    modes: PathBuf,
    size: (usize, usize),
}

impl Watching {
    fn start(standin: &Standin, columns: usize, rows: usize) -> Self {
        let typescript = standin.path().join(format!("typescript{columns}x{rows}"));
        let modes = typescript.with_extension("modes");
        let program = command().get_program().to_str().unwrap().to_owned();
        let control = Control::path(standin);
        let (control, at) = (control.display(), modes.display());
        let watch = format!(
            "stty rows {rows} cols {columns}; stty -g > {at}; \
             {program} status --watch --control {control}; code=$?; stty -g >> {at}; exit $code"
        );
        let mut script = Command::new("script");
        script.args(["-qfe", "-c", &watch]).arg(&typescript);
        script.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let script = script.spawn().unwrap();
        let watching = Self { script, typescript, modes, size: (columns, rows) };
        watching.expect_drawn(3);
        watching
    }

    /// Everything that it has written so far.
    fn shown(&self) -> String {
        let text = std::fs::read_to_string(&self.typescript).unwrap_or_default();
        // The first line is the output of script itself.
        let text = text.split_once('\n').map_or("", |(_, text)| text);
        let text = text.split("\nScript done").next().unwrap_or_default();
        text.replace("\r\r\n", "\r\n")
    }

    fn expect_drawn(&self, more: usize) {
        let drawn = || self.shown().matches("\x1b[J").count();
        let before = drawn();
        eventually("the screen is redrawn", || drawn() >= before + more);
    }

    fn type_keys(&mut self, keys: &str) {
        self.script.stdin.as_ref().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for its exit. The terminal must be in its initial state.
    fn end(mut self) -> Terminal {
        let mut status = None;
        eventually("it ends", || {
            status = self.script.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success());
        let modes = std::fs::read_to_string(&self.modes).unwrap();
        let modes: Vec<_> = modes.lines().collect();
        assert_eq!((modes.len(), modes[0]), (2, modes[1]));
        let terminal = Terminal::show(&self.shown(), self.size.0, self.size.1);
        assert!(terminal.is_cursor_shown && terminal.wraps);
        terminal
    }
}

#[test]
fn watch_draws_without_wrapping_and_restores_the_terminal() {
    let standin = Standin::new();
    let (_daemon, control, tabs) = busy(&standin);
    let watching = Watching::start(&standin, COLUMNS, LINES);
    drop(tabs);
    control.expect("/connections/open", 0);
    watching.expect_drawn(2);
    // The interrupted process is the one in the terminal.
    let process = watching_at(&Control::path(&standin).display().to_string());
    crate::support::Process::signal(process, "INT");
    let terminal = watching.end();
    assert!(terminal.drawn >= 5);
    let screen = terminal.lines.join("\n");
    assert!(
        screen.contains("\nConnections   0 of 10,000, users 0, opened 22 (0.0/s)\n"),
        "{screen}"
    );
}

/// The last line that is not empty.
fn last(screen: &[String]) -> &str {
    screen.iter().rfind(|line| !line.is_empty()).unwrap()
}

#[test]
fn q_quits_and_typed_characters_are_not_echoed() {
    let standin = Standin::new();
    let (_daemon, _control, _tabs) = busy(&standin);
    let mut watching = Watching::start(&standin, COLUMNS, LINES);
    watching.type_keys("xyz\x1b[A\n");
    watching.expect_drawn(2);
    assert!(!watching.shown().contains("xyz"));
    watching.type_keys("q");
    let terminal = watching.end();
    assert_eq!(last(&terminal.lines), "q: quit");
}

#[test]
fn a_small_terminal_shows_unwrapped_lines_with_the_important_ones_first() {
    let standin = Standin::new();
    let (_daemon, _control, _tabs) = busy(&standin);
    for (columns, rows) in [(60, 15), (40, 10), (20, 5), (10, 2)] {
        let mut watching = Watching::start(&standin, columns, rows);
        watching.type_keys("q");
        let screen = watching.end().lines;
        assert!(screen[0].starts_with("espocrm-w"), "{screen:#?}");
        if rows >= 5 {
            assert!(screen[1].starts_with("Serving"), "{screen:#?}");
            assert_eq!(last(&screen), "q: quit");
        }
        if rows >= 10 {
            assert!(screen.iter().any(|line| line.starts_with("Connections   20 of 10,000")));
        }
    }
}

/// The process that watches this control socket.
fn watching_at(path: &str) -> u32 {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found = numbers.find(|number| {
        let words = crate::support::Process::arguments(*number);
        words.get(1).is_some_and(|word| word == "status")
            && words.last().is_some_and(|it| it == path)
    });
    found.unwrap()
}

#[test]
fn without_a_terminal_watch_writes_lines_until_its_output_is_closed() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    let path = Control::path(&standin);
    let watch = |flags: &str, lines: usize| {
        let mut shell = Command::new("sh");
        let program = command().get_program().to_str().unwrap().to_owned();
        let script =
            format!("\"{program}\" status --watch {flags} --control \"$0\" | head -n {lines}");
        shell.args(["-c", &script]).arg(&path);
        String::from_utf8(run(shell).stdout).unwrap()
    };
    let shown = watch("", 2);
    assert_eq!(shown.lines().count(), 2);
    for line in shown.lines() {
        assert!(line.contains("Z connections 0, messages 0.0/s, "), "{line}");
        assert!(line.ends_with(", serving"), "{line}");
    }
    let shown = watch("--json", 1);
    let status: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(status["pid"], daemon.pid());
    control.get("/status");
}

#[test]
fn watch_waits_for_a_restarted_daemon() {
    let standin = Standin::new();
    let (daemon, _) = Control::start(&standin, &[]);
    let path = Control::path(&standin);
    let lines = standin.path().join("lines");
    let mut watch = command();
    watch.args(["status", "--watch", "--control"]).arg(&path);
    watch.stdout(std::fs::File::create(&lines).unwrap());
    let mut watch = watch.spawn().unwrap();
    let shown = || std::fs::read_to_string(&lines).unwrap();
    let serving = || shown().matches("serving").count();
    eventually("the daemon is shown", || serving() > 0);
    daemon.stop("TERM");
    eventually("the end of the daemon is shown", || shown().contains("No daemon answers at"));
    let (_daemon, _) = Control::start(&standin, &[]);
    let before = serving();
    eventually("the new daemon is shown", || serving() > before);
    crate::support::Process::signal(watch.id(), "TERM");
    let mut ended = None;
    eventually("it ends", || {
        std::thread::sleep(Duration::from_millis(10));
        ended = watch.try_wait().unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().success());
}
