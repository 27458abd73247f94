//! The PHP that answers checks (`src/shell/worker.php`) beside `php command.php`: whatever is asked
//! and whatever has changed, both say the same, or the worker says that it cannot tell.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail by a panic"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use espocrm_websocket::shell::espocrm::WORKER_OPTIONS;
use serde_json::{Value, json};

const SECRET: &str = "5ecre7aaaaaaaaaaaaaaaaaaaaaaaaaa";

const ROUTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/shell/worker.php");

const BLACKLIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/shell/worker.blacklist");

const COMMANDS: &str = "AuthTokenCheck AclCheck CustomCheck Extension";

/// A copy of the stand-in.
struct Standin(PathBuf);

/// A worker for it.
struct Worker {
    process: Child,
    port: u16,
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: i32,
    output: String,
}

/// What the worker has answered.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: Vec<u8>,
}

impl Standin {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("espocrm-worker-{}-{number}", std::process::id());
        let standin = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&standin.0).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standin/.");
        let copied = Command::new("cp").arg("-r").arg(source).arg(&standin.0).status().unwrap();
        assert!(copied.success());
        standin.write("data/config.php", "<?php return ['siteUrl' => 'http://first'];");
        standin.write("data/standin/failure", "");
        standin
    }

    fn version(version: &str) -> Self {
        let standin = Self::new();
        standin.write("data/state.php", &format!("<?php return ['version' => '{version}'];"));
        standin
    }

    /// Replaces a file, as EspoCRM does.
    fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }

    fn remove(&self, file: &str) {
        let _ = std::fs::remove_file(self.0.join(file));
    }

    /// Writes the command `Extension`.
    fn extension(&self, code: &str) {
        self.write("custom/commands/Extension.php", &format!("<?php {code}"));
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.join("data/standin").join(file));
        text.unwrap_or_default().lines().map(ToOwned::to_owned).collect()
    }

    /// What `php command.php` answers.
    fn plain(&self, words: &[&str]) -> Outcome {
        self.plain_with(&[], words)
    }

    /// With settings that stand where php.ini's do.
    fn plain_with(&self, ini: &[&str], words: &[&str]) -> Outcome {
        let mut command = Command::new("php");
        for option in ini {
            command.args(["-d", option]);
        }
        command.arg("command.php").args(words).current_dir(&self.0).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Outcome { status: output.status.code().unwrap_or(-1), output: text }
    }

    /// Asks both and expects the same; returns it.
    fn both(&self, worker: &Worker, words: &[&str]) -> Outcome {
        let told = worker.ask(words);
        let plain = self.plain(words);
        assert_eq!(told.outcome().as_ref(), Some(&plain), "{words:?} {told:?}");
        plain
    }

    /// Makes each file as old as a file of an installation is, so that it is kept compiled.
    fn age(&self) {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        age(&self.0, hour_ago);
    }
}

fn age(dir: &Path, to: SystemTime) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path(), to);
        } else {
            std::fs::File::open(entry.path()).unwrap().set_modified(to).unwrap();
        }
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Worker {
    fn start(standin: &Standin) -> Self {
        Self::start_with(standin, &[])
    }

    /// With settings that stand where php.ini's do, before ours.
    fn start_with(standin: &Standin, ini: &[&str]) -> Self {
        let blacklist = format!("opcache.blacklist_filename={BLACKLIST}");
        let mut command = Command::new("php");
        command.arg("-q");
        for option in ini.iter().chain(&WORKER_OPTIONS).chain([&&*blacklist]) {
            command.args(["-d", option]);
        }
        command.args(["-S", "127.0.0.1:0", ROUTER]).current_dir(&standin.0);
        command.env("ESPOCRM_WEBSOCKET_SECRET", SECRET).env("ESPOCRM_WEBSOCKET_COMMANDS", COMMANDS);
        command.env_remove("PHP_CLI_SERVER_WORKERS");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut errors = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(')').next());
        let port = port.and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("no port in: {line}"));
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Self { process, port }
    }

    fn ask(&self, words: &[&str]) -> Answer {
        self.post(SECRET, &json!(words).to_string())
    }

    fn post(&self, secret: &str, body: &str) -> Answer {
        let length = body.len();
        self.send(&format!(
            "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Secret: {secret}\r\nX-Nonce: 1a2b\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\
             \r\n{body}"
        ))
    }

    fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        // What prints without end is not to be waited for.
        let mut bytes = Vec::new();
        let end = stream.take(4 * 1024 * 1024).read_to_end(&mut bytes);
        if bytes.is_empty() {
            end.unwrap();
        }
        let split = bytes.windows(4).position(|it| it == b"\r\n\r\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = bytes.get(split + 4..).unwrap_or_default().to_vec();
        Answer { code, head, body }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// None if the worker could not tell.
    fn outcome(&self) -> Option<Outcome> {
        let status = self.header("X-Exit-Status")?.parse().unwrap();
        assert_eq!((self.code, self.header("X-Nonce")), (200, Some("1a2b")), "{self:?}");
        let length: usize = self.header("Content-Length").unwrap().parse().unwrap();
        assert_eq!(self.body.len(), length, "{self:?}");
        Some(Outcome { status, output: String::from_utf8_lossy(&self.body).into_owned() })
    }
}

/// Denied and allowed, good and bad.
const CASES: [&[&str]; 19] = [
    &["AuthTokenCheck", "tok-alice", "alice"],
    &["AuthTokenCheck", "tok-alice", "bob"],
    &["AuthTokenCheck", "tok-gone", "gone"],
    &["AuthTokenCheck", "guessed", "alice"],
    &["AuthTokenCheck", "", ""],
    &["AuthTokenCheck"],
    &["AclCheck", "--userId=alice", "--scope=Account", "--id=1", "--action=read"],
    &["AclCheck", "--userId=alice", "--scope=Account", "--id=deny1", "--action=read"],
    &["AclCheck", "--userId=alice", "--scope=Account", "--id=secret", "--action=stream"],
    &["AclCheck", "--userId=portal1", "--scope=Account", "--id=1", "--action=read"],
    &["AclCheck", "--userId=portal1", "--scope=Account", "--id=deny1", "--action=read"],
    &["AclCheck", "--userId=alice", "--scope=Calendar"],
    &["AclCheck", "--userId=alice", "--scope=", "--id=1", "--action=read"],
    &["AclCheck", "--userId=", "--scope=Account", "--id=1", "--action=read"],
    &["AclCheck", "--userId=alice", "--scope=Unknown", "--id=1", "--action=read"],
    &["AclCheck", "--userId=alice", "--scope=Account", "--id=\u{e9} \"'$(id)\\ \n", "--action="],
    &["AclCheck"],
    &["CustomCheck", "yes"],
    &["CustomCheck", "no"],
];

const VERSIONS: [&str; 7] = ["7.0.0", "7.1.11", "7.2.0", "8.4.2", "9.1.9", "9.2.7", "10.0.0"];

#[test]
fn every_version_says_the_same_in_both_ways() {
    for version in VERSIONS {
        let standin = Standin::version(version);
        standin.write("data/standin/bad-tokens", "tok-gone");
        standin.write("data/standin/denied-alice", "secret");
        let worker = Worker::start(&standin);
        for round in 0..3 {
            for words in CASES {
                standin.both(&worker, words);
            }
            if round == 0 {
                standin.age();
            }
        }
        let how = standin.lines("how");
        let by_worker = how.iter().filter(|how| *how == "worker").count();
        assert_eq!((by_worker, how.len()), (3 * CASES.len(), 6 * CASES.len()));
        let runs = standin.lines("runs");
        for pair in runs.chunks(2) {
            assert_eq!(pair[0], pair[1]);
        }
    }
}

#[test]
fn before_7_0_the_worker_says_that_it_cannot() {
    for version in ["5.6.0", "6.1.10"] {
        let standin = Standin::version(version);
        let worker = Worker::start(&standin);
        for words in CASES {
            let answer = worker.ask(words);
            assert_eq!((answer.code, answer.header("X-Exit-Status")), (501, None));
        }
        assert_eq!(standin.lines("runs").len(), 0, "a command has been run");
    }
}

#[test]
fn failures_are_the_same_or_are_none_of_the_worker() {
    let words = ["AuthTokenCheck", "tok-alice", "alice"];
    for version in VERSIONS {
        let standin = Standin::version(version);
        let worker = Worker::start(&standin);
        for (failure, can_be_told) in [
            ("error", true),
            ("noise", true),
            ("exit255", false),
            ("crash", false),
            ("flood", false),
        ] {
            standin.write("data/standin/failure", failure);
            if can_be_told {
                standin.both(&worker, &words);
            } else {
                let answer = worker.ask(&words);
                assert!(answer.outcome().is_none() && answer.code == 500, "{failure} {answer:?}");
            }
            standin.write("data/standin/failure", "");
            assert_eq!(standin.both(&worker, &words).status, 0);
        }
    }
}

#[test]
fn whatever_a_command_does_its_status_is_right_or_not_told() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    for (code, can_be_told) in [
        ("echo 'true'; return 0;", true),
        ("fwrite(STDOUT, 'true'); return 0;", true),
        ("fwrite(STDOUT, 'a'); echo 'b'; fwrite(STDOUT, 'c'); print 'd'; return 7;", true),
        ("return 300;", true),
        ("return 256;", true),
        ("return -1;", true),
        ("fwrite(STDERR, 'not to be seen'); return 1;", true),
        ("return fgets(STDIN) === false ? 4 : 5;", true),
        ("echo 'half'; throw new \\RuntimeException('on purpose');", true),
        ("throw new \\Exception('');", true),
        ("trigger_error('a warning', E_USER_WARNING); echo $none; return 1;", true),
        ("register_shutdown_function(function () { echo 'late'; }); return 0;", true),
        ("$GLOBALS['x'] = new class { function __destruct() { echo 'last'; } }; return 2;", true),
        ("ob_start(); echo 'kept'; return 0;", true),
        ("ob_start(); echo 'away'; ob_end_clean(); echo 'b'; return 0;", true),
        ("echo 'a'; @ob_clean(); echo 'b'; return 0;", true),
        ("header('X-Exit-Status: 0'); header('X-Nonce: 1'); return 3;", true),
        ("http_response_code(404); return 0;", true),
        ("header('Location: /'); return 0;", true),
        ("echo str_repeat('x', 1000000); return 0;", true),
        ("putenv('X=1'); setlocale(LC_ALL, 'C'); umask(0); chdir('/'); return 0;", true),
        ("ini_set('precision', '3'); date_default_timezone_set('Asia/Tokyo'); return 0;", true),
        ("echo 'true'; exit(3);", false),
        ("echo 'true'; exit(0);", false),
        ("die('true');", false),
        ("echo 'true'; throw new \\Error('on purpose');", false),
        ("echo 'true'; no_such_function();", false),
        ("echo 'true'; trigger_error('on purpose', E_USER_ERROR); return 0;", false),
        ("eval('this is no PHP'); return 0;", false),
        ("register_shutdown_function(function () { exit(5); }); return 0;", false),
        (
            "register_shutdown_function(function () { throw new \\Exception('x'); }); return 0;",
            false,
        ),
        (
            "$GLOBALS['x'] = new class { function __destruct() { throw new \\Error('x'); } };
            return 0;",
            false,
        ),
        ("set_exception_handler(function () { exit(0); }); throw new \\Error('x');", false),
        ("echo 'true'; flush(); return 0;", false),
        ("while (@ob_end_clean()); echo 'true'; flush(); return 0;", false),
        ("echo str_repeat('x', 2000000); return 0;", false),
    ] {
        standin.extension(code);
        let plain = standin.plain(&["Extension"]);
        let answer = worker.ask(&["Extension"]);
        match answer.outcome() {
            Some(outcome) => assert_eq!((outcome, can_be_told), (plain, true), "{code}"),
            None => assert!(!can_be_told, "{code} {answer:?}"),
        }
    }
    // None of this is left for the next one.
    sees_the_same(&standin, &worker);
}

#[test]
fn a_command_sees_what_it_sees_on_the_command_line() {
    let standin = Standin::new();
    sees_the_same(&standin, &Worker::start(&standin));
    let odd = [
        "display_errors=stderr",
        "variables_order=EGPCS",
        "html_errors=1",
        "output_buffering=4096",
        "zlib.output_compression=1",
        "opcache.file_cache_only=1",
        "opcache.validate_timestamps=0",
        "opcache.enable=0",
        "opcache.enable_file_override=1",
        "opcache.preload=/nonexistent",
    ];
    let worker = Worker::start_with(&standin, &odd);
    standin.both(&worker, &["AuthTokenCheck", "tok-alice", "alice"]);
    standin.extension("echo $none; return count($_ENV) > 0 ? 1 : 0;");
    let answer = worker.ask(&["Extension"]).outcome().unwrap();
    assert_eq!(answer, Outcome { status: 1, output: String::new() });
}

#[test]
fn what_php_complains_of_is_printed_in_both_ways_or_in_none() {
    let standin = Standin::new();
    // The second file is complained of when it is compiled.
    standin.write(
        "custom/commands/compiled.php",
        "<?php function standinOdd($a = 1, $b) { return 1; } return 1;",
    );
    standin.extension(
        "require __DIR__ . '/compiled.php'; echo $none; trigger_error('<b>&', E_USER_WARNING);
        return 1;",
    );
    standin.age();
    for (display, is_printed) in [("0", false), ("1", true), ("stderr", false), ("stdout", true)] {
        let ini = [&*format!("display_errors={display}"), "error_reporting=-1"];
        let worker = Worker::start_with(&standin, &ini);
        let plain = standin.plain_with(&ini, &["Extension"]);
        assert_eq!(plain.output.contains("Warning"), is_printed, "{plain:?}");
        assert_eq!(plain.output.contains("compiled.php on line"), is_printed, "{plain:?}");
        for _ in 0..3 {
            let told = worker.ask(&["Extension"]).outcome();
            assert_eq!(told.as_ref(), Some(&plain), "{display}");
        }
    }
}

fn sees_the_same(standin: &Standin, worker: &Worker) {
    standin.extension(
        "$server = $_SERVER; $env = getenv();
        foreach (['REQUEST_TIME', 'REQUEST_TIME_FLOAT', '_', 'SHLVL', 'OLDPWD', 'PWD'] as $name) {
            unset($server[$name], $env[$name]);
        }
        ksort($server); ksort($env);
        $globals = array_keys($GLOBALS); sort($globals);
        $ini = ini_get_all(null, false);
        foreach (array_keys($ini) as $name) {
            if (preg_match('/^(opcache|cli_server|apc|zlib)\\\\.|^(expose_php|output_handler|'
                . 'enable_post_data_reading|register_argc_argv)$/', $name)) {
                unset($ini[$name]);
            }
        }
        $constants = array_keys(get_defined_constants(true)['user']);
        $constants = array_diff($constants, ['STDIN', 'STDOUT', 'STDERR']); sort($constants);
        echo json_encode([
            $server, $env, $_ENV, $_GET, $_POST, $_COOKIE, $_REQUEST, $_FILES, $argv ?? 'local',
            $GLOBALS['argv'], $GLOBALS['argc'], $globals, $ini, $constants, getcwd(), umask(),
            setlocale(LC_ALL, 0), date_default_timezone_get(), get_include_path(),
            error_reporting(), get_resource_type(STDOUT), stream_get_meta_data(STDIN)['mode'],
            substr(PHP_SAPI, 0, 3), posix_getuid(), headers_sent(), error_get_last(),
        ], JSON_PRETTY_PRINT | JSON_PARTIAL_OUTPUT_ON_ERROR);
        return 0;",
    );
    let words = ["Extension", "--a=b", "c d", ""];
    let told = worker.ask(&words).outcome().unwrap();
    let plain = standin.plain(&words);
    for (told, plain) in told.output.lines().zip(plain.output.lines()) {
        assert_eq!(told, plain);
    }
    assert_eq!(told, plain);
}

#[test]
fn each_change_is_seen_by_the_very_next_check() {
    let standin = Standin::version("9.2.7");
    let worker = Worker::start(&standin);
    standin.extension(
        "echo $container->get('config')->get('siteUrl'), $container->get('config')->get('version'),
        json_encode($container->get('metadata')->get(['app', 'webSocket', 'categories']));
        return 0;",
    );
    let login: &[&str] = &["AuthTokenCheck", "tok-alice", "alice"];
    let read: &[&str] = &["AclCheck", "--userId=alice", "--scope=Account", "--id=1"];
    let settings: &[&str] = &["Extension"];
    let all = [login, read, settings];
    let policy = |what: &str| {
        format!(
            "<?php namespace Espo\\Core\\Utils; class Policy {{
            public static function allows(array $options) {{ return {what}; }} }}"
        )
    };
    let acl = "data/cache/application/acl/alice.php";
    let is_granted = |words: &[&str]| standin.both(&worker, words).status == 0;
    for round in 0..50 {
        // In some rounds everything has been kept compiled for long, in others it is new.
        if round % 3 == 0 {
            standin.age();
            for words in all {
                standin.both(&worker, words);
            }
        }
        assert!(is_granted(login) && is_granted(read));

        standin.write("data/standin/bad-tokens", "tok-alice");
        assert!(!is_granted(login) && is_granted(read));
        standin.remove("data/standin/bad-tokens");

        standin.write("data/standin/denied", "1");
        assert!(is_granted(login) && !is_granted(read));
        standin.remove("data/standin/denied");
        assert!(is_granted(read));

        // A role changes: EspoCRM removes the table of each user.
        standin.write("data/standin/denied-alice", "1");
        standin.remove(acl);
        assert!(!is_granted(read), "round {round}");
        standin.remove("data/standin/denied-alice");
        // Or somebody has written it anew, by the same name and of the same size.
        standin.write(acl, "<?php return ['denied' => ['2']];");
        assert!(is_granted(read), "round {round}");
        standin.write(acl, "<?php return ['denied' => ['1']];");
        assert!(!is_granted(read), "round {round}");
        standin.remove(acl);

        standin.write("application/Espo/Core/Utils/Policy.php", &policy("false"));
        assert!(!is_granted(read), "round {round}");
        standin.write("application/Espo/Core/Utils/Policy.php", &policy("true "));
        assert!(is_granted(read), "round {round}");

        let config = format!("<?php return ['siteUrl' => 'http://{round}'];");
        standin.write("data/config.php", &config);
        let told = standin.both(&worker, settings).output;
        assert!(told.starts_with(&format!("http://{round}9.2.7")), "{told}");

        standin.write("data/state.php", "<?php return ['version' => '9.1.9'];");
        standin.both(&worker, &["AuthTokenCheck", "tok-bob", "alice"]);
        let told = standin.both(&worker, settings).output;
        assert!(told.contains("9.1.9"), "{told}");
        standin.write("data/state.php", "<?php return ['version' => '9.2.7'];");

        let categories = json!({"categories": {format!("round{round}"): {}}}).to_string();
        standin.write("custom/Espo/Custom/Resources/metadata/app/webSocket.json", &categories);
        standin.remove("data/cache/application/metadata.php");
        let told = standin.both(&worker, settings).output;
        assert!(told.contains(&format!("round{round}")), "{told}");
    }
}

#[test]
fn what_is_blacklisted_is_never_kept_compiled() {
    let standin = Standin::new();
    for file in ["config-internal", "config-override", "config-internal-override", "state"] {
        standin.write(&format!("data/{file}.php"), "<?php return [];");
    }
    // Wherever the files really are.
    for moved in ["data/cache", "data"] {
        let to = standin.0.join(format!("elsewhere-{}", moved.replace('/', "-")));
        std::fs::create_dir_all(standin.0.join(moved)).unwrap();
        std::fs::rename(standin.0.join(moved), &to).unwrap();
        std::os::unix::fs::symlink(&to, standin.0.join(moved)).unwrap();
    }
    let worker = Worker::start(&standin);
    let read = ["AclCheck", "--userId=alice", "--scope=Account", "--id=1"];
    standin.both(&worker, &read);
    standin.extension("echo json_encode(array_keys(opcache_get_status()['scripts'])); return 0;");
    standin.age();
    for words in [&read[..], &read[..], &["Extension"]] {
        worker.ask(words).outcome().unwrap();
    }
    let kept = worker.ask(&["Extension"]).outcome().unwrap().output;
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let kept: Vec<&str> = kept.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    let has = |name: &str| kept.iter().any(|path| path.contains(name));
    assert!(has("/Espo/Core/Utils/AccessCheck.php") && has("/bootstrap.php"), "{kept:?}");
    assert!(!has("/config") && !has("state.php") && !has("/acl/"), "{kept:?}");
}

#[test]
fn who_does_not_know_the_secret_or_asks_for_something_else_is_refused() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    let good = json!(["AuthTokenCheck", "tok-alice", "alice"]).to_string();
    let head = format!("Host: x\r\nX-Secret: {SECRET}\r\nConnection: close\r\n");
    let nonce = "X-Nonce: 1\r\n";
    let posted = |body: &str| worker.post(SECRET, body);
    let length = good.len();
    let content =
        format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{good}");
    let answers = [
        (403, worker.post("", &good)),
        (403, worker.post("wrong", &good)),
        (403, worker.post(&SECRET[1..], &good)),
        (403, worker.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")),
        (403, worker.send("GET /index.php HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")),
        (403, worker.send("GET /data/config.php HTTP/1.0\r\n\r\n")),
        (403, worker.send("GET /../../etc/passwd HTTP/1.0\r\n\r\n")),
        (403, worker.send("GET /README.md HTTP/1.0\r\n\r\n")),
        (405, worker.send(&format!("GET / HTTP/1.1\r\n{head}{nonce}\r\n"))),
        (405, worker.send(&format!("PUT / HTTP/1.1\r\n{head}{nonce}{content}"))),
        (404, worker.send(&format!("POST /command.php HTTP/1.1\r\n{head}{nonce}{content}"))),
        (404, worker.send(&format!("POST /?a=b HTTP/1.1\r\n{head}{nonce}{content}"))),
        (400, worker.send(&format!("POST / HTTP/1.1\r\n{head}{content}"))),
        (400, worker.send(&format!("POST / HTTP/1.1\r\n{head}X-Nonce: a\u{e9} b\r\n{content}"))),
        (400, posted("")),
        (400, posted("x")),
        (400, posted("[]")),
        (400, posted("{}")),
        (400, posted("null")),
        (400, posted("\"AuthTokenCheck\"")),
        (400, posted("{\"0\": \"AuthTokenCheck\"}")),
        (400, posted("[\"AuthTokenCheck\", 1]")),
        (400, posted("[\"AuthTokenCheck\", [\"x\"]]")),
        (400, posted("[\"AuthTokenCheck\", \"a\\u0000b\"]")),
        (400, posted("[\"AuthTokenCheck\", \"tok-alice\", \"alice\"")),
        (400, posted("[\"AuthTokenCheck\", \"\u{e9}\"] [")),
        (403, posted("[\"\"]")),
        (403, posted("[\"Rebuild\"]")),
        (403, posted("[\"authTokenCheck\"]")),
        (403, posted("[\"AuthTokenCheck AclCheck\"]")),
        (403, posted("[\" AuthTokenCheck\", \"tok-alice\", \"alice\"]")),
    ];
    for (number, (code, answer)) in answers.iter().enumerate() {
        assert_eq!((answer.code, answer.header("X-Exit-Status")), (*code, None), "{number}");
        assert_eq!(answer.body, b"", "{number} {answer:?}");
    }
    assert_eq!(worker.send("nonsense\r\n\r\n").header("X-Exit-Status"), None);
    assert_eq!(standin.lines("runs").len() + standin.lines("probes").len(), 0);
    standin.both(&worker, &["AuthTokenCheck", "tok-alice", "alice"]);
}

#[test]
fn who_connects_and_says_nothing_holds_up_nobody() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    let connect = |text: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", worker.port)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let silent = ["", "POST / HT", "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n[", "\r\n"];
    let _held: Vec<TcpStream> = silent.into_iter().cycle().take(40).map(connect).collect();
    standin.both(&worker, &["AuthTokenCheck", "tok-alice", "alice"]);
}

#[test]
fn the_secret_is_neither_an_argument_nor_left_in_a_variable() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    standin.extension(
        "ob_start(); var_dump($GLOBALS, getenv(), getenv('ESPOCRM_WEBSOCKET_SECRET'), $_SERVER, $_ENV);
        $all = ob_get_clean();
        $child = shell_exec('env');
        return strpos($all . $child, 'ESPOCRM_WEBSOCKET') === false
            && strpos($all . $child, substr(__FILE__, 0, 0) . '5ecre7a') === false ? 0 : 1;",
    );
    for _ in 0..3 {
        assert_eq!(worker.ask(&["Extension"]).outcome().unwrap().status, 0);
    }
    let pid = worker.process.id();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = String::from_utf8_lossy(&arguments);
    assert!(arguments.contains("127.0.0.1:0") && !arguments.contains(SECRET), "{arguments}");
}

#[test]
fn what_the_command_line_runs_before_or_after_is_left_to_the_command_line() {
    let standin = Standin::new();
    standin.write("prepended.php", "<?php echo 'prepended';");
    let file = standin.0.join("prepended.php");
    for name in ["auto_prepend_file", "auto_append_file"] {
        let worker = Worker::start_with(&standin, &[&format!("{name}={}", file.display())]);
        let answer = worker.ask(&["AuthTokenCheck", "tok-alice", "alice"]);
        assert_eq!((answer.code, answer.header("X-Exit-Status")), (501, None));
    }
}

#[test]
fn a_thousand_checks_leave_its_memory_as_it_was() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    let resident = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", worker.process.id()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    standin.age();
    let ask = |count| {
        for _ in 0..count {
            let answer = worker.ask(&["AuthTokenCheck", "tok-alice", "alice"]);
            assert_eq!(answer.outcome().unwrap().status, 0);
        }
    };
    ask(200);
    let before = resident();
    ask(1000);
    assert!(resident() < before + 1024, "{before} {} kB", resident());
}
