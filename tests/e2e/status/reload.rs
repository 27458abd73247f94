//! `espocrm-websocket reload`, which systemd runs for `systemctl reload`, returns when the settings
//! are applied.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::support::{Control, Daemon, Standin, command, eventually, run};

/// A PHP of [`Standin::php`] that does not report the settings while `data/standin/gate` exists.
const GATE: &str = "[ $# != 0 ] || echo >> data/standin/asked; \
    while [ $# = 0 ] && [ -e data/standin/gate ] && [ -e /proc/$PPID ]; do sleep 0.02; done";

/// A daemon with a configuration file.
fn start(standin: &Standin, flags: &[&str], settings: &str) -> (Daemon, PathBuf) {
    let file = standin.path().join("own.toml");
    fs::write(&file, settings).unwrap();
    let mut command = command();
    command.args(["run", "--listen", "127.0.0.1", "--debug", "--no-worker", "--espocrm"]);
    command.arg(standin.path()).arg("--config").arg(&file).args(flags);
    command.env("TMPDIR", standin.path());
    (Daemon::spawn(command), file)
}

fn control_at(standin: &Standin) -> String {
    format!("control = '{}'\n", Control::path(standin).display())
}

fn reload(file: &Path) -> Command {
    let mut reload = command();
    reload.arg("reload").arg("--config").arg(file).env_remove("MAINPID");
    reload
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn reload_returns_once_the_settings_are_applied_and_not_before() {
    let standin = Standin::new();
    let php = standin.php("php", GATE);
    let at = control_at(&standin);
    let (daemon, file) = start(&standin, &["--php", &php], &at);
    let control = Control::at(&Control::path(&standin));
    let mut tab = daemon.connect("alice");
    for limit in 1..=5 {
        fs::write(&file, format!("{at}max_per_user = {limit}\n")).unwrap();
        assert!(run(reload(&file)).status.success());
        assert_eq!(control.number("/settings/max_per_user"), limit);
    }

    standin.set("gate", "");
    fs::write(&file, format!("{at}max_per_user = 77\n")).unwrap();
    let asked = standin.path().join("data/standin/asked");
    let before = fs::read(&asked).unwrap().len();
    let waiting = [reload(&file), reload(&file)];
    let mut waiting = waiting.map(|mut it| it.stdout(Stdio::null()).spawn().unwrap());
    eventually("the probe runs", || fs::read(&asked).unwrap().len() > before);
    tab.expect_silence();
    for reload in &mut waiting {
        assert!(reload.try_wait().unwrap().is_none());
    }
    assert_eq!(control.number("/settings/max_per_user"), 5);
    standin.unset("gate");
    for reload in &mut waiting {
        assert!(reload.wait().unwrap().success());
        assert_eq!(control.number("/settings/max_per_user"), 77);
    }
    tab.expect_silence();
}

#[test]
fn reload_fails_with_the_reason_if_a_setting_cannot_be_applied() {
    let mut standin = Standin::new();
    let at = control_at(&standin);
    let (daemon, file) = start(&standin, &[], &at);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let control = Control::path(&standin);
    // With the current content of the file the daemon would not be found.
    let expect = |standin: &Standin, why: &str| {
        let mut reload = command();
        reload.arg("reload").arg("--control").arg(&control).env_remove("MAINPID");
        let output = run(reload);
        let reported = errors(&output);
        assert!(
            reported.contains(why) && reported.contains("Keeping the previous settings."),
            "{reported}"
        );
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        drop(daemon.connect("alice"));
        assert!(standin.path().exists());
    };
    fs::write(&file, format!("{at}max_per_users = 1\n")).unwrap();
    expect(&standin, "line 2: there is no setting \"max_per_users\"");
    fs::write(&file, &at).unwrap();
    standin.config("webSocketUseSecureServer", true);
    standin.config("webSocketSslCertificateFile", "missing.pem");
    expect(&standin, "missing.pem");
    standin.config("webSocketUseSecureServer", false);
    standin.config("webSocketZeroMQSubscriberDsn", format!("tcp://{taken}"));
    expect(&standin, "it is in use");
    standin.set("probe-failure", "exit255");
    expect(&standin, "EspoCRM");
    standin.unset("probe-failure");
    standin.config("webSocketZeroMQSubscriberDsn", daemon.zeromq.clone());
    assert!(run(reload(&file)).status.success());
}

#[test]
fn without_a_control_socket_reload_signals_the_main_process() {
    let standin = Standin::new();
    let (mut daemon, file) = start(&standin, &[], "control = 'off'\n");
    let output = run(reload(&file));
    assert!(errors(&output).contains("The control socket is turned off"), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(daemon.count("Reloading EspoCRM's settings"), 0);

    // The file may contain a path that the daemon does not use yet.
    for settings in ["control = 'off'\n".to_owned(), control_at(&standin)] {
        fs::write(&file, settings).unwrap();
        let lines = daemon.log().len();
        let mut by_systemd = reload(&file);
        by_systemd.env("MAINPID", daemon.pid().to_string());
        let output = run(by_systemd);
        let reported = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && reported.contains("SIGHUP was sent"), "{reported}");
        daemon.wait_for_after(lines, "EspoCRM's settings have ");
    }
    daemon.wait_for("The control socket is ");
    assert!(run(reload(&file)).status.success());
    assert_eq!(Control::at(&Control::path(&standin)).json("/status")["reloads"]["done"], json!(3));
}
