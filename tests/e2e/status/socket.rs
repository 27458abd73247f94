//! The control socket: its path, its permissions, and operation without one.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use crate::support::{
    Control, Daemon, Standin, command, command_as_nobody, eventually, is_root, run,
};

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_socket_accepts_only_root_and_the_user_of_the_daemon() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    let path = Control::path(&standin);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(control.output_of(&["status"]).contains(&daemon.address.to_string()));
    if !is_root() {
        return;
    }
    let as_nobody = || {
        let mut command = command_as_nobody(&standin);
        command.args(["status", "--control"]).arg(&path);
        let output = run(command);
        assert_eq!(output.status.code(), Some(1));
        errors(&output)
    };
    let reported = as_nobody();
    assert!(reported.contains("run the command as root, or as the daemon's user"), "{reported}");
    // Regardless of the file's mode.
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let reported = as_nobody();
    assert!(
        reported.contains("Only root and the daemon's user may use the control socket."),
        "{reported}"
    );
    control.get("/status");
}

#[test]
fn root_may_query_a_daemon_of_another_user() {
    if !is_root() {
        return;
    }
    let standin = Standin::new();
    let path = Control::path(&standin);
    let mut command = command_as_nobody(&standin);
    command.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm", "."]);
    command.arg("--control").arg(&path);
    let _daemon = Daemon::spawn(command);
    assert!(Control::at(&path).output_of(&["status"]).starts_with("espocrm-websocket "));
}

#[test]
fn a_stale_socket_is_replaced_and_the_own_socket_is_removed_at_exit() {
    let standin = Standin::new();
    let (daemon, _) = Control::start(&standin, &[]);
    let path = Control::path(&standin);
    daemon.stop("KILL");
    assert!(path.exists());
    let (daemon, control) = Control::start(&standin, &[]);
    control.get("/status");
    daemon.stop("TERM");
    assert!(!path.exists());
    // A file that was created there meanwhile is not removed.
    let (daemon, _) = Control::start(&standin, &[]);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    daemon.stop("TERM");
    assert!(path.exists());
}

#[test]
fn an_obstructing_file_is_kept_and_browsers_are_served_without_a_socket() {
    let standin = Standin::new();
    let path = Control::path(&standin);
    let expect_without = |why: &str| {
        let (mut daemon, _) = Control::start(&standin, &[]);
        let line = daemon.wait_for("No control socket");
        assert!(line.contains(why) && line.contains("Set control to another path"), "{line}");
        daemon.connect("alice").expect_silence();
        assert_eq!(daemon.count("No control socket"), 1);
        daemon.stop("TERM");
    };

    let other = Standin::new();
    let flags = ["--control", path.to_str().unwrap()];
    let living = Daemon::start_with(&other, &flags);
    expect_without("another daemon uses it");
    assert!(Control::at(&path).get("/status").contains(&living.address.to_string()));
    living.stop("TERM");

    // A socket that does not respond and has a full backlog.
    let busy = UnixListener::bind(&path).unwrap();
    let fill = |_| std::os::unix::net::UnixStream::connect(&path).unwrap();
    let _waiting: Vec<_> = (0..8).map(fill).collect();
    expect_without("another daemon uses it");
    drop(busy);
    fs::remove_file(&path).unwrap();

    fs::write(&path, "precious").unwrap();
    expect_without("that is not a socket");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn the_directory_must_exist_and_not_be_writable_for_others() {
    let standin = Standin::new();
    let open = standin.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    for (dir, why) in [("missing", "No such file"), ("open", "is world-writable")] {
        let path = standin.path().join(dir).join("control.sock");
        let mut daemon = Daemon::start_with(&standin, &["--control", path.to_str().unwrap()]);
        let line = daemon.wait_for("No control socket");
        assert!(line.contains(why), "{line}");
        assert!(!path.exists());
        daemon.connect("alice").expect_silence();
    }
    // As in /tmp, only the owner of a file can rename it.
    fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
    let path = open.join("control.sock");
    let _daemon = Daemon::start_with(&standin, &["--control", path.to_str().unwrap()]);
    Control::at(&path).get("/status");
}

#[test]
fn a_service_creates_its_socket_in_the_runtime_directory() {
    let standin = Standin::new();
    let dir = standin.path().join("runtime");
    fs::create_dir(&dir).unwrap();
    let mut command = command();
    command.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm"]);
    command.arg(standin.path()).env("RUNTIME_DIRECTORY", &dir);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("The control socket is ");
    Control::at(&dir.join("control.sock")).get("/status");
}

#[test]
fn a_manually_started_daemon_uses_run_if_permitted() {
    let standin = Standin::new();
    let usual = "run/espocrm-websocket/control.sock";
    if is_root() {
        // In a separate /run.
        let script = "mount -t tmpfs tmpfs /run && exec \"$@\"";
        let mut own = Command::new("unshare");
        own.args(["--mount", "sh", "-c", script, "sh"]).arg(command().get_program());
        own.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm"]);
        own.arg(standin.path()).env_remove("RUNTIME_DIRECTORY");
        let mut daemon = Daemon::spawn(own);
        daemon.wait_for("The control socket is /run/espocrm-websocket/control.sock");
        let root = format!("/proc/{}/root", daemon.pid());
        let path = std::path::Path::new(&root).join(usual);
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
        let dir = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(dir.permissions().mode() & 0o777, 0o755);
        let pid = daemon.pid().to_string();
        let mut ask = Command::new("nsenter");
        ask.args(["-t", &pid, "-m"]).arg(command().get_program()).args(["status", "--json"]);
        ask.args(["--config", "/dev/null"]);
        let output = run(ask);
        assert!(output.status.success(), "{}", errors(&output));
    }
    let mut command = command_as_nobody(&standin);
    command.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm", "."]);
    command.env_remove("RUNTIME_DIRECTORY");
    let mut daemon = Daemon::spawn(command);
    if is_root() {
        let line = daemon.wait_for("No control socket");
        assert!(line.contains("/run/espocrm-websocket does not belong to this user"), "{line}");
    }
}

#[test]
fn a_reload_moves_the_control_socket() {
    let standin = Standin::new();
    let file = standin.path().join("config.toml");
    let [first, second] = ["first.sock", "second.sock"].map(|name| standin.path().join(name));
    fs::write(&file, format!("control = {first:?}")).unwrap();
    let mut command = command();
    command.args(["run", "--listen", "127.0.0.1", "--espocrm"]).arg(standin.path());
    command.arg("--config").arg(&file);
    let mut daemon = Daemon::spawn(command);
    Control::at(&first).get("/status");
    fs::write(&file, format!("control = {second:?}")).unwrap();
    daemon.reload("EspoCRM's settings have changed");
    eventually("the new socket exists", || second.exists());
    Control::at(&second).get("/status");
    assert!(!first.exists());
    fs::write(&file, "control = \"off\"").unwrap();
    daemon.reload("EspoCRM's settings have changed");
    eventually("the socket is removed", || !second.exists());
}

#[test]
fn commands_find_the_daemon_by_its_configuration_and_report_a_missing_one() {
    let standin = Standin::new();
    let (daemon, _) = Control::start(&standin, &[]);
    let path = Control::path(&standin);
    let file = standin.path().join("config.toml");
    let ask = |flags: &[&str]| {
        let mut command = command();
        command.arg("status").args(flags);
        run(command)
    };
    let by_file = ["--config", file.to_str().unwrap()];
    fs::write(&file, format!("control = {path:?}")).unwrap();
    let output = ask(&by_file);
    assert!(String::from_utf8_lossy(&output.stdout).contains(&daemon.address.to_string()));
    fs::write(&file, "control = \"off\"").unwrap();
    let reported = errors(&ask(&by_file));
    assert!(reported.contains("The control socket is turned off"), "{reported}");
    let output = ask(&["--name", "no-such-service"]);
    let reported = errors(&output);
    assert!(reported.contains("/run/espocrm-websocket-no-such-service/control.sock"), "{reported}");
    assert!(reported.contains("systemctl status espocrm-websocket@no-such-service"), "{reported}");
    assert_eq!(output.status.code(), Some(1));
    daemon.stop("KILL");
    let reported = errors(&ask(&["--control", path.to_str().unwrap()]));
    assert!(reported.contains("No daemon answers at"), "{reported}");
}
