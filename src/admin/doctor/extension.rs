//! PHP's ZeroMQ extension, which EspoCRM needs to send messages: in the PHP CLI (for jobs) and
//! in the web server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Stop;
use super::php::PhpInfo;
use super::report::Finding;
use crate::admin::setup::Files;
use crate::engine::checks::verdict::ProcessExit;
use crate::espocrm::process::Children;

/// A PHP for web servers, and whether it loads the extension.
#[derive(Debug, PartialEq, Eq)]
struct WebPhp {
    name: String,
    has_zmq: bool,
}

/// Debian's configuration directories that only PHP for web servers reads.
const DEBIAN: [&str; 3] = ["fpm", "apache2", "cgi"];

/// Configuration directories that every PHP reads.
const SHARED: [&str; 5] = [
    "/etc/php.d",
    "/usr/local/etc/php/conf.d",
    "/etc/php/conf.d",
    "/etc/php*/conf.d",
    "/etc/php*/php.d",
];

const FPM: [&str; 4] =
    ["/usr/sbin/php-fpm*", "/usr/local/sbin/php-fpm", "/usr/bin/php-fpm", "/usr/sbin/php*/php-fpm"];

/// Ample time for starting PHP.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn command_line(php_info: &PhpInfo, files: &Files) -> Finding {
    const STEP: &str = "zmq-command-line";
    match &php_info.zmq {
        Some(version) => {
            Finding::ok(STEP, format!("The PHP CLI has the ZeroMQ extension (zmq {version})"))
        }
        None => Finding::failure(
            STEP,
            "The PHP CLI has no ZeroMQ extension: jobs (reminders, e-mail) send no messages",
            install(files, php_info),
        ),
    }
}

pub(super) fn web(php_info: &PhpInfo, files: &Files, stop: Stop<'_>) -> Finding {
    let mut webs = fpms(files, stop);
    let seen = webs.len();
    webs.extend(by_directories(files));
    if seen > 0 {
        // PHP-FPM was queried directly.
        webs.retain(|web| !web.name.starts_with("fpm"));
    }
    judge(&webs, || install(files, php_info))
}

fn judge(webs: &[WebPhp], install: impl FnOnce() -> String) -> Finding {
    const STEP: &str = "zmq-web";
    let names = |has_zmq: bool| {
        let some = webs.iter().filter(|web| web.has_zmq == has_zmq);
        some.map(|web| web.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (with, without) = (names(true), names(false));
    match (with.is_empty(), without.is_empty()) {
        (true, true) => Finding::unknown(
            STEP,
            "The web server's PHP was not found; check that phpinfo() in the web server lists zmq",
        ),
        (false, true) => {
            Finding::ok(STEP, ["The web server's PHP has the ZeroMQ extension: ", &with].concat())
        }
        (true, false) => Finding::failure(
            STEP,
            ["The web server's PHP has no ZeroMQ extension: ", &without].concat(),
            ["Changes that users make are not sent to other users.\n", &install()].concat(),
        ),
        (false, false) => Finding::warning(
            STEP,
            ["Some PHPs for web servers have no ZeroMQ extension: ", &without].concat(),
            ["These have it: ", &with, ". If another one serves EspoCRM:\n", &install()].concat(),
        ),
    }
}

/// Runs each PHP-FPM to list its modules. Programs of another system are not executed.
fn fpms(files: &Files, stop: Stop<'_>) -> Vec<WebPhp> {
    if files.is_image() {
        return Vec::new();
    }
    let mut found: Vec<PathBuf> = FPM.iter().flat_map(|pattern| find(files, pattern)).collect();
    found.dedup();
    let inspect = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.to_owned();
        let mut command = Command::new(files.at(&files.resolve(path).ok()?));
        command.arg("-m").stdin(Stdio::null());
        let finished = Children::run(command, TIMEOUT, &mut *stop).ok()?;
        if finished.exit != Ok(ProcessExit::Status(0)) {
            return None;
        }
        let has_zmq =
            finished.stdout.split(|byte| *byte == b'\n').any(|it| it.trim_ascii() == b"zmq");
        Some(WebPhp { name, has_zmq })
    };
    found.iter().filter_map(inspect).take(8).collect()
}

fn by_directories(files: &Files) -> Vec<WebPhp> {
    let mut webs = Vec::new();
    for server in DEBIAN {
        for dir in files.find(&format!("/etc/php/*/{server}/conf.d")) {
            let version = dir.iter().nth(3).map(|it| it.to_string_lossy()).unwrap_or_default();
            let name = format!("{server} {version}");
            webs.push(WebPhp { name, has_zmq: loads(files, &dir) });
        }
    }
    for dir in SHARED.iter().flat_map(|pattern| find(files, pattern)) {
        let has_zmq = loads(files, &dir);
        webs.push(WebPhp { name: dir.display().to_string(), has_zmq });
    }
    webs
}

/// Like [`Files::find`], but a star may also end a name.
fn find(files: &Files, pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*').filter(|it| !it.0.ends_with('/')) else {
        return files.find(pattern);
    };
    let (dir, begin) = before.rsplit_once('/').unwrap_or_default();
    let begins = |path: &PathBuf| {
        path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(begin.as_bytes()))
    };
    let mut found = files.find(&format!("{dir}/*"));
    found.retain(begins);
    let whole = found.iter().map(|path| path.join(after.trim_start_matches('/')));
    // join() with an empty path adds a trailing slash.
    let mut whole: Vec<_> = whole.map(|path| path.components().collect()).collect();
    whole.retain(|path: &PathBuf| files.resolve(path).is_ok());
    whole
}

/// Whether a file in this directory loads the extension.
fn loads(files: &Files, dir: &Path) -> bool {
    let inis = files.find(&format!("{}/*.ini", dir.display()));
    inis.iter().any(|ini| names_zmq(&files.read(ini).unwrap_or_default()))
}

fn names_zmq(ini: &[u8]) -> bool {
    let ini = String::from_utf8_lossy(ini);
    ini.lines().any(|line| {
        let line = line.split(';').next().unwrap_or_default();
        let Some((name, value)) = line.split_once('=') else { return false };
        let value = value.trim().trim_matches(['"', '\'']);
        let file = value.rsplit('/').next().unwrap_or_default();
        name.trim() == "extension" && matches!(file, "zmq" | "zmq.so")
    })
}

/// How to install the extension on this system.
pub(super) fn install(files: &Files, php_info: &PhpInfo) -> String {
    let release = ["/etc/os-release", "/usr/lib/os-release"];
    let release = release.iter().find_map(|path| files.read(Path::new(path)).ok());
    let release = String::from_utf8_lossy(release.as_deref().unwrap_or_default()).into_owned();
    let is_image = files.resolve(Path::new("/usr/local/etc/php/conf.d")).is_ok();
    installing(&release, &php_info.version, is_image)
}

fn installing(release: &str, php: &str, is_image: bool) -> String {
    let mut parts = php.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let families: String = release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|value| [value.trim_matches(['"', '\'']), " "])
        .collect();
    let is = |name: &str| families.split_whitespace().any(|family| family == name);
    let how = if is_image {
        "In a PHP container image: install-php-extensions zmq".to_owned()
    } else if is("debian") || is("ubuntu") {
        format!("apt install php{major}.{minor}-zmq   (or php-zmq)")
    } else if is("fedora") || is("rhel") || is("centos") {
        "dnf install php-pecl-zmq   (RHEL and derivatives: from Remi's repository)".to_owned()
    } else if is("alpine") {
        format!("apk add php{major}{minor}-pecl-zmq   (or pecl install zmq-beta)")
    } else {
        "Install the php-zmq package, or: pecl install zmq-beta".to_owned()
    };
    how + "\nThen restart PHP or the web server: systemctl restart php-fpm (php8.2-fpm, apache2, \
           httpd)."
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn lines_that_load_the_extension_are_recognized() {
        for (ini, expected) in [
            ("extension=zmq.so", true),
            ("; x\n extension = \"zmq\" ; y\n", true),
            ("extension=/usr/lib/php/zmq.so", true),
            (";extension=zmq.so", false),
            ("extension=zmqx.so", false),
            ("zend_extension=opcache", false),
            ("", false),
        ] {
            assert_eq!(names_zmq(ini.as_bytes()), expected, "{ini}");
        }
    }

    #[test]
    fn every_php_for_web_servers_counts() {
        let web = |name: &str, has_zmq| WebPhp { name: name.to_owned(), has_zmq };
        for (webs, state) in [
            (vec![], State::Unknown),
            (vec![web("a", true)], State::Ok),
            (vec![web("a", false)], State::Failure),
            (vec![web("a", false), web("b", true)], State::Warning),
        ] {
            assert_eq!(judge(&webs, String::new).state, state);
        }
    }

    #[test]
    fn the_package_name_fits_the_distribution() {
        for (release, is_image, expected) in [
            ("NAME=x\nID=debian\n", false, "apt install php8.2-zmq"),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", false, "apt install php8.2-zmq"),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", false, "dnf install php-pecl-zmq"),
            ("ID=alpine\n", false, "apk add php82-pecl-zmq"),
            ("ID=arch\n", false, "pecl install"),
            ("ID=debian\n", true, "install-php-extensions zmq"),
        ] {
            let text = installing(release, "8.2.30", is_image);
            assert!(text.contains(expected), "{text}");
        }
    }
}
