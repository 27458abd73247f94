//! `espocrm-websocket config` prints the settings in effect.

use serde_json::{Value, json};

use crate::support::{Daemon, Standin, command, run};

#[test]
fn every_setting_is_shown_with_its_default() {
    let standin = Standin::new();
    let shown = config(&standin, &["--config", "/dev/null"]);
    let cores = std::thread::available_parallelism().unwrap();
    for (name, value, source) in [
        ("espocrm", "9.2.7", "EspoCRM: version"),
        ("enabled", "true", "EspoCRM: useWebSocket"),
        ("php", "php", "default"),
        ("address", "0.0.0.0", "default"),
        ("port", "0", "EspoCRM: webSocketPort"),
        ("zeromq", "tcp://127.0.0.1:*", "EspoCRM: webSocketZeroMQSubscriberDsn"),
        ("tls", "no", "default"),
        ("debug", "false", "default"),
        ("max_connections", "10000", "default"),
        ("max_checks", &(2 * cores.get()).to_string(), "default"),
        ("check_timeout", "20s", "default"),
        ("recheck_interval", "300s", "default"),
        ("ping_interval", "25s", "default"),
    ] {
        assert_eq!(row(&shown, name), (value, source), "{name}");
    }
    let root = standin.path().canonicalize().unwrap();
    let head = format!("file              /dev/null\nroot              {}\n", root.display());
    assert!(shown.starts_with(&head), "{shown}");
    let (_, categories) = shown.split_once("\ncategories\n").unwrap();
    assert_eq!(categories.lines().count(), 6, "{categories}");
    for (topic, access) in [
        ("newNotification", "open to every user"),
        ("popupNotifications.event", "open to every user"),
        ("calendarUpdate", "AclCheck --userId=:userId --scope=Calendar"),
        (
            "recordUpdate.<scope>.<id>",
            "AclCheck --userId=:userId --scope=:scope --id=:id --action=read",
        ),
    ] {
        let line = format!("  {topic:<34}{access}");
        assert!(categories.lines().any(|it| it == line), "{categories}");
    }
}

#[test]
fn default_ports_are_those_of_espocrm() {
    let mut standin = Standin::new();
    standin.config("webSocketPort", Value::Null);
    standin.config("webSocketZeroMQSubscriberDsn", "");
    standin.config("webSocketSslCertificateFile", "server.pem");
    let shown = config(&standin, &[]);
    assert_eq!(row(&shown, "port"), ("8080", "default"));
    assert_eq!(row(&shown, "zeromq"), ("tcp://127.0.0.1:5555", "default"));
    standin.config("webSocketUseSecureServer", true);
    assert_eq!(row(&config(&standin, &[]), "port"), ("8443", "default"));
}

#[test]
fn the_passphrase_is_never_shown() {
    let mut standin = Standin::new();
    standin.config("webSocketUseSecureServer", true);
    standin.config("webSocketSslCertificateFile", "server.pem");
    standin.config("webSocketSslCertificateLocalPrivateKey", "server.key");
    standin.config("webSocketSslCertificatePassphrase", "s3cret");
    let shown = config(&standin, &[]);
    assert_eq!(row(&shown, "tls"), ("server.pem", "EspoCRM: webSocketSslCertificateFile"));
    for words in ["server.key", "passphrase set", "EspoCRM: webSocketSslCertificatePassphrase"] {
        assert!(shown.contains(words), "{shown}");
    }
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_long_value_is_separated_from_its_source() {
    let mut standin = Standin::new();
    let certificate = "/etc/letsencrypt/live/crm.example.com/fullchain.pem";
    standin.config("webSocketUseSecureServer", true);
    standin.config("webSocketSslCertificateFile", certificate);
    let shown = config(&standin, &[]);
    assert!(shown.contains(&format!(" {certificate} ")), "{shown}");
}

#[test]
fn flags_override_the_configuration_file_which_overrides_espocrm() {
    let mut standin = Standin::new();
    standin.config("webSocketPort", 8081);
    standin.config("webSocketDebugMode", true);
    let file = standin.path().join("own.toml");
    std::fs::write(
        &file,
        "espocrm = '/nonexistent'\nlisten = '127.0.0.3:8082'\nzeromq = 'tcp://127.0.0.1:1'\n\
         debug = false\nmax_connections = 7\nmax_checks = 8\ncheck_timeout = 9\n\
         recheck_interval = '1h'\nping_interval = '2m'\n",
    )
    .unwrap();
    let file = ["--config", file.to_str().unwrap()];
    let shown = config(&standin, &file);
    for (name, value) in [
        ("address", "127.0.0.3"),
        ("port", "8082"),
        ("zeromq", "tcp://127.0.0.1:1"),
        ("debug", "false"),
        ("max_connections", "7"),
        ("max_checks", "8"),
        ("check_timeout", "9s"),
        ("recheck_interval", "3600s"),
        ("ping_interval", "120s"),
    ] {
        assert_eq!(row(&shown, name), (value, "configuration file"));
    }
    let flags = [
        ("php", "/usr/bin/php"),
        ("listen", "127.0.0.4"),
        ("zeromq", "tcp://127.0.0.1:2"),
        ("max-connections", "10"),
        ("max-checks", "11"),
        ("check-timeout", "500ms"),
        ("recheck-interval", "0s"),
        ("ping-interval", "12s"),
    ];
    let mut arguments = file.map(str::to_owned).to_vec();
    arguments.extend(flags.iter().map(|(name, value)| format!("--{name}={value}")));
    arguments.push("--debug".to_owned());
    let shown = config(&standin, &arguments.iter().map(|it| &**it).collect::<Vec<_>>());
    for (name, value) in flags {
        let name = if name == "listen" { "address" } else { &name.replace('-', "_") };
        assert_eq!(row(&shown, name), (value, "command line"));
    }
    assert_eq!(row(&shown, "debug"), ("true", "command line"));
    // An address without a port leaves the port to the next source, as a unit.
    assert_eq!(row(&shown, "port"), ("8082", "configuration file"));
}

#[test]
fn espocrm_values_are_converted_as_loosely_as_in_php() {
    let mut standin = Standin::new();
    for (value, expected) in [
        (json!(true), "true"),
        (json!(1), "true"),
        (json!("1"), "true"),
        (json!(false), "false"),
        (json!(0), "false"),
        (json!("0"), "false"),
        (json!(""), "false"),
        (json!([]), "false"),
        (json!(null), "false"),
    ] {
        standin.config("useWebSocket", value.clone());
        standin.config("webSocketDebugMode", value.clone());
        standin.config("webSocketUseSecureServer", value.clone());
        standin.config("webSocketSslCertificateFile", "server.pem");
        let shown = config(&standin, &[]);
        assert_eq!(row(&shown, "enabled").0, expected, "{value}");
        assert_eq!(row(&shown, "debug").0, expected, "{value}");
        let tls = if expected == "true" { "server.pem" } else { "no" };
        assert_eq!(row(&shown, "tls").0, tls, "{value}");
    }
    for port in [json!("8083"), json!(" 8083 "), json!(8083)] {
        standin.config("webSocketPort", port);
        assert_eq!(row(&config(&standin, &[]), "port"), ("8083", "EspoCRM: webSocketPort"));
    }
}

#[test]
fn later_files_of_espocrm_take_precedence() {
    let standin = Standin::new();
    for (number, file) in
        ["config-internal.php", "config-override.php", "config-internal-override.php", "state.php"]
            .into_iter()
            .enumerate()
    {
        let Value::Object(values) = json!({"webSocketPort": 8084 + number}) else { return };
        standin.write(file, &values);
        let port = (8084 + number).to_string();
        assert_eq!(row(&config(&standin, &[]), "port").0, port, "{file}");
    }
}

/// The output of `config` for a stand-in.
pub fn config(standin: &Standin, flags: &[&str]) -> String {
    let mut command = command();
    command.arg("config").arg("--espocrm").arg(standin.path()).args(flags);
    if !flags.contains(&"--config") {
        command.args(["--config", "/dev/null"]);
    }
    let output = run(command);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The value and the source of this setting.
pub fn row<'a>(shown: &'a str, name: &str) -> (&'a str, &'a str) {
    let line = shown.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
    let (_, rest) = line.split_at(name.len());
    let (value, source) = rest.trim().split_once("  ").unwrap();
    (value, source.trim())
}

#[test]
fn the_memory_estimate_of_extreme_settings_saturates() {
    let standin = Standin::new();
    let most = usize::MAX.to_string();
    let flags = ["--max-connections", "--max-buffered", "--max-checks", "--max-per-user"];
    let all: Vec<&str> = flags.iter().flat_map(|flag| [*flag, &*most]).collect();
    for flags in [&["--max-buffered", &most][..], &["--max-checks", &most], &all] {
        let shown = config(&standin, flags);
        let line = shown.lines().find(|line| line.starts_with("memory at most  ")).unwrap();
        assert!(line.contains("18446744073710 MB"), "{line}");
    }
    let daemon = Daemon::start_with(&standin, &all);
    daemon.connect("alice").expect_silence();
}
