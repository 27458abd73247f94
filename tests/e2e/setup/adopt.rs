//! Replacing the unit that an administrator wrote.

use std::fs;

use super::Machine;
use super::machine::{CONFIG, DROP_IN, expect};

const UNIT: &str = "/etc/systemd/system/espocrm-websocket.service";
const BACKUP: &str = "/var/lib/espocrm-websocket/adopted";

/// As EspoCRM's administrators write it.
fn documented(dir: &str) -> String {
    format!(
        "[Unit]\nDescription=EspoCRM WebSocket Service\nRequires=mysql.service\n\
         After=mysql.service\n\n[Service]\nType=simple\nRestart=always\nRestartSec=5\n\
         StartLimitInterval=0\nUser=www-data\nExecStart=/usr/bin/php {dir}/websocket.php\n\
         StandardError={dir}/data/logs/websocket.log\n\n[Install]\nWantedBy=default.target\n"
    )
}

#[test]
fn the_documented_unit_is_adopted_and_restored() {
    let machine = Machine::new();
    machine.espocrm("/path/to/espocrm");
    machine.put(UNIT, &documented("/path/to/espocrm"));
    let wanted = "/etc/systemd/system/default.target.wants/espocrm-websocket.service";
    machine.link(wanted, UNIT);
    let before = machine.written();
    let printed = machine.adopt(&[]).unwrap();
    expect(
        &printed,
        &[
            "EspoCRM in /path/to/espocrm",
            "The old log is no longer written: /path/to/espocrm/data/logs",
        ],
    );
    expect(&printed, &["systemctl enable --now espocrm-websocket.service", "adopt --undo"]);
    expect(&machine.text(CONFIG), &["\nespocrm = \"/path/to/espocrm\"\n"]);
    assert!(!machine.has(UNIT) && !machine.has(wanted) && machine.has(DROP_IN));
    assert_eq!(
        machine.text(&format!("{BACKUP}/espocrm-websocket.service")),
        documented("/path/to/espocrm")
    );
    assert_eq!(machine.setup(&["--at-install"]), Ok(String::new()));
    expect(&machine.adopt(&["--undo"]).unwrap(), &[UNIT, "was restored", "Nothing was started"]);
    // The settings of the new service may have changed meanwhile.
    fs::remove_file(machine.at(CONFIG)).unwrap();
    assert_eq!(machine.written(), before);
    assert_eq!(machine.text(UNIT), documented("/path/to/espocrm"));
    assert_eq!(machine.at(wanted).read_link().unwrap().to_str(), Some(UNIT));
}

#[test]
fn a_unit_of_any_name_and_form_is_adopted() {
    let machine = Machine::new();
    machine.espocrm("/home/ann/my crm");
    machine.put(
        "/etc/systemd/system/crm-live.service",
        "[Service]\nWorkingDirectory=/home/ann/my crm\nExecStart=/usr/bin/php \\\n   websocket.php\n",
    );
    machine.adopt(&[]).unwrap();
    // As it is enabled in an image.
    let wanted = "/etc/systemd/system/multi-user.target.wants/espocrm-websocket.service";
    machine.link(wanted, "/usr/lib/systemd/system/espocrm-websocket.service");
    expect(&machine.text(CONFIG), &["\nespocrm = \"/home/ann/my crm\"\n"]);
    expect(&machine.text(DROP_IN), &["BindPaths=\"/home/ann/my crm\"\n"]);
    assert!(!machine.has("/etc/systemd/system/crm-live.service"));
    machine.adopt(&["--undo", "crm-live"]).unwrap();
    assert!(machine.has("/etc/systemd/system/crm-live.service"));
    assert!(!machine.has(DROP_IN) && !machine.has(wanted));
}

#[test]
fn each_of_several_units_gets_a_service() {
    let machine = Machine::new();
    for name in ["a", "b"] {
        machine.espocrm(&format!("/srv/{name}"));
        let unit = format!("/etc/systemd/system/{name}.service");
        machine.put(&unit, &documented(&format!("/srv/{name}")));
    }
    let commands = "\n  espocrm-websocket adopt a.service\n  espocrm-websocket adopt b.service\n";
    expect(&machine.adopt(&[]).unwrap_err(), &["Several units", commands]);
    expect(&machine.setup(&["--at-install"]).unwrap(), &["Several of your units", commands]);
    assert_eq!(machine.written().len(), 2);
    machine.adopt(&["a.service"]).unwrap();
    expect(&machine.adopt(&[]).unwrap_err(), &["adopt --name NAME b.service"]);
    machine.adopt(&["--name", "b", "b.service"]).unwrap();
    let drop_in = "/etc/systemd/system/espocrm-websocket@b.service.d/10-setup.conf";
    expect(&machine.text(drop_in), &["ReadWritePaths=/srv/b/data\n"]);
}

#[test]
fn without_a_unit_nothing_is_done() {
    let machine = Machine::new();
    machine.espocrm("/var/www/html");
    let words = ["No unit in /etc/systemd/system runs", "espocrm-websocket setup"];
    expect(&machine.adopt(&[]).unwrap_err(), &words);
    expect(&machine.adopt(&["--undo"]).unwrap_err(), &["No unit was adopted"]);
    assert!(machine.written().is_empty());
}
