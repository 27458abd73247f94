//! The next check sees every change.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::standin::Standin;
use super::worker::Worker;

#[test]
fn each_change_is_seen_by_the_next_check() {
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
    let policy = |result: &str| {
        format!(
            "<?php namespace Espo\\Core\\Utils; class Policy {{
            public static function allows(array $options) {{ return {result}; }} }}"
        )
    };
    let acl = "data/cache/application/acl/alice.php";
    let is_granted = |words: &[&str]| standin.both(&worker, words).status == 0;
    for round in 0..50 {
        // In some rounds all files have been compiled for a long time, in others they are new.
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

        // A role changes: EspoCRM removes the tables of all users.
        standin.write("data/standin/denied-alice", "1");
        standin.remove(acl);
        assert!(!is_granted(read), "round {round}");
        standin.remove("data/standin/denied-alice");
        // Or the table is replaced by one with the same name and size.
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
        let output = standin.both(&worker, settings).output;
        assert!(output.starts_with(&format!("http://{round}9.2.7")), "{output}");

        standin.write("data/state.php", "<?php return ['version' => '9.1.9'];");
        standin.both(&worker, &["AuthTokenCheck", "tok-bob", "alice"]);
        let output = standin.both(&worker, settings).output;
        assert!(output.contains("9.1.9"), "{output}");
        standin.write("data/state.php", "<?php return ['version' => '9.2.7'];");

        let categories = json!({"categories": {format!("round{round}"): {}}}).to_string();
        standin.write("custom/Espo/Custom/Resources/metadata/app/webSocket.json", &categories);
        standin.remove("data/cache/application/metadata.php");
        let output = standin.both(&worker, settings).output;
        assert!(output.contains(&format!("round{round}")), "{output}");
    }
}

/// Writes the class `Policy` with a fixed modification time.
fn write_policy(path: &Path, result: &str) {
    let text = format!(
        "<?php namespace Espo\\Core\\Utils; class Policy {{
        public static function allows(array $options) {{ return {result}; }} }}"
    );
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    std::fs::write(path, text).unwrap();
    std::fs::File::open(path).unwrap().set_modified(old).unwrap();
}

#[test]
fn skipping_the_comparison_within_a_second_misses_no_change() {
    let standin = Standin::version("9.2.7");
    let worker = Worker::start(&standin);
    let read = ["AclCheck", "--userId=alice", "--scope=Account", "--id=1"];
    let file = standin.0.join("application/Espo/Core/Utils/Policy.php");
    let new = file.with_extension("new");
    write_policy(&file, "true ");
    standin.age();
    let mut compared = None;
    let mut expect = |status: i32| {
        let start = Instant::now();
        while worker.run_again(&read, &mut compared).outcome().unwrap().status != status {
            assert!(start.elapsed() < Duration::from_secs(60), "{status}");
        }
        // The file is in use and has been compiled for some time.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            assert_eq!(worker.run_again(&read, &mut compared).outcome().unwrap().status, status);
        }
    };
    expect(0);
    for (status, result) in [(1, "false"), (0, "true "), (1, "false")] {
        write_policy(&new, result);
        std::fs::rename(&new, &file).unwrap();
        expect(status);
    }
}

#[test]
fn a_changed_file_with_the_same_modification_time_is_detected() {
    let standin = Standin::version("9.2.7");
    let worker = Worker::start(&standin);
    let read = ["AclCheck", "--userId=alice", "--scope=Account", "--id=1"];
    let file = standin.0.join("application/Espo/Core/Utils/Policy.php");
    let write = write_policy;
    write(&file, "true ");
    standin.age();
    let expect = |status: i32, how: &str| {
        // Immediately, and when opcache has used it for a while.
        for _ in 0..3 {
            assert_eq!(standin.both(&worker, &read).status, status, "{how}");
        }
    };
    expect(0, "at first");
    std::thread::sleep(Duration::from_secs(2));
    expect(0, "compiled");

    write(&file, "false");
    expect(1, "rewritten in place");

    let new = file.with_extension("new");
    write(&new, "true ");
    std::fs::rename(&new, &file).unwrap();
    expect(0, "renamed over");

    // Another release, copied some time ago.
    let application = standin.0.join("application");
    let next = standin.0.join("next");
    let copied = Command::new("cp").arg("-a").arg(&application).arg(&next).status().unwrap();
    assert!(copied.success());
    write(&next.join("Espo/Core/Utils/Policy.php"), "false");
    std::thread::sleep(Duration::from_secs(2));
    expect(0, "not moved yet");
    std::fs::rename(&application, standin.0.join("previous")).unwrap();
    std::fs::rename(&next, &application).unwrap();
    expect(1, "the directory was replaced");
}

#[test]
fn unchanged_files_stay_compiled() {
    let standin = Standin::version("9.2.7");
    let worker = Worker::start(&standin);
    let read = ["AclCheck", "--userId=alice", "--scope=Account", "--id=1"];
    standin.extension("echo opcache_get_status()['opcache_statistics']['misses']; return 0;");
    standin.age();
    standin.both(&worker, &read);
    worker.run(&["Extension"]).outcome().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let misses = || {
        standin.both(&worker, &read);
        worker.run(&["Extension"]).outcome().unwrap().output
    };
    // Files that were new a moment ago are compiled once more.
    misses();
    let before = misses();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(misses(), before);
}

#[test]
fn blacklisted_files_are_never_cached() {
    let standin = Standin::new();
    for file in ["config-internal", "config-override", "config-internal-override", "state"] {
        standin.write(&format!("data/{file}.php"), "<?php return [];");
    }
    // Also if the directories are symbolic links.
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
        worker.run(words).outcome().unwrap();
    }
    let cached = worker.run(&["Extension"]).outcome().unwrap().output;
    let cached: Value = serde_json::from_str(&cached).unwrap();
    let cached = cached.as_array().unwrap();
    let has = |name: &str| cached.iter().any(|path| path.as_str().unwrap().contains(name));
    assert!(has("/Espo/Core/Utils/AccessCheck.php") && has("/bootstrap.php"), "{cached:?}");
    assert!(!has("/config") && !has("state.php") && !has("/acl/"), "{cached:?}");
}
