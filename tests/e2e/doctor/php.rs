//! PHP is missing or broken or lacks an extension, or its access checks fail.

use super::Site;
use super::site::shell_script;

/// Makes PHP run this shell command first.
fn with_php(site: &Site, shell: &str) {
    let php = site.standin.php("php", shell);
    site.settings(&format!("php = '{php}'"));
}

#[test]
fn a_missing_or_crashing_php_is_reported() {
    let site = Site::healthy();
    site.settings("php = '/nonexistent/php'");
    let diagnosis = site.examine();
    diagnosis.only_failure("php", &["/nonexistent/php", "php-cli"]);
    diagnosis.unknown("espocrm-settings", &["PHP does not run"]);
    for (shell, printed) in [
        ("kill -SEGV $$", "signal 11"),
        ("echo broken >&2; exit 3", "status 3: broken"),
        ("exit 0", "something unexpected"),
    ] {
        with_php(&site, shell);
        site.examine().only_failure("php", &[printed]);
    }
}

#[test]
fn the_php_configured_in_espocrm_is_examined() {
    let mut site = Site::healthy();
    site.standin.config("phpExecutablePath", "/nonexistent/php8");
    site.examine().only_failure("php", &["/nonexistent/php8", "phpExecutablePath"]);
}

#[test]
fn php_without_opcache_is_a_warning() {
    let site = Site::healthy();
    with_php(&site, "exec php -n -d extension=zmq.so -d extension=posix.so \"$@\"");
    let diagnosis = site.examine();
    diagnosis.only_warning("php", &["without opcache", "zend_extension"]);
    diagnosis.unknown("worker", &["no opcache"]);
}

#[test]
fn php_without_zeromq_is_a_failure() {
    let site = Site::healthy();
    with_php(&site, "exec php -n \"$@\"");
    site.put("/etc/os-release", "ID=debian\n");
    let diagnosis = site.examine();
    diagnosis.only_failure("zmq-command-line", &["apt install php8.", "-zmq"]);
    diagnosis.unknown("loop", &["cannot send"]);
    diagnosis.unknown("message", &["cannot send"]);
}

#[test]
fn a_web_server_php_without_zeromq_is_reported() {
    let site = Site::healthy();
    site.put("/etc/os-release", "ID=\"fedora\"\n");
    site.put("/etc/php/8.2/fpm/conf.d/20-zmq.ini", "; extension=zmq.so\n");
    site.examine().only_failure("zmq-web", &["fpm 8.2", "dnf install php-pecl-zmq"]);
    site.put("/etc/php/8.4/apache2/conf.d/20-zmq.ini", "extension=zmq.so\n");
    site.examine().only_warning("zmq-web", &["fpm 8.2", "apache2 8.4"]);
    site.remove("/etc/php/8.4/apache2/conf.d/20-zmq.ini");
    std::fs::remove_dir_all(site.at("/etc/php")).unwrap();
    // Programs in another root directory are not executed.
    shell_script(&site.at("/usr/sbin/php-fpm8.2"), "printf '[PHP Modules]\\nzmq\\n'");
    site.examine().unknown("zmq-web", &["phpinfo"]);
}

#[test]
fn a_failing_check_is_reported() {
    let site = Site::healthy();
    for (failure, printed) in [
        ("exit255", "status 255"),
        ("error", "SQLSTATE"),
        ("crash", "on purpose"),
        ("killed", "signal 9"),
    ] {
        site.standin.set("failure", failure);
        let diagnosis = site.examine();
        diagnosis.only_failure("check", &[printed, "AuthTokenCheck x y", "data/logs"]);
        diagnosis.unknown("worker", &["plain command"]);
    }
}

#[test]
fn a_slow_check_is_reported() {
    let site = Site::healthy();
    site.standin.set("delay", "2100");
    site.examine().only_warning("check", &["only after", "overloaded"]);
}

#[test]
fn a_check_that_grants_every_token_is_reported() {
    let site = Site::healthy();
    std::fs::write(site.standin.path().join("command.php"), "<?php echo 'doctor';").unwrap();
    site.examine().failure("check", &["accepted an invalid token"]);
}

#[test]
fn a_failing_worker_is_reported() {
    let site = Site::healthy();
    with_php(&site, "case \" $* \" in *' -S '*) echo no >&2; exit 3;; esac");
    site.examine().only_warning("worker", &["exit status: 3", "worker = false"]);
}

#[test]
fn disabled_workers_are_not_examined() {
    let site = Site::healthy();
    site.settings("worker = false");
    site.examine().unknown("worker", &["worker is set to false"]);
}
