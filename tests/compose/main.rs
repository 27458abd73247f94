//! The recipe for Docker Compose of docs/install.md in a real engine: what an administrator copies,
//! surrounded only by what every EspoCRM in Docker has. `make test-compose` starts its own engine
//! and runs this.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a failing test panics"
)]

#[expect(dead_code, unused_imports, reason = "the tests of the daemon use all of it")]
#[path = "../e2e/support/mod.rs"]
mod support;

mod project;

use std::process::Command;

use serde_json::json;

use project::Project;
use support::{Standin, eventually};

#[test]
#[ignore = "needs a Docker engine: make test-compose"]
fn the_daemon_is_healthy_and_tabs_receive_messages_from_php() {
    let standin = espocrm();
    let project = Project::up(&standin);
    eventually("the container is healthy", || project.health() == "healthy");
    let mut tab = project.connect();
    project.expect_event(&mut tab, 1);
    // The image's PHP answers, as the web server's user.
    let runs = standin.path().join("data/standin/runs");
    let owner = Command::new("stat").args(["-c", "%u"]).arg(runs).output().unwrap();
    assert_eq!(String::from_utf8(owner.stdout).unwrap(), "33\n");

    let log = project.log();
    assert!(log.contains("[INFO ] Browsers are served at ws://0.0.0.0:8080."), "{log}");
    assert!(!log.contains('\u{1b}') && !log.contains("tok-alice"), "{log}");
}

#[test]
#[ignore = "needs a Docker engine: make test-compose"]
fn tabs_reconnect_after_a_restart_and_after_a_kill() {
    let standin = espocrm();
    let project = Project::up(&standin);
    let mut tab = project.connect();
    let ends: [&dyn Fn(); 2] = [&|| project.signal("KILL"), &|| project.restart()];
    for end in ends {
        end();
        tab.expect_drop();
        tab = project.connect();
        project.expect_event(&mut tab, 1);
    }
    project.stop();
    tab.expect_drop();
    // It exited within the stop timeout and was not killed.
    assert_eq!(project.inspect("{{.State.ExitCode}}"), "0");
    assert!(project.log().contains("[INFO ] Stopped by SIGTERM, with 1 connection open."));
}

#[test]
#[ignore = "needs a Docker engine: make test-compose"]
fn the_container_restarts_until_espocrm_is_installed() {
    let standin = espocrm();
    let (config, away) = ("data/config.php", "data/config.away");
    let rename = |from: &str, to: &str| {
        std::fs::rename(standin.path().join(from), standin.path().join(to)).unwrap();
    };
    let bootstrap = ("bootstrap.php", "bootstrap.away");
    rename(config, away);
    rename(bootstrap.0, bootstrap.1);
    let project = Project::up(&standin);
    eventually("the service was restarted", || {
        project.inspect("{{.RestartCount}}").parse::<u32>().unwrap() >= 2
    });
    assert!(project.log().contains("/var/www/html"), "{}", project.log());
    rename(away, config);
    rename(bootstrap.1, bootstrap.0);
    let mut tab = project.connect();
    project.expect_event(&mut tab, 1);
}

#[test]
#[ignore = "needs a Docker engine: make test-compose"]
fn a_stopped_daemon_process_is_unhealthy() {
    let standin = espocrm();
    let project = Project::up(&standin);
    eventually("the container is healthy", || project.health() == "healthy");
    project.signal("STOP");
    eventually("the container is unhealthy", || project.health() == "unhealthy");
    project.signal("CONT");
    eventually("the container is healthy again", || project.health() == "healthy");
}

/// An EspoCRM with the configuration of one in Docker.
fn espocrm() -> Standin {
    let mut standin = Standin::new();
    standin.config("webSocketPort", json!(null));
    standin.config("webSocketZeroMQSubscriberDsn", "tcp://*:7777");
    standin.config("webSocketZeroMQSubmissionDsn", "tcp://espocrm-websocket:7777");
    let chown = Command::new("chown").args(["-R", "33:33"]).arg(standin.path()).status();
    assert!(chown.unwrap().success());
    standin
}
