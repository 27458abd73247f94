//! EspoCRM cannot be found, read or understood, or its real-time updates are disabled.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::Site;
use super::site::Diagnosis;
use crate::support::{command_as_nobody, is_root, run};
use crate::tls::authority::{Authority, EC};

/// Runs a shell command on a file.
fn shell(line: &str, path: &Path) {
    assert!(Command::new("sh").arg("-c").arg(line).arg(path).status().unwrap().success());
}

#[test]
fn an_invalid_configuration_file_is_reported() {
    let site = Site::healthy();
    site.settings("nonsense = 1");
    let diagnosis = site.examine();
    diagnosis.only_failure("configuration", &["config.toml", "nonsense"]);
    diagnosis.unknown("espocrm", &["configuration"]);
    diagnosis.unknown("public-url", &[]);
    // The machine is examined all the same.
    diagnosis.good("selinux", "not enforcing");
}

#[test]
fn a_directory_that_does_not_contain_espocrm_is_reported() {
    let site = Site::healthy();
    let diagnosis = Diagnosis::of(&site.run_with(&["--espocrm", "/nonexistent"], &["--json"]));
    diagnosis.only_failure("espocrm", &["/nonexistent", "--espocrm DIR"]);
    diagnosis.unknown("php", &["no usable EspoCRM"]);
    let empty = site.at("/run");
    let espocrm = ["--espocrm", empty.to_str().unwrap()];
    Diagnosis::of(&site.run_with(&espocrm, &["--json"]))
        .only_failure("espocrm", &["contains no bootstrap.php"]);
}

#[test]
fn no_directory_given_and_none_or_several_found_is_reported() {
    let site = Site::healthy();
    let unnamed = || Diagnosis::of(&site.run_with(&[], &["--json"]));
    unnamed().only_failure("espocrm", &["EspoCRM's directory is not set"]);
    for dir in ["/var/www/html", "/var/www/crm"] {
        for file in ["bootstrap.php", "command.php", "data/config.php"] {
            site.put(&format!("{dir}/{file}"), "<?php\n");
        }
    }
    unnamed().only_failure("espocrm", &["--espocrm /var/www/html", "--espocrm /var/www/crm"]);
    // A directory that only root can have created is chosen; the code of another root directory is
    // not executed.
    site.remove("/var/www/crm/command.php");
    let diagnosis = unnamed();
    diagnosis.unknown("espocrm", &["/var/www/html", "another system"]);
}

#[test]
fn a_user_without_read_permission_is_reported() {
    let site = Site::healthy();
    if !is_root() {
        return;
    }
    shell("chown -R root: \"$0\"", site.standin.path());
    let private = site.standin.path().join("command.php");
    shell("chmod 600 \"$0\"", &private);
    let mut command = command_as_nobody(&site.standin);
    command.args(["doctor", "--json", "--config", "/dev/null"]);
    command.arg("--espocrm").arg(site.standin.path()).arg("--root").arg(site.at("/"));
    let diagnosis = Diagnosis::of(&run(command));
    diagnosis.first_failure("espocrm", &["is not readable by this user"]);
}

#[test]
fn a_user_other_than_the_owner_is_reported() {
    let site = Site::healthy();
    if !is_root() {
        return;
    }
    let mut command = command_as_nobody(&site.standin);
    shell("chown 33:33 \"$0\"", &site.standin.path().join("data"));
    command.args(["doctor", "--json", "--config", "/dev/null"]);
    command.arg("--espocrm").arg(site.standin.path()).arg("--root").arg(site.at("/"));
    let diagnosis = Diagnosis::of(&run(command));
    diagnosis.warning("espocrm", &["Run the doctor as root"]);
    // The step does not report whether the site user can write, and it does not suggest giving data/
    // to this user.
    diagnosis.unknown("data", &["cannot write to EspoCRM's data", "run the doctor as root"]);
    for step in &diagnosis.steps {
        assert!(!step.fix.contains("chown"), "{step:?}");
    }
}

#[test]
fn text_output_has_one_line_for_all_steps_that_need_espocrm() {
    let site = Site::healthy();
    let output = site.run_with(&["--espocrm", "/nonexistent"], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let skipped: Vec<_> = text.lines().filter(|line| line.starts_with('\u{2013}')).collect();
    assert_eq!(skipped, ["\u{2013} 26 steps were skipped: no usable EspoCRM was found"], "{text}");
}

#[test]
fn parameters_that_pages_do_not_receive_are_reported() {
    let mut site = Site::healthy();
    let internal = |text: &str| {
        site.standin.write_raw("config-internal.php", &format!("<?php return [{text}];"));
    };
    internal("'x' => 1");
    let diagnosis = site.examine();
    diagnosis.good("pages", "receive useWebSocket and webSocketUrl");
    assert_eq!(diagnosis.status, 0);
    // Even if another file defines the parameter as well.
    internal("'useWebSocket' => true");
    let parts = ["useWebSocket (data/config-internal.php)", "to data/config.php", "Settings"];
    site.examine().only_failure("pages", &parts);
    let address = format!("wss://localhost:{}/wss", site.proxy.as_ref().unwrap().address().port());
    internal(&format!("'webSocketUrl' => '{address}'"));
    let diagnosis = site.examine();
    diagnosis.failure("pages", &["webSocketUrl", "pages connect to wss://localhost/wss"]);
    // The examined address is the one that pages use.
    let address = diagnosis.step("address");
    assert!(address.found.contains("wss://localhost/wss"), "{address:?}");
    // The file that administrators edit by hand.
    internal("");
    let text = "<?php $file = $name = 7; return ['useWebSocket' => true];";
    site.standin.write_raw("config-internal-override.php", text);
    site.examine().only_failure("pages", &["data/config-internal-override.php"]);
    // A file that PHP cannot run on its own.
    let text = "<?php return ['x' => class_exists('Espo\\\\Core\\\\Application') ? 1 : missing()];";
    site.standin.write_raw("config-internal-override.php", text);
    site.examine().unknown("pages", &["missing()"]);
    site.standin.config("useWebSocket", false);
    site.standin.write_raw("config-internal-override.php", "<?php return [];");
    site.examine().only_failure("enabled", &[]);
}

#[test]
fn a_certificate_unreadable_for_the_site_user_is_reported() {
    if !is_root() {
        return;
    }
    let authority = Authority::new();
    let issued = authority.issue("server", EC);
    let mut site = Site::without_proxy();
    crate::tls::secure(&mut site.standin, &issued);
    site.examine().good("tls", "nobody can read the TLS certificate");
    shell("chmod 600 \"$0\"", &issued.key);
    let diagnosis = site.examine();
    let parts = ["server.key: user nobody has no permission", "deploy hook", "cannot start"];
    diagnosis.first_failure("tls", &parts);
    diagnosis.failure("daemon", &["cannot start while TLS fails"]);
}

#[test]
fn espocrm_owned_by_root_is_reported() {
    let site = Site::healthy();
    if is_root() {
        shell("chown 0:0 \"$0\"", &site.standin.path().join("data"));
        site.examine().first_failure("espocrm", &["belongs to root", "chown -R www-data: "]);
        let diagnosis = Diagnosis::of(&site.run(&["--json", "--user", "nobody"]));
        diagnosis.warning("espocrm", &["PHP runs as nobody, who does not own data/"]);
    }
}

#[test]
fn espocrm_that_fails_to_start_is_reported() {
    let site = Site::healthy();
    for failure in ["crash", "exit255", "killed"] {
        site.standin.set("probe-failure", failure);
        let diagnosis = site.examine();
        diagnosis.only_failure("espocrm-settings", &["data/logs"]);
        diagnosis.good("php", "with opcache");
        diagnosis.unknown("enabled", &["could not be read"]);
    }
}

#[test]
fn invalid_settings_are_reported() {
    let mut site = Site::healthy();
    site.standin.config("webSocketPort", "many");
    let diagnosis = site.examine();
    diagnosis.only_failure("espocrm-settings", &["webSocketPort", "many"]);
}

#[test]
fn invalid_categories_are_reported() {
    let site = Site::healthy();
    site.standin.custom_categories(&json!({"odd": 7}));
    site.examine().only_warning("espocrm-settings", &["odd", "app/webSocket.json"]);
}

#[test]
fn unsupported_and_unknown_versions_are_reported() {
    let mut site = Site::healthy();
    site.standin.config("version", "5.5.3");
    site.examine().first_failure("version", &["5.5.3", "too old"]);
    site.standin.config("version", "11.0.0");
    site.examine().only_warning("version", &["11.0.0", "newer"]);
    site.standin.config("version", "@@version");
    site.examine().only_warning("version", &["@@version"]);
}

#[test]
fn disabled_real_time_updates_are_reported() {
    let mut site = Site::healthy();
    site.standin.config("useWebSocket", false);
    site.examine().only_failure("enabled", &["Administration, Settings"]);
}

#[test]
fn directories_that_are_not_writable_are_reported() {
    let site = Site::healthy();
    let cache = site.standin.path().join("data/cache");
    std::fs::create_dir_all(&cache).unwrap();
    shell("chmod 555 \"$0\"; [ $(id -u) != 0 ] || chown 0:0 \"$0\"", &cache);
    site.examine().only_failure("data", &["data/cache", "chown"]);
}
