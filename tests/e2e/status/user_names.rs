//! User names, in `status users`, `status connections` and `kick`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::{
    Client, Control, Daemon, ProcessGroup, Standin, TempDir, command, command_as_nobody,
    eventually, is_root, run,
};

const ANN: &str = "6b030ec83f80db7ad";
const BOB: &str = "6b030f5b450565077";

/// An EspoCRM with two users.
fn standin() -> Standin {
    let standin = Standin::new();
    standin.set("users", &json!({ANN: "ann", BOB: "bob"}).to_string());
    standin
}

fn connect(daemon: &Daemon) -> (Vec<Client>, Client) {
    (vec![daemon.connect(ANN), daemon.connect(ANN)], daemon.connect(BOB))
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

#[test]
fn users_are_listed_with_their_names_by_one_run_of_php() {
    let standin = standin();
    let (daemon, control) = Control::start(&standin, &[]);
    let (_ann, _bob) = connect(&daemon);
    let _eve = daemon.connect("eve");
    let probes = standin.probes();
    let table = control.output_of(&["status", "users"]);
    assert_eq!(standin.probes(), probes + 1);
    let expected = format!(
        "CONNECTIONS  USER               NAME\n          2  {ANN}  ann\n          1  {BOB}  bob\n          \
         1  eve                -\n"
    );
    assert_eq!(table, expected);
    let table_of_users = table;
    let expected = json!({"total": 3, "users": [
        {"user": ANN, "name": "ann", "connections": 2},
        {"user": BOB, "name": "bob", "connections": 1},
        {"user": "eve", "name": null, "connections": 1},
    ]});
    assert_eq!(read(&control.output_of(&["status", "users", "--json"])), expected);

    let table = control.output_of(&["status", "connections"]);
    assert_eq!(table.matches(&format!("  {ANN}  ann\n")).count(), 2, "{table}");
    let connections = read(&control.output_of(&["status", "connections", "--json"]));
    assert_eq!(connections["connections"][1]["name"], "bob");
    // A configuration file names the EspoCRM, its PHP and the control socket.
    let php = standin.php("wrapper", "touch data/standin/wrapper");
    let file = standin.path().join("config.toml");
    let (root, socket) = (standin.path().display(), Control::path(&standin));
    let text = format!("espocrm = \"{root}\"\nphp = {php:?}\ncontrol = {socket:?}\n");
    fs::write(&file, text).unwrap();
    let mut command = command();
    command.args(["status", "users", "--config"]).arg(&file);
    assert_eq!(String::from_utf8_lossy(&run(command).stdout), table_of_users);
    assert!(standin.path().join("data/standin/wrapper").exists());
    // The daemon itself does not know any name, and topics have none.
    assert_eq!(control.json("/users")["users"][0].get("name"), None);
    let probes = standin.probes();
    control.output_of(&["status", "topics"]);
    assert_eq!(standin.probes(), probes);
}

#[test]
fn a_user_is_kicked_by_name_or_by_id() {
    let standin = standin();
    let (mut daemon, control) = Control::start(&standin, &[]);
    let (mut ann, mut bob) = connect(&daemon);
    let probes = standin.probes();
    let printed = control.output_of(&["kick", "ann"]);
    assert!(
        printed.starts_with(&format!("2 connections of user ann (id {ANN}) were ended")),
        "{printed}"
    );
    assert_eq!(standin.probes(), probes + 1);
    ann.iter_mut().for_each(Client::expect_drop);
    bob.expect_silence();
    daemon.wait_for(&format!("The administrator ended 2 connections of user {ANN}."));
    assert_eq!(daemon.count("The administrator ended"), 1);
    // As the database compares names.
    let printed = control.output_of(&["kick", "BOB"]);
    assert!(
        printed.starts_with(&format!("1 connection of user bob (id {BOB}) was ended")),
        "{printed}"
    );
    bob.expect_drop();

    let mut ann = daemon.connect(ANN);
    let probes = standin.probes();
    let printed = control.output_of(&["kick", ANN]);
    assert!(printed.starts_with(&format!("1 connection of user {ANN} was ended")), "{printed}");
    assert_eq!(standin.probes(), probes);
    ann.expect_drop();
}

#[test]
fn a_name_that_cannot_be_kicked_is_an_error() {
    let standin = standin();
    let (daemon, control) = Control::start(&standin, &[]);
    let mut ann = daemon.connect(ANN);
    for (user, why) in [
        ("bob", format!("User bob (id {BOB}) has no connections.")),
        (
            "nobody",
            "No user with the id nobody has connections, and EspoCRM has no user with that".into(),
        ),
        ("' OR 1=1 --", "and EspoCRM has no user with that name".to_owned()),
    ] {
        let output = control.run(&["kick", user]);
        assert_eq!(output.status.code(), Some(1));
        assert!(errors(&output).contains(&why), "{}", errors(&output));
    }
    standin.set("probe-failure", "error");
    let output = control.run(&["kick", "ann"]);
    assert_eq!(output.status.code(), Some(1));
    let printed = errors(&output);
    assert!(
        printed.contains("User names are not available: The users of EspoCRM in ")
            && printed.contains("SQLSTATE"),
        "{printed}"
    );
    ann.expect_silence();
    assert!(control.output_of(&["kick", ANN]).starts_with("1 connection"));
}

#[test]
fn without_names_users_are_listed_by_id_and_the_reason_is_given() {
    let standin = standin();
    let (daemon, control) = Control::start(&standin, &[]);
    let (_ann, _bob) = connect(&daemon);
    let expected = format!("CONNECTIONS  USER\n          2  {ANN}\n          1  {BOB}\n");
    let check = |arguments: &[&str], why: &str| {
        let output = control.run(&[&["status", "users"], arguments].concat());
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        let printed = errors(&output);
        assert!(printed.starts_with("espocrm-websocket: User names are not shown: "), "{printed}");
        assert!(printed.contains(why) && printed.lines().count() == 1, "{printed}");
    };
    for (failure, why) in [
        ("crash", "Error: on purpose"),
        ("exit255", "PHP ended with status 255"),
        ("noise", "PHP printed something unexpected"),
        ("flood", "could not be read"),
    ] {
        standin.set("probe-failure", failure);
        check(&[], why);
    }
    standin.unset("probe-failure");
    check(&["--php", "/no/php"], "PHP could not be started as /no/php");
    check(&["--espocrm", "/no/espocrm"], "/no/espocrm");
    let root = standin.path().to_str().unwrap();
    check(&["--user", "no-such-user", "--espocrm", root], "no-such-user");
    // What the daemon reports does not decide where PHP code runs as a user who is named.
    check(&["--user", "nobody"], "--espocrm DIR");
    check(&["--allow-root"], "--espocrm DIR");
    let names = control.output_of(&["status", "users", "--espocrm", root]);
    assert!(names.contains("ann"), "{names}");
    standin.set("probe-failure", "crash");
    let users = read(&control.output_of(&["status", "users", "--json"]));
    assert_eq!(users["users"][0], json!({"user": ANN, "name": null, "connections": 2}));
}

#[test]
fn names_are_escaped() {
    let standin = standin();
    let name = "ann\u{1b}[2J\n\u{202e}\u{9b}";
    standin.set("users", &json!({ANN: name}).to_string());
    let (daemon, control) = Control::start(&standin, &[]);
    let mut ann = daemon.connect(ANN);
    let shown = r"ann\u{1b}[2J\n\u{202e}\u{9b}";
    let table = control.output_of(&["status", "users"]);
    assert!(table.ends_with(&format!("  {ANN}  {shown}\n")), "{table}");
    let raw = control.output_of(&["status", "users", "--json"]);
    assert!(raw.contains(r#""ann\u001b[2J\n\u202e\u009b""#), "{raw}");
    assert_eq!(read(&raw)["users"][0]["name"], name);
    let printed = control.output_of(&["kick", name]);
    assert!(
        printed.starts_with(&format!("1 connection of user {shown} (id {ANN}) was")),
        "{printed}"
    );
    ann.expect_drop();
}

#[test]
fn php_runs_as_the_sites_user_only() {
    let standin = standin();
    let record = "file_put_contents('data/standin/user', trim(strval(posix_geteuid()))) ;";
    let bootstrap = standin.path().join("bootstrap.php");
    let code = fs::read_to_string(&bootstrap).unwrap();
    let (daemon, control) = Control::start(&standin, &[]);
    fs::write(
        &bootstrap,
        code.replacen("chdir(__DIR__);", &("chdir(__DIR__);".to_owned() + record), 1),
    )
    .unwrap();
    let _ann = daemon.connect(ANN);
    let user = || fs::read_to_string(standin.path().join("data/standin/user")).unwrap();
    standin.unset("user");
    assert!(control.output_of(&["status", "users"]).contains("ann"));
    let expected = if is_root() { "65534" } else { "" };
    assert!(user().starts_with(expected) && user() != "0", "{}", user());
}

#[test]
fn the_daemons_own_user_sees_names_too() {
    let standin = standin();
    let path = Control::path(&standin);
    let mut command = command_as_nobody(&standin);
    command.args([
        "run",
        "--config",
        "/dev/null",
        "--debug",
        "--listen",
        "127.0.0.1",
        "--no-worker",
    ]);
    command.arg("--espocrm").arg(standin.path()).arg("--control").arg(&path);
    command.env("TMPDIR", standin.path());
    let daemon = Daemon::spawn(command);
    let _ann = daemon.connect(ANN);
    let mut command = command_as_nobody(&standin);
    command.args(["status", "users", "--control"]).arg(&path);
    let output = run(command);
    assert!(String::from_utf8_lossy(&output.stdout).contains("  ann\n"), "{}", errors(&output));
    // By root as well.
    assert!(Control::at(&path).output_of(&["status", "users"]).contains("  ann\n"));
}

/// Answers each request with the second argument, at a socket that the first one names.
const SERVER: &str = r#"
umask(0);
$server = stream_socket_server('unix://' . $argv[1]);
while ($stream = stream_socket_accept($server, 60)) {
    while (trim(fgets($stream)) !== '') {
    }
    $length = strlen($argv[2]);
    @fwrite($stream, "HTTP/1.1 200 OK\r\nContent-Length: $length\r\n\r\n" . $argv[2]);
    fclose($stream);
}
"#;

#[test]
fn another_users_daemon_does_not_choose_what_php_runs() {
    if !is_root() {
        return;
    }
    let standin = standin();
    let dir = TempDir::new("socket");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let socket = dir.path().join("control.sock");
    let answer = json!({
        "root": standin.path(), "total": 1, "users": [{"user": ANN, "connections": 1}],
    });
    let mut server = Command::new("php");
    server.args(["-r", SERVER]).arg(&socket).arg(answer.to_string()).uid(1).gid(1);
    let _server = ProcessGroup::start(server);
    eventually("it listens", || socket.exists());
    let ask = || {
        let mut command = command_as_nobody(&standin);
        command.args(["status", "users", "--control"]).arg(&socket);
        let output = run(command);
        (String::from_utf8_lossy(&output.stdout).into_owned(), errors(&output))
    };
    let (table, printed) = ask();
    assert!(table.contains(ANN) && !table.contains("ann"), "{table}");
    assert!(
        printed.contains("User names are not shown: EspoCRM's directory is not set"),
        "{printed}"
    );
    assert_eq!(standin.probes(), 0);
    // Root runs it as the owner of the directory, regardless of who names it.
    let table = Control::at(&socket).output_of(&["status", "users"]);
    assert!(table.contains("  ann\n"), "{table}");
}
