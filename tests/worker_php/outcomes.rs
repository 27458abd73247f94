//! A worker and the plain command give the same result, or the worker reports that it cannot.

use super::standin::Standin;
use super::worker::{Outcome, Worker};

/// Granted, denied and failed checks.
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
fn results_are_the_same_in_every_version() {
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
fn before_7_0_the_worker_reports_that_it_cannot() {
    for version in ["5.6.0", "6.1.10"] {
        let standin = Standin::version(version);
        let worker = Worker::start(&standin);
        for words in CASES {
            let answer = worker.run(words);
            assert_eq!((answer.code, answer.header("X-Exit-Status")), (501, None));
        }
        assert_eq!(standin.lines("runs").len(), 0, "a command has run");
    }
}

#[test]
fn failures_are_the_same_or_left_to_the_plain_command() {
    let words = ["AuthTokenCheck", "tok-alice", "alice"];
    for version in VERSIONS {
        let standin = Standin::version(version);
        let worker = Worker::start(&standin);
        for (failure, is_reported) in [
            ("error", true),
            ("noise", true),
            ("exit255", false),
            ("crash", false),
            ("flood", false),
            ("nothing", false),
            ("missing-class", false),
        ] {
            standin.write("data/standin/failure", failure);
            if is_reported {
                standin.both(&worker, &words);
            } else {
                let answer = worker.run(&words);
                assert!(answer.outcome().is_none() && answer.code == 500, "{failure} {answer:?}");
            }
            standin.write("data/standin/failure", "");
            assert_eq!(standin.both(&worker, &words).status, 0);
        }
    }
}

#[test]
fn the_exit_status_is_correct_or_missing() {
    let standin = Standin::new();
    let worker = Worker::start(&standin);
    for (code, is_reported) in [
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
        let answer = worker.run(&["Extension"]);
        match answer.outcome() {
            Some(outcome) => assert_eq!((outcome, is_reported), (plain, true), "{code}"),
            None => assert!(!is_reported, "{code} {answer:?}"),
        }
    }
    // Nothing of this affects the next request.
    expect_same_environment(&standin, &worker);
}

#[test]
fn a_command_has_the_same_environment_as_on_the_command_line() {
    let standin = Standin::new();
    expect_same_environment(&standin, &Worker::start(&standin));
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
    let answer = worker.run(&["Extension"]).outcome().unwrap();
    assert_eq!(answer, Outcome { status: 1, output: String::new() });
}

#[test]
fn warnings_of_php_are_printed_in_both_ways_or_in_none() {
    let standin = Standin::new();
    // This file causes a warning when it is compiled.
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
            let warm = worker.run(&["Extension"]).outcome();
            assert_eq!(warm.as_ref(), Some(&plain), "{display}");
        }
    }
}

fn expect_same_environment(standin: &Standin, worker: &Worker) {
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
    let warm = worker.run(&words).outcome().unwrap();
    let plain = standin.plain(&words);
    for (warm, plain) in warm.output.lines().zip(plain.output.lines()) {
        assert_eq!(warm, plain);
    }
    assert_eq!(warm, plain);
}
