//! `adopt` in a system image with a fake systemd.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::admin::setup::image::Image;

const SERVICE: &str = "espocrm-websocket.service";
const CONFIG: &str = "/etc/espocrm-websocket/config.toml";
const DROP_IN: &str = "/etc/systemd/system/espocrm-websocket.service.d/10-setup.conf";
const WANTED: &str = "/etc/systemd/system/default.target.wants";
const BACKUPS: &str = "/var/lib/espocrm-websocket/adopted";

/// The unit in EspoCRM's documentation.
const DOCUMENTED: &str = "[Unit]\nDescription=EspoCRM WebSocket Service\nRequires=mysql.service\n\
    After=mysql.service\n[Service]\nType=simple\nRestart=always\nRestartSec=5\n\
    StartLimitInterval=0\nUser=www-data\nExecStart=/usr/bin/php /var/www/html/websocket.php\n\
    StandardError=/var/www/html/data/logs/websocket.log\n[Install]\nWantedBy=default.target\n";

/// An image with an EspoCRM and a unit for it that is enabled and runs.
fn machine(unit: &str) -> Image {
    let image = Image::new();
    image.espocrm("/var/www/html");
    image.put(&own(unit), DOCUMENTED);
    image.link(&format!("{WANTED}/{unit}"), &own(unit));
    image.put(&format!("/systemctl.d/active/{unit}"), "active\n");
    image
}

fn own(unit: &str) -> String {
    format!("/etc/systemd/system/{unit}")
}

/// Runs `adopt` with these flags. Returns its output, or the error.
fn adopt(image: &Image, flags: &str) -> std::result::Result<String, String> {
    let mut parser = lexopt::Parser::from_args(flags.split_whitespace());
    let adopt = Adopt::parse(&mut parser).unwrap().unwrap();
    let (output, result) = image.run(|machine| adopt.run_on(machine));
    result.map(|()| output).map_err(|error| error.to_string())
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn users_are_shown_by_name() {
    for (written, shown) in [("33", None), ("34", Some("web-deploy")), ("4711", Some("4711"))] {
        let image = machine(SERVICE);
        let web = fs::metadata(image.at("/var/www/html/data")).unwrap().uid();
        let passwd = format!("web:x:{web}:1::/:/x\nweb-deploy:x:34:34::/:/x\n");
        image.put("/etc/passwd", &passwd);
        let written = if written == "33" { web.to_string() } else { written.to_owned() };
        image.put(&own(SERVICE), &DOCUMENTED.replace("www-data", &written));
        let output = adopt(&image, &format!("--user {web}")).unwrap();
        has(&output, &["EspoCRM in /var/www/html, user web"]);
        has(&image.text(DROP_IN), &["User=web\n"]);
        match shown {
            // The same user, as a number.
            None => assert!(!output.contains("The old unit ran as"), "{output}"),
            Some(name) => has(&output, &[&format!("The old unit ran as {name},")]),
        }
    }
}

#[test]
fn the_documented_unit_is_replaced() {
    let image = machine(SERVICE);
    let output = adopt(&image, "").unwrap();
    has(
        &output,
        &[
            "saved to /var/lib/espocrm-websocket/adopted/espocrm-websocket.service",
            "EspoCRM in /var/www/html, user web",
            "The old unit ran as www-data",
            "The old log is no longer written: /var/www/html/data/logs/websocket.log",
            "journalctl -u",
            "espocrm-websocket adopt --undo espocrm-websocket.service",
        ],
    );
    let unit = SERVICE;
    let calls = [
        format!("is-active {unit}"),
        format!("stop {unit}"),
        "daemon-reload".to_owned(),
        format!("enable {unit}"),
        format!("reset-failed {unit}"),
        format!("restart {unit}"),
        format!("is-active {unit}"),
    ];
    assert_eq!(image.calls(), calls);
    assert!(!image.has(&own(SERVICE)) && !image.has(&format!("{WANTED}/{SERVICE}")));
    has(&image.text(CONFIG), &["espocrm = \"/var/www/html\""]);
    assert!(image.has(DROP_IN));
    assert_eq!(image.text(&format!("{BACKUPS}/{SERVICE}")), DOCUMENTED);
}

#[test]
fn undo_restores_the_unit_with_its_links_and_modes() {
    for unit in [SERVICE, "crm.service"] {
        let image = machine(unit);
        let drop_in = format!("{}.d/override.conf", own(unit));
        image.put(&drop_in, "[Service]\nNice=5\n");
        image.put("/srv/shared.conf", "[Service]\nNice=6\n");
        image.link(&format!("{}.d/shared.conf", own(unit)), "/srv/shared.conf");
        image.link(&own("alias.service"), unit);
        fs::set_permissions(image.at(&own(unit)), fs::Permissions::from_mode(0o640)).unwrap();
        adopt(&image, unit).unwrap();
        for path in [&own(unit), &own("alias.service"), &drop_in] {
            assert!(!image.has(path), "{path}");
        }
        assert!(!image.has(&format!("{}.d/shared.conf", own(unit))));
        image.calls();
        let output = adopt(&image, "--undo").unwrap();
        let restored = "was restored, and espocrm-websocket.service was disabled";
        has(&output, &[&own(unit), restored, &format!("{unit} is running")]);
        let calls = ["stop", "disable"].map(|verb| format!("{verb} {SERVICE}"));
        let then = ["daemon-reload".to_owned(), format!("restart {unit}")];
        assert_eq!(image.calls()[..4], [calls, then].concat());
        assert_eq!(image.text(&own(unit)), DOCUMENTED);
        let mode = image.at(&own(unit)).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(image.text(&drop_in), "[Service]\nNice=5\n");
        let link = image.at(&format!("{}.d/shared.conf", own(unit))).read_link().unwrap();
        assert_eq!(link.to_str(), Some("/srv/shared.conf"));
        assert_eq!(image.at(&own("alias.service")).read_link().unwrap().to_str(), Some(unit));
        let wanted = image.at(&format!("{WANTED}/{unit}")).read_link().unwrap();
        assert_eq!(wanted.to_str(), Some(&*own(unit)));
        assert!(!image.has(DROP_IN) && image.has(CONFIG));
        assert_eq!(fs::read_dir(image.at(BACKUPS)).unwrap().count(), 0);
        has(&adopt(&image, "--undo").unwrap_err(), &["No unit was adopted"]);
        // It can be adopted again.
        adopt(&image, "").unwrap();
        assert!(image.has(DROP_IN) && !image.has(&own(unit)));
    }
}

#[test]
fn a_unit_that_did_not_run_is_not_started_afterwards() {
    let image = machine("crm.service");
    fs::remove_file(image.at("/systemctl.d/active/crm.service")).unwrap();
    fs::remove_file(image.at(&format!("{WANTED}/crm.service"))).unwrap();
    adopt(&image, "crm").unwrap();
    image.calls();
    has(&adopt(&image, "--undo crm").unwrap(), &["crm.service did not run"]);
    assert!(!image.calls().iter().any(|call| call.starts_with("restart")));
    assert!(!image.has(&format!("{WANTED}/crm.service")));
}

#[test]
fn a_failed_replacement_is_rolled_back() {
    for unit in [SERVICE, "crm.service"] {
        for (how, words) in [
            ("fails", "Job for espocrm-websocket.service failed"),
            (
                "exits",
                "systemd reports activating.\n  Nothing can be served.\n  Fix it.\nYour unit",
            ),
            ("missing", "does not exist"),
        ] {
            let image = machine(unit);
            image.put(&format!("/systemctl.d/{how}/{SERVICE}"), "");
            let error = adopt(&image, "").unwrap_err();
            let restored = format!("Your unit {unit} was restored and is running.");
            has(&error, &["could not replace", words, &restored, "journalctl"]);
            has(&error, &["espocrm-websocket config --espocrm /var/www/html"]);
            let calls = image.calls();
            assert!(calls.contains(&format!("restart {unit}")), "{calls:?}");
            assert!(calls.contains(&format!("disable {SERVICE}")), "{calls:?}");
            assert_eq!(image.text(&own(unit)), DOCUMENTED);
            assert!(image.has(&format!("{WANTED}/{unit}")));
            assert!(!image.has(CONFIG) && !image.has(DROP_IN));
            assert!(!image.has(&format!("{BACKUPS}/{unit}")));
        }
    }
}

#[test]
fn existing_settings_are_restored_after_a_failure() {
    let image = machine(SERVICE);
    image.put(CONFIG, "# mine\n");
    image.put(&format!("/systemctl.d/fails/{SERVICE}"), "");
    adopt(&image, "").unwrap_err();
    assert_eq!(image.text(CONFIG), "# mine\n");
}

#[test]
fn the_backup_of_a_unit_that_does_not_start_is_kept() {
    let image = machine("crm.service");
    adopt(&image, "").unwrap();
    // The unit fails, no matter in which directory its file is.
    let script = image.text("/systemctl").replace("[ ! -e \"$own\" ]", "true");
    image.put("/systemctl", &script);
    image.put("/systemctl.d/fails/crm.service", "");
    let error = adopt(&image, "--undo").unwrap_err();
    has(&error, &["Its file was restored", "Job for crm.service failed"]);
    assert!(image.has(&own("crm.service")) && image.has(&format!("{BACKUPS}/crm.service")));
    fs::remove_file(image.at("/systemctl.d/fails/crm.service")).unwrap();
    adopt(&image, "--undo").unwrap();
    assert!(!image.has(&format!("{BACKUPS}/crm.service")));
    // The same during a rollback.
    image.put("/systemctl.d/fails/crm.service", "");
    image.put(&format!("/systemctl.d/fails/{SERVICE}"), "");
    let error = adopt(&image, "").unwrap_err();
    has(&error, &["could not be restored", "adopt --undo crm.service"]);
    assert!(image.has(&format!("{BACKUPS}/crm.service")));
}

#[test]
fn with_several_units_the_command_must_name_one() {
    let image = machine("a.service");
    image.espocrm("/srv/b");
    image.put(&own("b.service"), &DOCUMENTED.replace("/var/www/html", "/srv/b"));
    let error = adopt(&image, "").unwrap_err();
    has(&error, &["Several units", "\n  espocrm-websocket adopt a.service\n", "--name NAME"]);
    has(&adopt(&image, "c").unwrap_err(), &["No unit named c.service", "espocrm-websocket setup"]);
    assert!(image.is_untouched() && image.calls().is_empty());
    adopt(&image, "a").unwrap();
    let error = adopt(&image, "").unwrap_err();
    has(&error, &["another EspoCRM, in /var/www/html", "adopt --name NAME b.service"]);
    assert!(image.has(&own("b.service")));
    adopt(&image, "--name b b.service").unwrap();
    has(&image.text("/etc/espocrm-websocket/b.toml"), &["espocrm = \"/srv/b\""]);
    has(&adopt(&image, "").unwrap_err(), &["a.service is already adopted", "b.service is"]);
    let error = adopt(&image, "--undo").unwrap_err();
    has(&error, &["\n  espocrm-websocket adopt --undo a.service\n", "--undo b.service"]);
    has(&adopt(&image, "--undo b").unwrap(), &["espocrm-websocket@b.service was disabled"]);
    assert!(image.has(DROP_IN) && image.has(&own("b.service")) && !image.has(&own("a.service")));
}

#[test]
fn nothing_is_changed_in_case_of_doubt() {
    let image = machine("crm.service");
    for (unit, words) in [
        ("[Service]\nExecStart=php websocket.php\n", "adopt --espocrm DIR crm.service"),
        ("[Service]\nExecStart=php /srv/gone/websocket.php\n", "/srv/gone"),
        ("[Service]\nExecStart=/bin/other\n", "No unit in"),
    ] {
        image.put(&own("crm.service"), unit);
        has(&adopt(&image, "").unwrap_err(), &[words]);
    }
    let text = "[Service]\nExecStart=php /var/www/html/websocket.php %i\n";
    image.put(&own("crm@.service"), text);
    has(&adopt(&image, "").unwrap_err(), &["is a template"]);
    fs::remove_file(image.at(&own("crm@.service"))).unwrap();
    image.put(&own("crm.service"), DOCUMENTED);
    // Another old unit has the name of the new service.
    image.put(&own(SERVICE), DOCUMENTED);
    has(&adopt(&image, "crm").unwrap_err(), &["adopt espocrm-websocket.service"]);
    fs::remove_file(image.at(&own(SERVICE))).unwrap();
    fs::remove_file(image.at("/usr/lib/systemd/system").join(SERVICE)).unwrap();
    has(&adopt(&image, "").unwrap_err(), &["is not installed"]);
    assert!(image.is_untouched() && image.calls().is_empty());
}

#[test]
fn a_directory_on_the_command_line_is_used() {
    let image = machine("crm.service");
    image.put(&own("crm.service"), "[Service]\nExecStart=php websocket.php\n");
    image.put(CONFIG, "espocrm = '/var/www/html/'\n");
    adopt(&image, "--espocrm /var/www/html crm").unwrap();
    // The file already names this directory.
    assert_eq!(image.text(CONFIG), "espocrm = '/var/www/html/'\n");
}

#[test]
fn a_unit_that_was_written_after_the_adoption_is_not_overwritten() {
    let image = machine("crm.service");
    adopt(&image, "").unwrap();
    image.put(&own("crm.service"), "[Service]\nExecStart=/bin/other\n");
    image.calls();
    has(&adopt(&image, "--undo").unwrap_err(), &["differs from", "Nothing was changed"]);
    assert!(image.calls().is_empty() && image.has(DROP_IN));
}

#[test]
fn a_unit_that_is_a_link_is_restored_as_a_link() {
    let image = machine("crm.service");
    image.put("/srv/units/crm.service", DOCUMENTED);
    fs::remove_file(image.at(&own("crm.service"))).unwrap();
    image.link(&own("crm.service"), "/srv/units/crm.service");
    adopt(&image, "").unwrap();
    assert!(!image.has(&own("crm.service")) && image.has("/srv/units/crm.service"));
    adopt(&image, "--undo").unwrap();
    let link = image.at(&own("crm.service")).read_link().unwrap();
    assert_eq!(link.to_str(), Some("/srv/units/crm.service"));
}
