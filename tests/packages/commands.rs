//! Commands for operation that an administrator runs as root.

use serde_json::Value;

use crate::container::{Container, Release};
use crate::package::{CONFIG, installed};
use crate::standin::PORT;
use crate::tab::{self, UNIT};

on_each_release! {
    only_root_can_query_a_service
    an_additional_service_is_queried_by_its_name
    the_doctor_reports_only_missing_parts
}

fn only_root_can_query_a_service(release: Release) {
    let container = installed(release);
    let _tab = tab::open(PORT);
    let status = container.run("espocrm-websocket status --json");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["connections"]["open"], 1, "{status}");
    let socket = "/run/espocrm-websocket/control.sock";
    let owner = container.run(&format!("stat -c '%U %a' {socket}"));
    assert_eq!(owner.trim(), "www-data 600");
    let as_nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let refused = container.fail(&format!("{as_nobody} espocrm-websocket status"));
    assert!(refused.contains("root"), "{refused}");
    // The sandbox does not prevent monitoring.
    container.run(&format!("echo 'metrics = \"127.0.0.1:9170\"' >>{CONFIG}"));
    container.run(&format!("systemctl reload {UNIT}"));
    crate::support::eventually("metrics are served", || {
        std::net::TcpStream::connect(tab::address(9170)).is_ok()
    });
    container.run(&format!("systemctl stop {UNIT}"));
    assert!(!container.exists(socket));
    let gone = container.fail("espocrm-websocket status");
    assert!(gone.contains("systemctl status"), "{gone}");
}

fn an_additional_service_is_queried_by_its_name(release: Release) {
    let container = installed(release);
    crate::standin::add_with(&container, "/srv/second", 8081, 5556);
    container.run("espocrm-websocket setup --espocrm /srv/second --name second");
    container.wait_until_active("espocrm-websocket@second.service");
    let output = container.run("espocrm-websocket status --name second");
    assert!(output.contains("/srv/second") && output.contains(":8081"), "{output}");
    let output = container.run("espocrm-websocket status");
    assert!(output.contains("/var/www/html") && !output.contains(":8081"), "{output}");
}

fn the_doctor_reports_only_missing_parts(release: Release) {
    let container = installed(release);
    // Installers write this file.
    container.write("/etc/hosts", "127.0.0.1 localhost\n");
    let faults = |container: &Container| {
        // A reported fault does not fail this test.
        let output = container.run("espocrm-websocket doctor --json 2>/dev/null || true");
        let steps: Vec<Value> = serde_json::from_str(&output).unwrap();
        assert!(steps.len() > 20, "{output}");
        let bad = steps.into_iter().filter(|step| step["state"] == "failure");
        let bad = bad.inspect(|step| eprintln!("{step}"));
        bad.map(|step| step["step"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(faults(&container), [""; 0]);
    let before = container.main_pid(UNIT);
    container.run(&format!("systemctl stop {UNIT}"));
    assert!(!faults(&container).is_empty());
    container.run(&format!("systemctl start {UNIT}"));
    assert_ne!(container.main_pid(UNIT), before);
}
