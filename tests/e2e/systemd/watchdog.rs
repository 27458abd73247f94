//! Watchdog notifications that show that the event loop runs.

use super::{Manager, after, kinds, serving};
use crate::support::{Client, Daemon, Standin, eventually};

/// The number of watchdog notifications.
fn watchdog_notifications(manager: &Manager) -> usize {
    manager.notifications().iter().filter(|text| text.starts_with("WATCHDOG=1\n")).count()
}

fn expect_more_watchdog_notifications(manager: &Manager) {
    let before = watchdog_notifications(manager);
    eventually("more notifications arrive", || watchdog_notifications(manager) >= before + 4);
}

#[test]
fn watchdog_notifications_repeat_and_contain_the_status() {
    // Only a shell that becomes the process knows the process id.
    for script in ["unset WATCHDOG_PID", "export WATCHDOG_PID=$$"] {
        let standin = Standin::new();
        let manager = Manager::new(&standin);
        let mut command = after(script, &serving(&standin, &["--check-timeout", "1h"]));
        command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "200000");
        command.env("WATCHDOG_PID", "1");
        let daemon = Daemon::spawn(command);
        expect_more_watchdog_notifications(&manager);
        assert!(manager.notifications()[0].starts_with("READY=1\n"));
        let status = |connections| {
            let (address, zeromq) = (daemon.address, &daemon.zeromq);
            let noun = if connections == 1 { "connection" } else { "connections" };
            format!(
                "WATCHDOG=1\nSTATUS=Serving {address}, EspoCRM sends to {zeromq}. {connections} \
                 {noun}, 0 messages received."
            )
        };
        manager.wait_for(&status(0));
        let tabs = [daemon.connect("alice"), daemon.connect("bob")];
        manager.wait_for(&status(2));

        // A hanging PHP is no reason for a restart.
        standin.set("failure", "hang");
        let _waiting = Client::open(daemon.address, "carol", "tok-carol");
        eventually("a check hangs", || standin.runs().len() == 3 && !daemon.children().is_empty());
        expect_more_watchdog_notifications(&manager);
        drop(tabs);
        manager.wait_for(&status(1));
    }
}

#[test]
fn watchdog_settings_of_another_process_are_ignored() {
    for (pid, micros) in [("1", "200000"), ("", "200000"), ("1x", "200000")].into_iter().chain([
        ("ours", "0"),
        ("ours", ""),
        ("ours", "200ms"),
        ("ours", "-1"),
    ]) {
        let standin = Standin::new();
        let manager = Manager::new(&standin);
        let script = match pid {
            "ours" => "export WATCHDOG_PID=$$".to_owned(),
            pid => format!("export WATCHDOG_PID={pid}"),
        };
        let mut command = after(&script, &serving(&standin, &[]));
        command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", micros);
        let mut daemon = Daemon::spawn(command);
        // The first notification would be sent immediately.
        daemon.connect("alice").expect_silence();
        daemon.reload("have not changed");
        manager.wait_for_number(2);
        daemon.signal("TERM");
        daemon.wait();
        assert_eq!(kinds(&manager.all()), ["READY", "RELOADING", "READY", "STOPPING"]);
    }
}
