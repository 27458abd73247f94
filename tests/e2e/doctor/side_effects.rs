//! The doctor does not affect the running system.

use std::process::{Command, Stdio};
use std::thread;

use super::Site;
use crate::support::{Process, alice, command, eventually, expect_alive};

#[test]
fn tabs_are_not_affected_and_the_log_mentions_only_a_rejected_login() {
    let site = Site::healthy();
    let daemon = site.daemon.as_ref().unwrap();
    let mut tab = alice(daemon);
    let mut through = site.proxy.as_ref().unwrap().connect("bob");
    let before = daemon.log().len();
    let probes = site.standin.probes();
    for _ in 0..3 {
        assert_eq!(site.examine().status, 0);
    }
    tab.expect_silence();
    through.expect_silence();
    expect_alive(daemon, &mut tab, 1);
    // The doctor itself runs the probe once per examination.
    assert_eq!(site.standin.probes(), probes + 3);
    let log = daemon.log().split_off(before);
    for line in &log {
        assert!(line.contains("[DEBUG]"), "{line}");
    }
    let warnings = ["WARN", "ERROR"].map(|level| daemon.count(level));
    assert!(warnings.iter().sum::<usize>() <= 1, "only that it runs as root: {log:?}");
}

/// `run`, which all other tests here use, would find a token in the output.
#[test]
fn the_logins_of_the_doctor_use_no_real_user() {
    let site = Site::healthy();
    site.examine();
    let logins: Vec<_> = site
        .standin
        .arguments()
        .into_iter()
        .filter(|words| words.first().is_some_and(|word| word == "AuthTokenCheck"))
        .collect();
    assert_eq!(logins.len(), 3, "{logins:?}");
    let text = site.text_output(&[]);
    for words in logins {
        assert_eq!((words[1].len(), &*words[2]), (32, "doctor"));
        assert!(!text.contains(&words[1]));
    }
    assert_eq!(site.standin.modes(), ["plain", "worker", "worker", "plain", "worker", "worker"]);
}

#[test]
fn the_doctor_leaves_no_files_behind() {
    let site = Site::healthy();
    site.examine();
    let left = std::fs::read_dir(site.standin.path()).unwrap().flatten();
    let left: Vec<_> = left
        .map(|it| it.file_name())
        .filter(|it| it.to_string_lossy().contains("router"))
        .collect();
    assert_eq!(left.len(), 0, "{left:?}");
}

/// All child processes end with the doctor, even if it is killed.
#[test]
fn a_stopped_or_killed_doctor_leaves_no_processes_behind() {
    for signal in ["INT", "KILL"] {
        let site = Site::healthy();
        site.standin.set("failure", "hang");
        let mut doctor = command();
        doctor.arg("doctor").arg("--espocrm").arg(site.standin.path());
        doctor.arg("--config").arg(site.config()).arg("--root").arg(site.at("/"));
        doctor.stdout(Stdio::null()).stderr(Stdio::null());
        let mut doctor = doctor.spawn().unwrap();
        let mut children = Vec::new();
        eventually("a check runs", || {
            children = Process::children_of(doctor.id());
            children.iter().any(|child| {
                Process::arguments(child.pid).iter().any(|word| word == "AuthTokenCheck")
            })
        });
        let pid = doctor.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let ended = thread::spawn(move || doctor.wait().unwrap());
        eventually("it ends", || ended.is_finished());
        assert!(!ended.join().unwrap().success());
        eventually("its children end", || {
            !children.iter().any(|child| Process::is_running(child.pid))
        });
    }
}
