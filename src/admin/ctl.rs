//! The commands for a running daemon: `espocrm-websocket status`, `kick`, `send`, `tail`, `reload`.

mod lists;
mod screen;
mod users;
mod watch;

use std::io::{ErrorKind, IsTerminal, Write, stdout};
use std::time::Duration;

use lexopt::prelude::{Long, Short, Value, ValueExt};
use serde_json::Value as Json;

use crate::admin::client::{Client, Target};
use crate::engine::limits::{MAX_LISTED, RELOAD_DEADLINE};
use crate::engine::printable::{noun, printable, printable_json};
use crate::engine::protocol::control::List;
use crate::platform::exit::{Exit, Result};
use crate::platform::{logging, sys};
use users::Names;
pub(crate) use users::Site;

/// A command, and the daemon that receives it.
#[derive(Debug, PartialEq, Eq)]
pub struct Ctl {
    /// The daemon.
    pub target: Target,
    /// The command.
    pub command: Command,
    /// Whether to print JSON.
    pub json: bool,
    /// The daemon's EspoCRM, for the names of users.
    pub site: Site,
}

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Shows the state of the daemon.
    Status {
        /// Whether to refresh it every second.
        watch: bool,
    },
    /// Lists users, topics or connections.
    List(List),
    /// Closes the connections of the user with this id or name.
    Kick(String),
    /// Publishes a test message.
    Send {
        /// The topic.
        topic: String,
        /// The user who receives it; all subscribers if `None`.
        user: Option<String>,
        /// The other fields, as JSON.
        message: String,
    },
    /// Prints messages as they are delivered.
    Tail,
    /// Reloads the settings.
    Reload,
}

/// The names of the commands.
pub(crate) const COMMANDS: [&str; 5] = ["status", "kick", "send", "tail", "reload"];

impl Ctl {
    /// Parses the arguments after the command. Returns `None` if they ask for help.
    ///
    /// # Errors
    /// If an argument is unknown or invalid.
    pub fn parse(
        command: &str,
        parser: &mut lexopt::Parser,
    ) -> std::result::Result<Option<Self>, lexopt::Error> {
        let (mut target, mut json, mut watch, mut user) = (Target::default(), false, false, None);
        let (mut site, mut words) = (Site::default(), Vec::new());
        let is_status = command == "status";
        let has_names = is_status || command == "kick";
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => return Ok(None),
                Long("name") => target.name = Some(parser.value()?.string()?),
                Long("control") => target.control = Some(parser.value()?.into()),
                Long("config") => target.config = Some(parser.value()?.into()),
                Long("json") if is_status || command == "tail" => json = true,
                Long("watch") if is_status => watch = true,
                Long("user") if command == "send" => user = Some(parser.value()?.string()?),
                Long("espocrm") if has_names => site.espocrm = Some(parser.value()?.into()),
                Long("php") if has_names => site.php = Some(parser.value()?.into()),
                Long("user") if has_names => site.run_as.user = Some(parser.value()?.string()?),
                Long("allow-root") if has_names => site.run_as.allow_root = true,
                Value(word) => words.push(word.string()?),
                other => return Err(other.unexpected()),
            }
        }
        let mut words = words.into_iter();
        let mut missing = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
        let command = match command {
            "kick" => Command::Kick(missing("the user's id or name")?),
            "send" => {
                let topic = missing("the topic")?;
                Command::Send { topic, user, message: words.next().unwrap_or_default() }
            }
            "tail" => Command::Tail,
            "reload" => Command::Reload,
            _ => match words.next().as_deref() {
                None => Command::Status { watch },
                Some(_) if watch => return Err("--watch works only with status alone".into()),
                Some("users") => Command::List(List::Users),
                Some("topics") => Command::List(List::Topics),
                Some("connections") => Command::List(List::Connections),
                Some(other) => {
                    let error =
                        format!("unknown list {other}: choose users, topics or connections");
                    return Err(error.into());
                }
            },
        };
        if let Some(extra) = words.next() {
            return Err(lexopt::Error::UnexpectedArgument(extra.into()));
        }
        let lists_users =
            matches!(command, Command::Kick(_) | Command::List(List::Users | List::Connections));
        if site != Site::default() && !lists_users {
            let error = "--espocrm, --php, --user and --allow-root work only with status users, \
                         status connections and kick";
            return Err(error.into());
        }
        Ok(Some(Self { target, command, json, site }))
    }

    /// Runs the command.
    ///
    /// # Errors
    /// If the daemon does not answer, or returns an error.
    pub fn run(self) -> Result<()> {
        if self.command == Command::Reload {
            return reload(self.target.client());
        }
        let client = self.target.client()?;
        match self.command {
            Command::Status { watch: true } => watch::watch(&client, self.json),
            Command::Status { watch: false } if self.json => print_raw(&client.get("/status")?),
            Command::Status { watch: false } => {
                let status = parse(&client.get("/status")?)?;
                print(&(screen::screen(&status, None, screen::Size::DEFAULT).join("\n") + "\n"))
            }
            Command::List(list) => {
                let name = lists::name(list);
                let answer = client.get(&format!("/{name}?limit={MAX_LISTED}"))?;
                if self.json && list == List::Topics {
                    return print_raw(&answer);
                }
                let mut answer = parse(&answer)?;
                if list != List::Topics {
                    let ids = lists::users(list, &answer);
                    let names = self.site.names(&client, &self.target, ids);
                    let names = names.unwrap_or_else(|error| {
                        logging::print_error(&format!("User names are not shown: {error}"));
                        Names::new()
                    });
                    lists::add_names(list, &mut answer, &names);
                }
                if self.json {
                    print_raw(answer.to_string().as_bytes())
                } else {
                    print(&lists::table(list, &answer))
                }
            }
            Command::Kick(user) => kick(&client, &self.target, &self.site, &user),
            Command::Send { topic, user, message } => {
                send(&client, &topic, user.as_deref(), &message)
            }
            Command::Tail => tail(&client, self.json),
            Command::Reload => reload(Ok(client)),
        }
    }
}

/// Closes the connections of the user with this id, or else of the user with this name.
fn kick(client: &Client, target: &Target, site: &Site, user: &str) -> Result<()> {
    let close = |id: &str| -> Result<u64> {
        let answer = client.post(&format!("/kick?user={}", encoded(id)), b"")?;
        Ok(number(&parse(&answer)?, "/connections"))
    };
    let (mut count, mut shown) = (close(user)?, user.to_owned());
    if count == 0 {
        let none = format!("No user with the id {user} has connections");
        let (id, name) = match site.user_of(client, target, user) {
            Ok(Some(found)) => found,
            Ok(None) => {
                return Err(Exit::error(format!(
                    "{none}, and EspoCRM has no user with that name. For a list: espocrm-websocket \
                     status users"
                )));
            }
            Err(error) => {
                return Err(Exit::error(format!("{none}. User names are not available: {error}")));
            }
        };
        (count, shown) = (close(&id)?, format!("{name} (id {id})"));
    }
    let shown = printable(&shown);
    if count == 0 {
        return Err(Exit::error(format!("User {shown} has no connections.")));
    }
    print(&format!(
        "{} of user {shown} {} ended; browsers reconnect after 3 s and are checked again.\n",
        plural(count, "connection", "connections"),
        if count == 1 { "was" } else { "were" }
    ))
}

/// Reloads the settings and waits until they are applied. In the service's `ExecReload=` line
/// systemd sets `MAINPID`: a daemon without a control socket receives a signal instead, and logs
/// the result.
fn reload(client: Result<Client>) -> Result<()> {
    let main = std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok());
    if let Some(main) = main
        && !client.as_ref().is_ok_and(Client::is_there)
    {
        let sent = sys::send_hangup(main);
        sent.map_err(|error| {
            Exit::error(format!("Cannot send SIGHUP to process {main}: {error}."))
        })?;
        return print("There is no control socket. SIGHUP was sent; see the log for the result.\n");
    }
    // The daemon's own deadline is shorter.
    client?.post_within("/reload", RELOAD_DEADLINE + Duration::from_secs(5))?;
    print("The settings were reloaded.\n")
}

fn send(client: &Client, topic: &str, user: Option<&str>, message: &str) -> Result<()> {
    let mut path = format!("/send?topic={}", encoded(topic));
    if let Some(user) = user {
        path = path + "&user=" + &encoded(user);
    }
    let answer = parse(&client.post(&path, message.as_bytes())?)?;
    print(&match number(&answer, "/receivers") {
        0 => "The message was delivered to no connection: the topic has no matching subscriber.\n"
            .to_owned(),
        count => format!(
            "The message was delivered to {}.\n",
            plural(count, "connection", "connections")
        ),
    })
}

fn tail(client: &Client, json: bool) -> Result<()> {
    let lines = client.lines("/tail", None)?;
    if !json && stdout().is_terminal() {
        print("Printing messages as they are delivered; press Ctrl-C to stop.\n")?;
    }
    for line in lines.map_while(std::result::Result::ok) {
        let shown =
            if json { printable_json(&line) } else { lists::message(&parse(line.as_bytes())?) };
        if !print_while_read(&(shown + "\n"))? {
            return Ok(());
        }
    }
    Err(Exit::error("The daemon ended the connection."))
}

/// Prints to standard output. Returns false if the reader has closed it.
fn print_while_read(text: &str) -> Result<bool> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Exit::error(format!("Cannot write to standard output: {error}."))),
    }
}

fn print(text: &str) -> Result<()> {
    print_while_read(text).map(drop)
}

fn print_raw(answer: &[u8]) -> Result<()> {
    print(&(printable_json(&String::from_utf8_lossy(answer)) + "\n"))
}

fn parse(answer: &[u8]) -> Result<Json> {
    serde_json::from_slice(answer).map_err(|error| {
        Exit::error(format!(
            "Cannot parse the daemon's answer: {error}. Check that it runs the same version."
        ))
    })
}

/// A number in an answer; 0 if it is missing, as in the answer of another version.
fn number(json: &Json, pointer: &str) -> u64 {
    json.pointer(pointer).and_then(Json::as_u64).unwrap_or(0)
}

/// A text in an answer, safe for a terminal.
fn text(json: &Json, pointer: &str) -> String {
    printable(json.pointer(pointer).and_then(Json::as_str).unwrap_or("-"))
}

fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), noun(count, one, many))
}

/// `1,234,567`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Percent-encodes a value for the query of a URL.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                encoded.push(char::from(byte));
            }
            other => encoded = format!("{encoded}%{other:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (45_678, "45,678"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(plural(1, "tab", "tabs") + &plural(1_000, " tab", " tabs"), "1 tab1,000  tabs");
    }

    #[test]
    fn query_values_are_percent_encoded() {
        assert_eq!(encoded("a.b_c-1&ä %"), "a.b_c-1%26%C3%A4%20%25");
    }
}
