//! The files that `setup` writes, and who can read them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use super::Machine;
use super::machine::{CONFIG, DROP_IN, expect};
use crate::support::{Standin, TempDir, command, is_root, run};

#[test]
fn the_daemon_runs_with_the_written_settings() {
    // The EspoCRM has the same path in the image and here.
    let standin = Standin::new();
    let dir = standin.path().canonicalize().unwrap();
    let dir = dir.to_str().unwrap();
    let machine = Machine::new();
    machine.espocrm(dir);
    machine.put("/etc/nginx/nginx.conf", &format!("http {{ server {{ root {dir}/public; }} }}"));
    machine.setup(&[]).unwrap();
    let mut config = command();
    config.arg("config").arg("--config").arg(machine.at(CONFIG));
    let shown = String::from_utf8(run(config).stdout).unwrap();
    let head =
        format!("file              {}\nroot              {dir}\n", machine.at(CONFIG).display());
    assert!(shown.starts_with(&head), "{shown}");
}

#[test]
fn every_user_can_read_the_settings() {
    let machine = Machine::new();
    machine.espocrm("/var/www/html");
    machine.put(CONFIG, "espocrm = '/var/www/html'\n");
    let dir = machine.at("/etc/espocrm-websocket");
    fs::set_permissions(machine.at(CONFIG), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    if is_root() {
        chown(machine.at(CONFIG), Some(33), Some(33)).unwrap();
        chown(&dir, Some(33), Some(33)).unwrap();
    }
    machine.setup(&[]).unwrap();
    for (path, mode) in [
        (CONFIG, 0o644),
        (DROP_IN, 0o644),
        ("/etc/espocrm-websocket", 0o755),
        ("/etc/systemd/system/espocrm-websocket.service.d", 0o755),
    ] {
        let metadata = machine.at(path).metadata().unwrap();
        assert_eq!(metadata.mode() & 0o7777, mode, "{path}");
        assert!(metadata.uid() == 0 || !is_root(), "{path}");
    }
    assert_eq!(machine.text(CONFIG), "espocrm = '/var/www/html'\n");
}

#[test]
fn a_second_run_writes_nothing() {
    let machine = Machine::new();
    machine.espocrm("/var/www/html");
    expect(&machine.setup(&["--at-install"]).unwrap(), &[CONFIG, DROP_IN, "user web"]);
    let files = [CONFIG, DROP_IN].map(|path| machine.at(path).metadata().unwrap().ino());
    assert_eq!(machine.setup(&["--at-install"]), Ok(String::new()));
    expect(&machine.setup(&[]).unwrap(), &["settings (unchanged)"]);
    assert_eq!(files, [CONFIG, DROP_IN].map(|path| machine.at(path).metadata().unwrap().ino()));
    // An upgrade that writes a different drop-in reports that.
    machine.put(DROP_IN, "[Service]\nUser=old\n");
    expect(&machine.setup(&["--at-install"]).unwrap(), &[DROP_IN]);
    expect(&machine.text(DROP_IN), &["User=web\n"]);
}

#[test]
fn all_settings_except_the_directory_are_kept() {
    let machine = Machine::new();
    machine.espocrm("/srv/a");
    machine.espocrm("/srv/b");
    let text = "# ours\nmax_checks = 7\n#espocrm = '/x'\nespocrm = '/srv/a'  # here\n";
    machine.put(CONFIG, text);
    machine.setup(&[]).unwrap();
    assert_eq!(machine.text(CONFIG), text);
    expect(&machine.text(DROP_IN), &["ReadWritePaths=/srv/a/data\n"]);
    machine.setup(&["--espocrm", "/srv/b/"]).unwrap();
    assert_eq!(machine.text(CONFIG), text.replace("'/srv/a'", "\"/srv/b\""));
    expect(&machine.text(DROP_IN), &["ReadWritePaths=/srv/b/data\n"]);
    machine.setup(&["--name", "sales", "--espocrm", "/srv/a"]).unwrap();
    let drop_in = "/etc/systemd/system/espocrm-websocket@sales.service.d/10-setup.conf";
    let file = "/etc/espocrm-websocket/sales.toml";
    assert_eq!(machine.written(), [CONFIG, file, DROP_IN, drop_in]);
    expect(&machine.text(drop_in), &["`espocrm-websocket setup --name sales`", "/srv/a/data\n"]);
}

#[test]
fn data_owned_by_root_is_rejected_with_instructions() {
    if !is_root() {
        eprintln!("skipped: only root can have files belong to others");
        return;
    }
    let machine = Machine::new();
    machine.espocrm("/var/www/html");
    chown(machine.at("/var/www/html/data"), Some(0), Some(0)).unwrap();
    let words = ["/var/www/html/data belongs to root", "chown -R www-data: /var/www/html\n"];
    expect(&machine.setup(&[]).unwrap_err(), &words);
    expect(&machine.setup(&["--at-install"]).unwrap(), &words);
    assert!(machine.written().is_empty());
}

#[test]
fn systemd_understands_the_drop_in() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    }
    for dir in ["/var/www/html", "/srv/my crm/100%: \"it's\" $HOME \\n", "/home/ann/my: crm %h"] {
        let machine = Machine::new();
        machine.espocrm(dir);
        machine.setup(&["--espocrm", dir]).unwrap();
        let temp = TempDir::new("unit");
        let unit = temp.path().join("x.service");
        let text = format!("[Service]\nExecStart=/bin/true\n{}", machine.text(DROP_IN));
        fs::write(&unit, text).unwrap();
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["verify", "--man=no"]).arg(unit).env("SYSTEMD_LOG_LEVEL", "debug");
        let output = analyze.output().unwrap();
        let seen = [output.stdout, output.stderr].concat();
        let seen = String::from_utf8(seen).unwrap();
        expect(&seen, &["\tUser: web\n"]);
        expect(&seen, &[&format!("\tReadWritePaths: {dir}/data\n")]);
        if dir.starts_with("/home") {
            let home = format!("\tBindPaths: {dir}:{dir}:rbind\n");
            expect(&seen, &["\tProtectHome: tmpfs\n", &home]);
        }
    }
}

#[test]
fn only_root_may_change_this_machine() {
    if !is_root() {
        eprintln!("skipped: needs a second user");
        return;
    }
    let standin = Standin::new();
    let mut setup = crate::support::command_as_nobody(&standin);
    setup.arg("setup");
    let output = run(setup);
    assert_eq!(output.status.code(), Some(1));
    expect(&String::from_utf8(output.stderr).unwrap(), &["as root"]);
}
