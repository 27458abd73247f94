//! Which EspoCRM `setup` uses.

use std::fs;

use super::Machine;
use super::machine::{CONFIG, DROP_IN, expect};
use crate::support::{TempDir, command, run};

#[test]
fn a_single_espocrm_is_found_in_any_location() {
    for dir in [
        "/var/www/html",
        "/var/www/crm",
        "/var/www/html/crm",
        "/srv/crm",
        "/srv/www/crm",
        "/srv/www/htdocs",
        "/usr/share/nginx/html",
        "/usr/share/nginx/crm",
        "/home/ann/public_html",
        "/home/ann/www",
        "/home/ann/htdocs",
        "/opt/crm",
    ] {
        let machine = Machine::new();
        machine.espocrm(dir);
        expect(&machine.setup(&[]).unwrap(), &[&format!("EspoCRM in {dir}, user web")]);
        expect(&machine.text(CONFIG), &[&format!("\nespocrm = \"{dir}\"\n")]);
        assert_eq!(machine.written(), [CONFIG, DROP_IN]);
    }
}

#[test]
fn a_directory_may_be_relative() {
    let machine = Machine::new();
    let dir = TempDir::new("here");
    let name = dir.path().canonicalize().unwrap();
    machine.espocrm(name.to_str().unwrap());
    let mut setup = command();
    setup.args(["setup", "--espocrm", ".", "--root"]).arg(machine.at("/")).current_dir(&name);
    assert_eq!(run(setup).status.code(), Some(0));
    expect(&machine.text(CONFIG), &[&format!("\nespocrm = \"{}\"\n", name.display())]);
}

#[test]
fn document_roots_of_web_servers_are_searched() {
    for (file, text, dir) in [
        ("/etc/nginx/sites-available/crm", "server { root /data/crm/public; }", "/data/crm"),
        ("/etc/nginx/conf.d/crm.conf", "server {\n\troot \"/data/my crm\";\n}", "/data/my crm"),
        ("/etc/nginx/nginx.conf", "http{server{root /data/crm;}}", "/data/crm"),
        ("/etc/apache2/sites-available/crm", "\tDocumentRoot /data/crm/public\n", "/data/crm"),
        ("/etc/apache2/vhosts.d/crm.conf", "DocumentRoot '/data/crm'", "/data/crm"),
        ("/etc/httpd/conf.d/crm.conf", "documentroot \"/data/crm/\"\n", "/data/crm"),
        ("/etc/httpd/conf/httpd.conf", "DocumentRoot /data/crm\n", "/data/crm"),
    ] {
        let machine = Machine::new();
        machine.espocrm(dir);
        machine.put(file, text);
        if file.contains("sites-available") {
            machine.link(&file.replace("available", "enabled"), file);
        }
        machine.setup(&[]).unwrap();
        expect(&machine.text(CONFIG), &[&format!("\nespocrm = \"{dir}\"\n")]);
    }
}

#[test]
fn an_espocrm_found_twice_counts_once() {
    let machine = Machine::new();
    machine.espocrm("/srv/crm");
    machine.link("/var/www/html", "/srv/crm");
    machine.link("/var/www/crm", "../../srv/crm");
    machine
        .put("/etc/nginx/conf.d/crm.conf", "root /srv/crm/public; root /srv/crm; root /srv/crm;");
    machine.setup(&[]).unwrap();
    expect(&machine.text(CONFIG), &["espocrm = \"/srv/crm\""]);
}

#[test]
fn without_an_espocrm_nothing_is_written() {
    let machine = Machine::new();
    machine.espocrm("/var/www/half");
    fs::remove_file(machine.at("/var/www/half/command.php")).unwrap();
    machine.espocrm("/var/www/other");
    fs::remove_dir_all(machine.at("/var/www/other/data")).unwrap();
    let words = ["No EspoCRM was found", "\n  espocrm-websocket setup --espocrm DIR\n"];
    expect(&machine.setup(&[]).unwrap_err(), &words);
    expect(&machine.setup(&["--at-install"]).unwrap(), &words);
    let error = machine.setup(&["--espocrm", "/var/www/half"]).unwrap_err();
    expect(&error, &["/var/www/half contains no command.php"]);
    let error = machine.setup(&["--espocrm", "/nonexistent"]).unwrap_err();
    expect(&error, &["/nonexistent: No such file"]);
    assert!(machine.written().is_empty());
}

#[test]
fn none_of_several_is_chosen() {
    let machine = Machine::new();
    for dir in ["/var/www/html", "/var/www/sales", "/srv/sales", "/home/ann/public_html"] {
        machine.espocrm(dir);
    }
    let commands = "\n  espocrm-websocket setup --espocrm /var/www/html\
                    \n  espocrm-websocket setup --name sales --espocrm /var/www/sales\
                    \n  espocrm-websocket setup --name sales-2 --espocrm /srv/sales\
                    \n  espocrm-websocket setup --name ann --espocrm /home/ann/public_html\n";
    expect(&machine.setup(&[]).unwrap_err(), &["several EspoCRMs", commands]);
    expect(&machine.setup(&["--at-install"]).unwrap(), &["several EspoCRMs", commands]);
    assert!(machine.written().is_empty());
    // The printed commands have the described effect.
    for command in commands.lines().filter(|line| !line.is_empty()) {
        let words: Vec<_> = command.split_whitespace().skip(1).collect();
        machine.run(&words).unwrap();
    }
    assert_eq!(machine.written().len(), 8);
    assert_eq!(machine.setup(&["--at-install"]), Ok(String::new()));
}

#[test]
fn a_unit_of_the_administrator_is_reported_and_kept() {
    let machine = Machine::new();
    machine.espocrm("/var/www/html");
    let unit = "/etc/systemd/system/espocrm-websocket.service";
    machine.put(unit, "[Service]\nExecStart=/usr/bin/php /var/www/html/websocket.php\n");
    let words = [unit, "\n  espocrm-websocket adopt espocrm-websocket.service\n"];
    expect(&machine.setup(&[]).unwrap_err(), &words);
    expect(&machine.setup(&["--at-install"]).unwrap(), &words);
    assert_eq!(machine.written(), [unit]);
}
