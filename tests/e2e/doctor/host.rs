//! The machine: its service, `SELinux`, ports, clock and limits.

use super::Site;

#[test]
fn the_state_of_the_service_is_reported() {
    let site = Site::healthy();
    for (from, to, found) in [
        ("UnitFileState=enabled", "UnitFileState=disabled", "not start at boot"),
        ("NRestarts=0", "NRestarts=4", "restarted it 4 times"),
        ("ActiveState=active", "ActiveState=inactive", "A daemon is running, but"),
        ("ActiveState=active", "ActiveState=activating", "is starting"),
    ] {
        site.our_unit(from, to);
        site.examine().only_warning("service", &[found, "espocrm-websocket.service"]);
    }
    for (from, to, found) in [
        ("LoadState=loaded", "LoadState=masked", "unmask"),
        ("ActiveState=active", "ActiveState=failed", "has failed"),
        (
            "ActiveState=active\nSubState=running",
            "ActiveState=activating\nSubState=auto-restart",
            "systemd restarts it (success)",
        ),
    ] {
        site.our_unit(from, to);
        site.examine().only_failure("service", &[found, "espocrm-websocket.service"]);
    }
    site.our_unit("LoadState=loaded", "LoadState=not-found");
    site.examine().unknown("service", &["espocrm-websocket.service does not exist"]);
    site.program("systemctl", "echo 'Failed to connect to bus' >&2; exit 1");
    site.examine().unknown("service", &["Failed to connect to bus"]);
    std::fs::remove_dir_all(site.at("/run/systemd")).unwrap();
    site.examine().unknown("service", &["systemd is not running here"]);
}

#[test]
fn a_stopped_service_is_reported() {
    let site = Site::without_proxy();
    site.our_unit("ActiveState=active", "ActiveState=inactive");
    site.examine().failure("service", &["is not running", "systemctl enable --now"]);
    site.our_unit(
        "ActiveState=active\nSubState=running\nResult=success\nNRestarts=0\nConditionResult=yes",
        "ActiveState=inactive\nConditionResult=no",
    );
    site.examine().failure("service", &["not set up", "espocrm-websocket setup"]);
    site.our_unit("LoadState=loaded", "LoadState=not-found");
    site.examine().failure("service", &["does not exist", "Install the espocrm-websocket package"]);
}

#[test]
fn a_service_that_was_never_started_is_reported() {
    let site = Site::without_proxy();
    site.our_unit(
        "ActiveState=active\nSubState=running\nResult=success\nNRestarts=0\nConditionResult=yes",
        "ActiveState=inactive\nConditionResult=no",
    );
    site.put("/etc/espocrm-websocket/config.toml", "");
    let diagnosis = site.examine();
    diagnosis.failure("service", &["is not running", "systemctl enable --now"]);
}

#[test]
fn the_failure_of_one_of_several_services_is_reported() {
    let site = Site::healthy();
    let unit = "espocrm-websocket@sales.service";
    let examine = || super::site::Diagnosis::of(&site.run(&["--json", "--name", "sales"]));
    let diagnosis = examine();
    diagnosis.unknown("service", &[unit]);
    diagnosis.good("port", "espocrm-websocket");
    // Its own daemon is a different process from the one that uses the ports.
    let running = |pid: u32| {
        let text = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n";
        site.unit(unit, &format!("{text}NRestarts=0\nMainPID={pid}\n"));
    };
    running(std::process::id());
    let diagnosis = examine();
    let own = ["its own ports", "webSocketPort"];
    diagnosis.first_failure("port", &["the daemon of another EspoCRM", own[0], own[1]]);
    diagnosis.failure("zeromq-port", &own);
    diagnosis.failure("daemon", &["serves another EspoCRM"]);
    running(site.daemon.as_ref().unwrap().pid());
    let diagnosis = examine();
    diagnosis.good("port", "espocrm-websocket");
    assert_eq!(diagnosis.status, 0);
}

#[test]
fn a_unit_of_the_original_daemon_is_reported() {
    let site = Site::healthy();
    let unit = "[Service]\nExecStart=/usr/bin/php /var/www/html/websocket.php\n";
    site.put("/etc/systemd/system/crm.service", unit);
    site.unit("crm.service", "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n");
    site.examine().only_failure("old-unit", &["crm.service still runs", "adopt crm.service"]);
    site.unit("crm.service", "LoadState=loaded\nUnitFileState=enabled\nActiveState=inactive\n");
    site.examine().only_warning("old-unit", &["crm.service starts", "disable --now"]);
    site.unit("crm.service", "LoadState=loaded\nUnitFileState=disabled\nActiveState=inactive\n");
    site.examine().good("old-unit", "No systemd unit");
}

#[test]
fn selinux_that_blocks_the_web_server_is_reported() {
    let site = Site::healthy();
    site.put("/sys/fs/selinux/enforce", "1");
    site.put("/sys/fs/selinux/booleans/httpd_can_network_connect", "0 0");
    site.examine().only_failure("selinux", &["setsebool -P httpd_can_network_connect 1"]);
    site.put("/sys/fs/selinux/booleans/httpd_can_network_connect", "1 1");
    site.examine().good("selinux", "allows the web server to connect");
}

#[test]
fn a_browser_port_reachable_from_other_machines_is_reported() {
    let site = Site::healthy();
    // As after a restart.
    let mut site = site;
    site.daemon.take().unwrap().stop("TERM");
    std::fs::write(site.config(), "max_checks = 2\ncontrol = 'off'\n").unwrap();
    let config = site.config().display().to_string();
    let parts = ["use a proxy", "listen = \"127.0.0.1\"", &config];
    site.examine().warning("port-exposure", &parts);
    site.put("/run/.containerenv", "");
    site.examine().good("port-exposure", "in a container");
}

#[test]
fn an_unsynchronized_clock_is_reported() {
    let site = Site::healthy();
    site.program("timedatectl", "echo no");
    site.examine().only_warning("clock", &["set-ntp"]);
    site.program("timedatectl", "exit 1");
    site.examine().good("clock", "plausible");
}

#[test]
fn a_low_open_file_limit_of_the_running_daemon_is_reported() {
    let site = Site::healthy();
    site.daemon.as_ref().unwrap().limit("--nofile=1024:");
    site.examine().only_warning("open-files", &["1024", "LimitNOFILE=10256"]);
}

#[test]
fn more_connections_than_memory_allows_are_reported() {
    let site = Site::healthy();
    site.settings("max_connections = 1000000000");
    let diagnosis = site.examine();
    diagnosis.only_warning("memory", &["reduce max_connections"]);
    diagnosis.warning("open-files", &[]);
    site.settings("");
    site.put("/sys/fs/cgroup/memory.max", "1000000\n");
    site.examine().only_warning("memory", &["reduce max_connections"]);
}
