//! The user who runs a site's PHP when root starts the program: never root.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;
use std::process::Command;

use crate::support::{Client, Daemon, Standin, TempDir, command, eventually, is_root, run};

/// Every command that reads the settings of an EspoCRM.
const COMMANDS: [&[&str]; 5] =
    [&["run"], &["config"], &["config", "--check"], &["health"], &["doctor"]];

/// A site whose code records the user who runs it.
struct Site {
    standin: Standin,
    /// A directory that every user may write.
    record: TempDir,
}

impl Site {
    fn new() -> Self {
        let (standin, record) = (Standin::new(), TempDir::new("record"));
        fs::set_permissions(
            record.path(),
            <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o777),
        )
        .unwrap();
        let bootstrap = standin.path().join("bootstrap.php");
        let code = fs::read_to_string(&bootstrap).unwrap();
        let dir = record.path().display();
        let recording = format!(
            "<?php file_put_contents('{dir}/' . getmypid(), file_get_contents('/proc/self/status') . \
             'Environment: ' . json_encode(getenv()) . \"\\n\");"
        );
        fs::write(bootstrap, code.replacen("<?php", &recording, 1)).unwrap();
        Self { standin, record }
    }

    fn data(&self) -> PathBuf {
        self.standin.path().join("data")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = command();
        command.args(words).args(["--config", "/dev/null", "--espocrm"]).arg(self.standin.path());
        if words.first() == Some(&"run") {
            command.args(["--control", "off"]);
        }
        command
    }

    /// What each run of the site's PHP has recorded so far.
    fn runs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.record.path()).unwrap();
        entries.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }

    /// The values of a line of `/proc/PID/status`, one per run.
    fn values(&self, name: &str) -> Vec<String> {
        let value = |run: &String| {
            let line = run.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        self.runs().iter().map(value).collect()
    }

    fn expect_user(&self, user: &str) {
        let (user, group) = ([user; 4].join(" "), ["65534"; 4].join(" "));
        for (name, expected) in [("Uid", &*user), ("Gid", &group), ("Groups", "65534")] {
            let values = self.values(name);
            assert!(!values.is_empty() && values.iter().all(|it| it == expected), "{values:?}");
        }
    }
}

/// These tests apply only to root.
fn is_not_root() -> bool {
    if !is_root() {
        eprintln!("skipped: only root could run PHP as root");
    }
    !is_root()
}

#[test]
fn a_linked_data_directory_does_not_make_root_run_site_code() {
    if is_not_root() {
        return;
    }
    let site = Site::new();
    fs::rename(site.data(), site.standin.path().join("data.old")).unwrap();
    symlink("/etc", site.data()).unwrap();
    for words in COMMANDS {
        let output = run(site.command(words));
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        assert!(printed.contains("data is a symbolic link"), "{words:?}: {printed}");
        assert!(printed.contains("--user NAME"), "{words:?}: {printed}");
        assert_eq!(site.runs(), Vec::<String>::new(), "{words:?}");
    }
}

#[test]
fn a_data_directory_owned_by_root_does_not_make_root_run_site_code() {
    if is_not_root() {
        return;
    }
    let site = Site::new();
    chown(site.data(), Some(0), Some(0)).unwrap();
    for words in COMMANDS {
        for flags in [&[][..], &["--user", "root"], &["--user", "0"]] {
            let output = run(site.command(&[words, flags].concat()));
            assert_eq!(output.status.code(), Some(1), "{words:?} {flags:?}");
            assert_eq!(site.runs(), Vec::<String>::new(), "{words:?} {flags:?}");
        }
    }
    // The administrator names a user, or permits root.
    assert!(run(site.command(&["config", "--user", "nobody"])).status.success());
    site.expect_user("65534");
    let output = run(site.command(&["config", "--allow-root"]));
    assert!(output.status.success(), "{output:?}");
    assert!(site.values("Uid").contains(&"0 0 0 0".to_owned()));
}

#[test]
fn php_runs_as_the_owner_with_its_own_group_and_no_root_privileges() {
    if is_not_root() {
        return;
    }
    let site = Site::new();
    // The group shadow, which can read password hashes.
    chown(site.data(), None, Some(42)).unwrap();
    let mut config = site.command(&["config"]);
    config.env("SECRET_OF_ROOT", "x").env("LC_ALL", "C").env("ESPOCRM_TEST", "y");
    assert!(run(config).status.success());
    site.expect_user("65534");
    assert_eq!(site.values("NoNewPrivs"), ["1"]);
    let environment = site.values("Environment").concat();
    for part in ["\"LC_ALL\":\"C\"", "\"ESPOCRM_TEST\":\"y\"", "\"USER\":\"nobody\"", "\"PATH\":"] {
        assert!(environment.contains(part), "{environment}");
    }
    assert!(!environment.contains("SECRET_OF_ROOT"), "{environment}");
}

/// Changes of the directory's owner while the daemon runs have no effect.
#[test]
fn a_running_daemon_keeps_the_user() {
    if is_not_root() {
        return;
    }
    let site = Site::new();
    let flags: [&[&str]; 2] = [&["--no-worker"], &[]];
    for flags in flags {
        let mut daemon = Daemon::with_workers(&site.standin, flags);
        daemon.wait_for("PHP runs as nobody");
        daemon.connect("alice");
        // As www-data could do it, with a link to a directory owned by root.
        let elsewhere = site.standin.path().join("elsewhere");
        fs::rename(site.data(), &elsewhere).unwrap();
        symlink(&elsewhere, site.data()).unwrap();
        chown(&elsewhere, Some(0), Some(0)).unwrap();
        let before = site.runs().len();
        daemon.signal("HUP");
        let _tab = Client::open(daemon.address, "bob", "tok-bob");
        eventually("PHP runs again", || site.runs().len() > before + 1);
        site.expect_user("65534");
        drop(daemon);
        fs::remove_file(site.data()).unwrap();
        fs::rename(&elsewhere, site.data()).unwrap();
        chown(site.data(), Some(65_534), Some(65_534)).unwrap();
    }
}

/// A command copied from a message runs the site's code as the site user.
#[test]
fn commands_suggested_in_messages_do_not_run_site_code_as_root() {
    let site = Site::new();
    fs::write(site.standin.path().join("bootstrap.php"), "<?php exit(7);").unwrap();
    let output = run(site.command(&["config"]));
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let root = site.standin.path().display();
    assert!(printed.contains(&format!("try as root: cd {root} && runuser -u ")), "{printed}");
}

#[test]
fn nothing_in_another_root_directory_is_executed() {
    let (site, image) = (Site::new(), TempDir::new("image"));
    let crm = image.path().join("var/www/html");
    fs::create_dir_all(crm.parent().unwrap()).unwrap();
    let copied = Command::new("cp").arg("-r").arg(site.standin.path()).arg(&crm).status().unwrap();
    assert!(copied.success());
    let bin = image.path().join("usr/sbin");
    fs::create_dir_all(&bin).unwrap();
    let fpm = bin.join("php-fpm8.2");
    let script = format!("#!/bin/sh\ntouch {}/executed\n", image.path().display());
    fs::write(&fpm, script).unwrap();
    assert!(Command::new("chmod").arg("755").arg(&fpm).status().unwrap().success());
    for named in [Some(site.standin.path()), Some(&*crm), None] {
        let mut doctor = command();
        doctor.args(["doctor", "--json", "--config", "/dev/null", "--root"]).arg(image.path());
        if let Some(dir) = named {
            doctor.arg("--espocrm").arg(dir);
        }
        let output = run(doctor);
        assert!(!image.path().join("executed").exists());
        if named != Some(site.standin.path()) {
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(printed.contains("belongs to another system"), "{printed}");
        }
    }
    // The site of this system was examined; the image contains the same code.
    let runs = site.runs();
    assert!(!runs.is_empty());
    let mut doctor = command();
    doctor.args(["doctor", "--config", "/dev/null", "--root"]).arg(image.path());
    run(doctor);
    assert_eq!(site.runs().len(), runs.len());
}
