//! After `apt install` alone, EspoCRM is found and served from a sandbox that provides everything
//! PHP needs.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::container::{Container, Release, project};
use crate::package::{CONFIG, DROP_IN, install, installed};
use crate::standin::{self, PORT, notification};
use crate::support::{Client, Pusher, eventually};
use crate::tab::{self, UNIT};

on_each_release! {
    an_installation_finds_espocrm_and_serves_it_as_its_owner
    a_browser_behind_nginx_receives_messages_from_php
    the_sandbox_gives_php_exactly_what_it_needs
    the_test_detects_a_sandbox_that_is_too_strict
    package_files_are_installed_in_their_places
}

fn an_installation_finds_espocrm_and_serves_it_as_its_owner(release: Release) {
    let container = Container::boot(release);
    standin::add(&container, "/var/www/html");
    let printed = install(&container);
    assert!(printed.contains("/var/www/html"), "{printed}");
    container.wait_until_active(UNIT);
    assert_eq!(container.enablement(UNIT), "enabled");
    assert_eq!(container.property(UNIT, "Type"), "notify");
    let config = container.read(CONFIG);
    assert!(config.lines().any(|line| line == "espocrm = \"/var/www/html\""), "{config}");
    let drop_in = container.read(DROP_IN);
    for line in ["User=www-data", "ReadWritePaths=/var/www/html/data"] {
        assert!(drop_in.contains(line), "{drop_in}");
    }
    let pid = container.main_pid(UNIT);
    assert_eq!(container.run(&format!("ps -o user= -p {pid}")).trim(), "www-data");
    assert_eq!(container.run("systemctl --failed --no-legend --plain"), "");
    tab::open(PORT);
}

fn a_browser_behind_nginx_receives_messages_from_php(release: Release) {
    let container = installed(release);
    let document = std::fs::read_to_string(project("docs/proxies/nginx.conf")).unwrap();
    let without_tls = document.replace("listen 443 ssl;", "listen 8000;");
    assert_ne!(without_tls, document);
    let lines = without_tls.lines().filter(|line| !line.trim().starts_with("ssl_certificate"));
    let site: Vec<_> = lines.collect();
    container.write("/etc/nginx/conf.d/espocrm.conf", &site.join("\n"));
    container.run("nginx -q -t && systemctl reload nginx");
    eventually("nginx serves it", || std::net::TcpStream::connect(tab::address(8000)).is_ok());

    let mut browser = Client::tcp(tab::address(8000));
    browser.upgrade("/wss?authToken=tok-alice&userId=alice");
    browser.expect_welcome();
    browser.subscribe("recordUpdate.Account.1");
    browser.subscribe("newNotification");
    let added = ["recordUpdate.Account.1", "newNotification"];
    for topic in added.map(|topic| format!("add topic {topic} for user alice")) {
        eventually(&topic, || container.logged(UNIT, &topic) == 1);
    }
    let messages = [json!({"topicId": "recordUpdate.Account.1"}), notification(1)];
    for message in &messages {
        if release == Release::Bookworm {
            let zeromq = "tcp://127.0.0.1:5555";
            container.run(&format!("echo '{message}' | php /tests/send.php {zeromq}"));
        } else {
            // The container has no PHP with ZeroMQ.
            Pusher::connect("tcp://127.0.0.1:5555").send(message);
        }
        browser.expect_event(message);
    }

    // EspoCRM checked each of them; it writes to data/.
    let runs = container.read("/var/www/html/data/standin/runs");
    assert!(runs.contains("AuthTokenCheck") && runs.contains("--scope=Account"), "{runs}");
    let owner = "stat -c %U:%G /var/www/html/data/cache/application/acl/alice.php";
    assert_eq!(container.run(owner).trim(), "www-data:www-data");

    let mut stranger = Client::tcp(tab::address(8000));
    stranger.upgrade("/wss?authToken=tok-bob&userId=alice");
    stranger.expect_close(1008);
}

fn the_sandbox_gives_php_exactly_what_it_needs(release: Release) {
    let container = installed(release);
    container.run("install -d -m 777 /srv/shared /var/lib/shared");
    for (user, worker) in [("alice", true), ("bob", false)] {
        container.run(&format!("echo 'worker = {worker}' >>{CONFIG}"));
        container.run(&format!("systemctl restart {UNIT}"));
        let report = sandbox(&container, user);
        assert_eq!(
            report,
            json!({
                "how": if worker { "cli-server" } else { "cli" },
                "user": "www-data",
                "regular expressions are compiled": true,
                "database": true,
                "writable": ["data/cache/x", "data/logs/x", "/tmp/x"],
            }),
        );
        container.run(&format!("sed -i '/^worker = /d' {CONFIG}"));
    }
    // The service has a separate /tmp.
    assert!(!container.exists("/tmp/x"));
    assert_eq!(container.run("cat /var/www/html/data/cache/x"), "x");
}

/// Shows that the test above can fail.
fn the_test_detects_a_sandbox_that_is_too_strict(release: Release) {
    let container = installed(release);
    container.write(
        &format!("/etc/systemd/system/{UNIT}.d/90-tight.conf"),
        "[Service]\nMemoryDenyWriteExecute=yes\nIPAddressDeny=10.0.0.0/8\n\
         ReadOnlyPaths=/var/www/html/data/logs\n",
    );
    container.run("install -d -o www-data /var/www/html/data/logs");
    container.run(&format!("systemctl daemon-reload && systemctl restart {UNIT}"));
    let report = sandbox(&container, "alice");
    assert_eq!(report["regular expressions are compiled"], false, "{report}");
    assert_eq!(report["writable"], json!(["data/cache/x", "/tmp/x"]), "{report}");
}

fn package_files_are_installed_in_their_places(release: Release) {
    let container = installed(release);
    assert!(container.run("espocrm-websocket --version").starts_with("espocrm-websocket "));
    let files = container.run("dpkg -L espocrm-websocket");
    for file in ["/usr/bin/espocrm-websocket", "/man8/espocrm-websocket.8.gz"] {
        assert!(files.lines().any(|line| line.ends_with(file)), "{file}: {files}");
    }
    // No package is left half-configured.
    assert_eq!(container.run("dpkg --audit"), "");
    assert_eq!(container.run("systemd-analyze verify --man=no espocrm-websocket.service"), "");
}

/// What EspoCRM's PHP sees when it checks whether this user may subscribe. The check belongs to a
/// category of an extension.
fn sandbox(container: &Container, user: &str) -> Value {
    container.write(
        "/var/www/html/custom/Espo/Custom/Resources/metadata/app/webSocket.json",
        r#"{"categories": {"sandbox": {"accessCheckCommand": "Sandbox"}}}"#,
    );
    container.write(
        "/var/www/html/custom/commands/Sandbox.php",
        r"<?php
            // Only JIT-compiled expressions have that limit.
            preg_match('/^(foo)+$/', str_repeat('foo', 65536));
            $isCompiled = preg_last_error() === PREG_JIT_STACKLIMIT_ERROR;
            @mkdir('data/logs');
            @mkdir('data/cache');
            $files = array(
                'index.php', 'application/x.php', 'custom/x', 'data/cache/x', 'data/logs/x', '/tmp/x',
                '/srv/shared/x', '/var/lib/shared/x', '/var/www/x', '/etc/x', '/run/x',
            );
            $isWritable = function ($file) {
                return @file_put_contents($file, 'x') === 1;
            };
            file_put_contents('data/sandbox.json', json_encode(array(
                'how' => PHP_SAPI,
                'user' => posix_getpwuid(posix_geteuid())['name'],
                'regular expressions are compiled' => $isCompiled,
                'database' => is_resource(@fsockopen('10.9.8.7', 3306, $code, $message, 10)),
                'writable' => array_values(array_filter($files, $isWritable)),
            )));
            return 0;",
    );
    container.run("rm -rf /var/www/html/data/cache /var/www/html/data/sandbox.json");
    container.run("chown -R www-data:www-data /var/www/html");
    // A database on another machine.
    container.run("ip address replace 10.9.8.7/32 dev lo");
    let _database = TcpListener::bind("10.9.8.7:3306").unwrap();
    let mut tab = tab::open_as(PORT, user);
    let added = format!("add topic sandbox for user {user}");
    // New categories are noticed after a moment.
    eventually(&added, || {
        tab.unsubscribe("sandbox");
        tab.subscribe("sandbox");
        container.logged(UNIT, &added) > 0
    });
    serde_json::from_str(&container.read("/var/www/html/data/sandbox.json")).unwrap()
}
