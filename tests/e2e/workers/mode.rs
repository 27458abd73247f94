//! Where workers are unavailable, the plain command is run, which is logged and shown.

use super::expect_mode;
use crate::support::{Client, Daemon, Standin, command, run};

/// Logged when workers are not used.
const PLAIN: &str = "Each access check runs in its own PHP process: ";

/// A PHP without opcache.
const NO_OPCACHE: &str = "exec php -n \"$@\"";

#[test]
fn checks_run_as_plain_commands_if_workers_are_unavailable() {
    for (version, shell, flags, reason) in [
        ("5.6.0", "", &[][..], "PHP workers need EspoCRM 7.0 or later"),
        ("6.1.10", "", &[], "PHP workers need EspoCRM 7.0 or later"),
        ("9.2.7", NO_OPCACHE, &[], "the PHP CLI has no opcache"),
        ("9.2.7", "", &["--no-worker"], "worker is set to false"),
    ] {
        let standin = Standin::version(version);
        let php = standin.php("php", shell);
        let flags = [&["--php", &*php], flags].concat();
        let mut daemon = Daemon::with_workers(&standin, &flags);
        let mut tab = daemon.connect("alice");
        daemon.subscribe(&mut tab, "alice", "recordUpdate.Account.1");
        tab.subscribe("recordUpdate.Account.deny1");
        daemon.wait_for("check access failed for topic recordUpdate.Account.deny1");
        Client::open(daemon.address, "alice", "guessed").expect_close(1008);
        tab.expect_silence();
        expect_mode(&standin, "plain");
        assert_eq!(daemon.count(PLAIN), 1);
        assert_eq!(daemon.count(&format!("{PLAIN}{reason}")), 1);
        let shown = shown(&standin, &flags);
        assert!(shown.starts_with(&format!("a PHP process each ({reason}")), "{shown}");
        let source = if reason == "worker is set to false" { "command line" } else { "default" };
        assert!(shown.ends_with(source), "{shown}");
    }
}

#[test]
fn workers_are_used_and_shown_if_available() {
    for version in ["7.0.0", "9.2.7", "10.0.0"] {
        let standin = Standin::version(version);
        let daemon = Daemon::with_workers(&standin, &[]);
        daemon.connect("alice");
        expect_mode(&standin, "worker");
        assert_eq!(daemon.count(PLAIN), 0);
        let shown = shown(&standin, &[]);
        assert!(shown.contains("warm PHP worker") && shown.ends_with("default"), "{shown}");
    }
}

#[test]
fn the_lack_of_workers_is_not_logged_again_after_unrelated_changes() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    standin.state("9.3.0");
    daemon.reload("EspoCRM's settings have changed: EspoCRM 9.3.0");
    daemon.connect("alice");
    assert_eq!(daemon.count(PLAIN), 1);
}

#[test]
fn an_update_of_espocrm_enables_workers_and_a_downgrade_disables_them() {
    let standin = Standin::new();
    standin.state("6.1.10");
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    daemon.connect("alice");
    for (version, mode) in [("7.0.0", "worker"), ("6.1.10", "plain"), ("9.2.7", "worker")] {
        standin.state(version);
        daemon.reload(&format!("have changed: EspoCRM {version}"));
        daemon.connect("alice");
        assert_eq!(standin.modes().last().unwrap(), mode, "{version}");
        assert_eq!(daemon.workers().len(), usize::from(mode == "worker"));
    }
}

/// How checks are run, according to `config`.
fn shown(standin: &Standin, flags: &[&str]) -> String {
    let mut command = command();
    command.args(["config", "--config", "/dev/null", "--espocrm"]).arg(standin.path()).args(flags);
    let output = run(command);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("checks by")).unwrap();
    line.trim().to_owned()
}
