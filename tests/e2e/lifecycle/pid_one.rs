//! The daemon as the first process of a container without an init process.

use std::process::{Command, Stdio};

use crate::support::{Daemon, Process, Standin, command, eventually, serving_by};

/// Leaves behind a process that the daemon does not know: it has left the process group.
const ORPHAN: &str = "
shell_exec('setsid sh -c \"echo >> data/standin/orphans; sleep 0.2\" > /dev/null 2>&1 &');
";

const UNSHARE: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];

#[test]
fn as_pid_1_the_daemon_reaps_orphans_of_php() {
    let mut probe = Command::new("unshare");
    let probe = probe.args(UNSHARE).arg("true").stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: unshare(1) may not make a PID namespace here.");
        return;
    }
    let standin = Standin::new();
    let file = standin.path().join("bootstrap.php");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + ORPHAN).unwrap();
    for mode in ["--no-worker", "--debug"] {
        let mut unshare = Command::new("unshare");
        unshare.args(UNSHARE).arg(command().get_program());
        let mut run = serving_by(unshare, standin.path());
        run.args(["--listen", "127.0.0.1", "--debug", "--check-cache", "0", mode]);
        run.env("TMPDIR", standin.path());
        let mut daemon = Daemon::spawn(run);
        let mut tab = daemon.connect("alice");
        for id in 0..10 {
            daemon.subscribe(&mut tab, "alice", &format!("recordUpdate.Account.{id}"));
        }
        let orphans = std::fs::read_to_string(standin.path().join("data/standin/orphans")).unwrap();
        // Some processes were killed before they had left the group; they are orphans all the same.
        assert!(!orphans.is_empty());
        let children = daemon.children();
        let [init] = &children[..] else { panic!("{} children of unshare", children.len()) };
        eventually("only workers are left", || {
            let children = Process::children_of(init.pid);
            let is_worker =
                |it: &Process| Process::arguments(it.pid).iter().any(|word| word == "-S");
            children.iter().all(|it| it.state != 'Z' && is_worker(it))
        });
        // No exit status of the daemon's own children was lost.
        assert_eq!(daemon.count("The access check of a"), 0);
        daemon.connect("bob");
    }
}
