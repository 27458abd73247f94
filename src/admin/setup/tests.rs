//! `setup` in a system image with a fake systemd.

use std::os::unix::fs::PermissionsExt;

use super::image::Image;
use super::*;
use crate::platform::sys;

const UNIT: &str = "espocrm-websocket.service";
const CONFIG: &str = "/etc/espocrm-websocket/config.toml";
const DROP_IN: &str = "/etc/systemd/system/espocrm-websocket.service.d/10-setup.conf";

/// Runs `setup` with these flags. Returns its output, or the error.
fn setup(image: &Image, flags: &str) -> std::result::Result<String, String> {
    let mut parser = lexopt::Parser::from_args(flags.split_whitespace());
    let setup = Setup::parse(&mut parser).unwrap().unwrap();
    let (output, result) = image.run(|machine| setup.run_on(machine));
    result.map(|()| output).map_err(|error| error.to_string())
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn the_only_espocrm_is_configured_and_started() {
    let image = Image::new();
    image.espocrm("/var/www/html");
    let output = setup(&image, "").unwrap();
    has(
        &output,
        &["is configured: EspoCRM in /var/www/html, user web", CONFIG, DROP_IN, "journalctl"],
    );
    has(&image.text(CONFIG), &["\nespocrm = \"/var/www/html\"\n"]);
    let drop_in = "\n[Service]\nUser=web\nReadWritePaths=/var/www/html/data\n";
    has(&image.text(DROP_IN), &[drop_in]);
    let calls = ["enable", "reset-failed", "restart", "is-active"].map(|it| format!("{it} {UNIT}"));
    assert_eq!(image.calls(), [&["daemon-reload".to_owned()], &calls[..]].concat());
    for path in [CONFIG, DROP_IN] {
        assert_eq!(image.at(path).metadata().unwrap().permissions().mode() & 0o7777, 0o644);
    }
}

#[test]
fn the_delay_between_restarts_grows_where_systemd_supports_it() {
    let image = Image::new();
    image.espocrm("/var/www/html");
    let steps = "\nRestartSteps=6\nRestartMaxDelaySec=60\n";
    image.put("/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so", "");
    setup(&image, "").unwrap();
    assert!(!image.text(DROP_IN).contains("RestartSteps"));
    // The system is upgraded, and then the package.
    image.put("/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so", "");
    setup(&image, "--at-install").unwrap();
    has(&image.text(DROP_IN), &["\nUser=web\n", steps]);
}

#[test]
fn a_running_service_without_changes_is_not_restarted() {
    let image = Image::new();
    image.espocrm("/srv/crm");
    setup(&image, "").unwrap();
    image.calls();
    has(&setup(&image, "").unwrap(), &["settings (unchanged)", "is running and starts"]);
    assert!(!image.calls().contains(&format!("restart {UNIT}")));
    std::fs::remove_file(image.at("/systemctl.d/active").join(UNIT)).unwrap();
    setup(&image, "").unwrap();
    assert!(image.calls().contains(&format!("restart {UNIT}")));
}

#[test]
fn a_service_that_does_not_start_is_an_error_with_its_log() {
    for (how, words) in [
        (
            "fails",
            "restart espocrm-websocket.service failed: Job for espocrm-websocket.service \
             failed.\n  Nothing can be served.\n  Fix it.\nSee",
        ),
        ("exits", "systemd reports activating.\n  Nothing can be served.\n  Fix it.\nSee"),
        ("missing", "Unit file espocrm-websocket.service does not exist"),
    ] {
        let image = Image::new();
        image.espocrm("/var/www/html");
        image.put(&format!("/systemctl.d/{how}/{UNIT}"), "");
        let error = setup(&image, "").unwrap_err();
        has(&error, &["is configured, but is not running", words, "journalctl -n 50 -u", CONFIG]);
        assert!(image.has(CONFIG) && image.has(DROP_IN));
    }
}

#[test]
fn an_installation_starts_nothing_and_an_upgrade_is_silent() {
    let image = Image::new();
    image.espocrm("/var/www/html");
    has(&setup(&image, "--at-install").unwrap(), &["/var/www/html", CONFIG]);
    assert_eq!(image.calls(), ["daemon-reload"]);
    assert_eq!(setup(&image, "--at-install").unwrap(), "");
    assert!(image.calls().is_empty());
}

#[test]
fn an_ambiguous_situation_does_not_fail_the_installation() {
    let image = Image::new();
    has(&setup(&image, "").unwrap_err(), &["No EspoCRM was found", "setup --espocrm DIR"]);
    has(&setup(&image, "--at-install").unwrap(), &["No EspoCRM was found"]);
    has(&setup(&image, "--name x").unwrap_err(), &["setup --name x --espocrm DIR"]);
    image.espocrm("/var/www/html");
    image.espocrm("/srv/my crm/html");
    image.put("/etc/nginx/conf.d/crm.conf", "server { root '/srv/my crm/html/public'; }");
    let error = setup(&image, "").unwrap_err();
    let commands = "\n  espocrm-websocket setup --espocrm '/srv/my crm/html'\n  \
                    espocrm-websocket setup --name crm --espocrm /var/www/html\n";
    has(&error, &["several", "Nothing was changed", commands, "webSocketPort"]);
    assert_eq!(setup(&image, "--at-install").unwrap().trim_end(), error);
    assert!(image.is_untouched() && image.calls().is_empty());
}

#[test]
fn each_espocrm_has_its_own_service() {
    let image = Image::new();
    image.espocrm("/var/www/a");
    image.espocrm("/var/www/b");
    setup(&image, "--espocrm /var/www/a --name a").unwrap();
    // Only the other one has no service yet.
    has(
        &setup(&image, "").unwrap(),
        &["espocrm-websocket.service is configured: EspoCRM in /var/www/b"],
    );
    has(&image.text("/etc/espocrm-websocket/a.toml"), &["espocrm = \"/var/www/a\""]);
    assert!(image.has("/etc/systemd/system/espocrm-websocket@a.service.d/10-setup.conf"));
    assert_eq!(setup(&image, "--name c --at-install").unwrap(), "");
    has(&setup(&image, "--name c").unwrap(), &["already has a service"]);
    assert!(!image.has("/etc/espocrm-websocket/c.toml"));
    assert!(setup(&image, "--name ../c").unwrap_err().contains("not a valid service name"));
}

#[test]
fn only_the_line_espocrm_of_a_configuration_file_is_changed() {
    let image = Image::new();
    image.espocrm("/srv/a");
    image.espocrm("/srv/b");
    let text = "# mine\r\nespocrm = '/srv/a/' # here\nmax_checks = 3";
    image.put(CONFIG, text);
    has(&setup(&image, "").unwrap(), &["EspoCRM in /srv/a, user", "settings (unchanged)"]);
    assert_eq!(image.text(CONFIG), text);
    has(&setup(&image, "--espocrm /srv/b").unwrap(), &["settings (line espocrm changed)"]);
    assert_eq!(image.text(CONFIG), text.replace("'/srv/a/'", "\"/srv/b\""));
    image.put(CONFIG, "espocrm = '/srv/gone'");
    has(&setup(&image, "").unwrap_err(), &[CONFIG, "/srv/gone", "Nothing was changed"]);
    has(&setup(&image, "--at-install").unwrap(), &["/srv/gone"]);
    for (text, words) in [("espocrm = 1e5", "float"), ("debug = 1", "line 1")] {
        image.put(CONFIG, text);
        has(&setup(&image, "--espocrm /srv/b").unwrap_err(), &[CONFIG, words]);
        assert_eq!(image.text(CONFIG), text);
    }
}

#[test]
fn unusual_configuration_files_are_handled() {
    let image = Image::new();
    image.espocrm("/srv/a");
    image.put(CONFIG, "");
    std::fs::write(image.at(CONFIG), b"\xff\xfe").unwrap();
    has(&setup(&image, "").unwrap_err(), &["not valid UTF-8"]);
    std::fs::write(image.at(CONFIG), vec![b'#'; 2 << 20]).unwrap();
    has(&setup(&image, "").unwrap_err(), &["larger than 1 MiB"]);
    std::fs::remove_file(image.at(CONFIG)).unwrap();
    // A symbolic link remains one.
    image.put("/srv/settings.toml", "debug = true\n");
    image.link(CONFIG, "/srv/settings.toml");
    setup(&image, "").unwrap();
    assert_eq!(image.text("/srv/settings.toml"), "espocrm = \"/srv/a\"\ndebug = true\n");
}

#[test]
fn an_administrators_unit_is_not_touched() {
    let image = Image::new();
    image.espocrm("/var/www/html");
    let unit = "[Service]\nExecStart=php /var/www/html/websocket.php\n";
    for name in [UNIT, "crm.service"] {
        let path = format!("/etc/systemd/system/{name}");
        image.put(&path, unit);
        let error = setup(&image, "").unwrap_err();
        has(&error, &[&path, "Nothing was changed", &format!("espocrm-websocket adopt {name}")]);
        assert_eq!(setup(&image, "--at-install").unwrap().trim_end(), error);
        std::fs::remove_file(image.at(&path)).unwrap();
    }
    assert!(image.is_untouched() && image.calls().is_empty());
    // A unit for another EspoCRM, or a masked unit, is no obstacle.
    image.put("/etc/systemd/system/other.service", &unit.replace("html", "other"));
    image.link("/etc/systemd/system/off.service", "/dev/null");
    setup(&image, "").unwrap();
}

#[test]
fn a_file_that_overrides_the_packages_unit_is_reported() {
    let image = Image::new();
    image.espocrm("/var/www/html");
    image.espocrm("/var/www/.old");
    let path = "/etc/systemd/system/espocrm-websocket.service";
    image.put(path, "[Service]\nExecStart=/usr/local/bin/espocrm-websocket /var/www/html\n");
    let words = [path, "overrides the package's unit"];
    has(&setup(&image, "").unwrap(), &words);
    assert_eq!(setup(&image, "--at-install").unwrap(), "");
    std::fs::remove_file(image.at(path)).unwrap();
    image.link(path, "/dev/null");
    assert!(!setup(&image, "").unwrap().contains("overrides"));
}

#[test]
fn units_of_several_espocrms_are_listed() {
    let image = Image::new();
    for name in ["a", "b"] {
        image.espocrm(&format!("/srv/{name}"));
        let unit = format!("[Service]\nExecStart=php /srv/{name}/websocket.php\n");
        image.put(&format!("/etc/systemd/system/{name}.service"), &unit);
    }
    // An alias is not another unit.
    image.link("/etc/systemd/system/c.service", "/etc/systemd/system/a.service");
    let error = setup(&image, "").unwrap_err();
    has(&error, &["Several of your units", "adopt a.service\n", "adopt b.service"]);
    assert!(!error.contains("c.service"));
}

#[test]
fn a_drop_in_may_make_a_unit_run_the_script() {
    let image = Image::new();
    image.espocrm("/srv/a");
    image.put("/etc/systemd/system/a.service", "[Service]\nExecStart=/bin/x\n");
    image.put(
        "/etc/systemd/system/a.service.d/override.conf",
        "[Service]\nExecStart=\nExecStart=php /srv/a/websocket.php\n",
    );
    has(&setup(&image, "").unwrap_err(), &["adopt a.service"]);
}

#[test]
fn data_that_belongs_to_root_is_rejected() {
    if !sys::is_root() {
        eprintln!("skipped: only root can change the owner of files");
        return;
    }
    let image = Image::new();
    image.espocrm("/srv/my crm");
    std::os::unix::fs::chown(image.at("/srv/my crm/data"), Some(0), Some(0)).unwrap();
    let error = setup(&image, "").unwrap_err();
    has(&error, &["belongs to root", "chown -R www-data: '/srv/my crm'"]);
    has(&setup(&image, "--at-install").unwrap(), &["belongs to root"]);
    image.put("/etc/passwd", "apache:x:48:48::/:/x\n");
    has(&setup(&image, "").unwrap_err(), &["chown -R apache: "]);
    assert!(image.is_untouched());
}

#[test]
fn the_target_of_a_link_does_not_determine_the_user() {
    let image = Image::new();
    image.espocrm("/srv/crm");
    let data = image.at("/srv/crm/data");
    std::fs::rename(&data, image.at("/srv/elsewhere")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", &data).unwrap();
    let command = "setup --espocrm /srv/crm --user www-data";
    has(&setup(&image, "").unwrap_err(), &["/srv/crm/data is a symbolic link", command]);
    has(&setup(&image, "--at-install").unwrap(), &["is a symbolic link"]);
    assert!(image.is_untouched());
    setup(&image, "--user web").unwrap();
    has(&image.text(DROP_IN), &["User=web\nReadWritePaths=/srv/elsewhere\n"]);
    // An upgrade does not change it.
    assert_eq!(setup(&image, "--at-install"), Ok(String::new()));
    for (user, why) in [("root", "must not run as root"), ("0", "as root"), ("who", "no user")] {
        has(&setup(&image, &format!("--user {user}")).unwrap_err(), &[why]);
    }
}

#[test]
fn an_upgrade_does_not_change_the_user() {
    if !sys::is_root() {
        eprintln!("skipped: only root can change the owner of files");
        return;
    }
    let image = Image::new();
    image.espocrm("/srv/crm");
    setup(&image, "").unwrap();
    // A process of the web server's user could rename another user's directory to data.
    std::os::unix::fs::chown(image.at("/srv/crm/data"), Some(4711), None).unwrap();
    assert_eq!(setup(&image, "--at-install"), Ok(String::new()));
    has(&image.text(DROP_IN), &["User=web\n"]);
    setup(&image, "").unwrap();
    has(&image.text(DROP_IN), &["User=4711\n"]);
    // Root is replaced.
    image.put(DROP_IN, "[Service]\nUser=root\n");
    setup(&image, "--at-install").unwrap();
    has(&image.text(DROP_IN), &["User=4711\n"]);
}

#[test]
fn the_directory_of_another_user_does_not_determine_the_user() {
    if !sys::is_root() {
        eprintln!("skipped: only root can change the owner of files");
        return;
    }
    let image = Image::new();
    image.espocrm("/srv/crm");
    let own = |path: &str, user: u32, mode: u32| {
        let target = image.at(path);
        std::os::unix::fs::chown(&target, Some(user), Some(user)).unwrap();
        std::fs::set_permissions(target, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    own("/srv/crm", 1000, 0o755);
    own("/srv/crm/data", 4711, 0o777);
    has(
        &setup(&image, "--espocrm /srv/crm").unwrap_err(),
        &["cannot be determined safely", "--user www-data"],
    );
    own("/srv/crm/data", 4711, 0o755);
    has(&setup(&image, "--espocrm /srv/crm").unwrap_err(), &["no config.php of its owner"]);
    own("/srv/crm/data/config.php", 4711, 0o644);
    setup(&image, "--espocrm /srv/crm").unwrap();
    has(&image.text(DROP_IN), &["User=4711\n"]);
}

#[test]
fn only_directories_that_root_controls_are_chosen() {
    if !sys::is_root() {
        eprintln!("skipped: only root can change the owner of files");
        return;
    }
    let image = Image::new();
    image.espocrm("/home/bob/public_html");
    std::os::unix::fs::chown(image.at("/home/bob"), Some(1000), Some(1000)).unwrap();
    let command = "setup --espocrm /home/bob/public_html";
    for flags in ["", "--at-install"] {
        let output = setup(&image, flags).unwrap_or_else(|error| error);
        has(&output, &["users other than root control", command]);
        assert!(image.is_untouched());
    }
    // A link of root into that directory changes nothing.
    image.link("/var/www/html", "/home/bob/public_html");
    has(&setup(&image, "--at-install").unwrap(), &["users other than root control"]);
    image.espocrm("/srv/crm");
    let output = setup(&image, "--at-install").unwrap();
    let others = "They are not served. To serve one of them:\n  espocrm-websocket setup --name";
    has(&output, &["is configured: EspoCRM in /srv/crm", others]);
    has(&setup(&image, &command[6..]).unwrap(), &["EspoCRM in /home/bob/public_html"]);
}

#[test]
fn the_group_of_the_directory_is_not_used() {
    if !sys::is_root() {
        eprintln!("skipped: only root can change the owner of files");
        return;
    }
    let image = Image::new();
    image.espocrm("/srv/crm");
    for group in [0, 42] {
        std::os::unix::fs::chown(image.at("/srv/crm/data"), Some(4711), Some(group)).unwrap();
        setup(&image, "").unwrap();
        has(&image.text(DROP_IN), &["User=4711\nReadWritePaths="]);
    }
}

#[test]
fn links_are_kept_except_in_a_home() {
    let image = Image::new();
    image.espocrm("/srv/releases/2");
    image.link("/srv/current", "releases/2");
    setup(&image, "").unwrap();
    has(&image.text(CONFIG), &["espocrm = \"/srv/current\""]);
    has(&image.text(DROP_IN), &["ReadWritePaths=/srv/releases/2/data\n"]);
    let image = Image::new();
    image.espocrm("/home/ann/crm 100%");
    image.link("/var/www/html", "/home/ann/crm 100%");
    setup(&image, "").unwrap();
    has(&image.text(CONFIG), &["espocrm = \"/home/ann/crm 100%\""]);
    has(
        &image.text(DROP_IN),
        &["ReadWritePaths=\"/home/ann/crm 100%%/data\"\nProtectHome=tmpfs\n\
             BindPaths=\"/home/ann/crm 100%%\"\n"],
    );
}

#[test]
fn paths_that_cannot_be_used_in_a_unit_are_rejected() {
    let image = Image::new();
    image.espocrm("/srv/crm\n[Service]\nUser=root");
    has(&setup(&image, "").unwrap_err(), &["No EspoCRM was found"]);
    let setup =
        Setup { espocrm: Some("/srv/crm\n[Service]\nUser=root".into()), ..Setup::default() };
    let (_, result) = image.run(|machine| setup.run_on(machine));
    has(&result.unwrap_err().to_string(), &["cannot be used in a systemd unit"]);
    image.link("/srv/loop", "loop");
    image.link("/srv/link", "crm\n[Service]\nUser=root");
    has(&self::setup(&image, "--espocrm /srv/link").unwrap_err(), &["cannot be used"]);
    has(&self::setup(&image, "--espocrm /srv/loop").unwrap_err(), &["/srv/loop"]);
    assert!(image.is_untouched());
    image.put(CONFIG, "espocrm = 'srv/a'");
    image.espocrm("/srv/a");
    has(&self::setup(&image, "").unwrap_err(), &[CONFIG, "begin with a slash"]);
}

#[test]
fn unusable_files_are_skipped() {
    let image = Image::new();
    image.espocrm("/srv/a");
    std::fs::create_dir_all(image.at("/etc/nginx/sites-enabled/dir")).unwrap();
    image.link("/etc/nginx/sites-enabled/gone", "../gone");
    image.put("/etc/nginx/nginx.conf", &"root /nowhere;".repeat(100_000));
    image.put("/etc/apache2/sites-enabled/x", &"DocumentRoot /nowhere\n".repeat(2_000));
    let fifo = image.at("/etc/systemd/system/fifo.service");
    std::fs::create_dir_all(fifo.parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(fifo).status().unwrap().success());
    has(&setup(&image, "--espocrm /srv/a/").unwrap(), &["/srv/a, user"]);
}
