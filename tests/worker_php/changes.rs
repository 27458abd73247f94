//! Whatever has changed, the very next check sees it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::standin::Standin;
use super::worker::Worker;

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

/// With a modification time that does not depend on when this is called.
fn write_policy(path: &Path, what: &str) {
    let text = format!(
        "<?php namespace Espo\\Core\\Utils; class Policy {{
        public static function allows(array $options) {{ return {what}; }} }}"
    );
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    std::fs::write(path, text).unwrap();
    std::fs::File::open(path).unwrap().set_modified(old).unwrap();
}

#[test]
fn the_comparison_that_is_left_out_within_a_second_misses_nothing() {
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
        while worker.ask_again(&read, &mut compared).outcome().unwrap().status != status {
            assert!(start.elapsed() < Duration::from_secs(60), "{status}");
        }
        // The file is in use, and compiled long ago.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            assert_eq!(worker.ask_again(&read, &mut compared).outcome().unwrap().status, status);
        }
    };
    expect(0);
    for (status, what) in [(1, "false"), (0, "true "), (1, "false")] {
        write_policy(&new, what);
        std::fs::rename(&new, &file).unwrap();
        expect(status);
    }
}

#[test]
fn a_file_with_the_same_modification_time_is_seen_as_changed() {
    let standin = Standin::version("9.2.7");
    let worker = Worker::start(&standin);
    let read = ["AclCheck", "--userId=alice", "--scope=Account", "--id=1"];
    let file = standin.0.join("application/Espo/Core/Utils/Policy.php");
    let write = write_policy;
    write(&file, "true ");
    standin.age();
    let expect = |status: i32, how: &str| {
        // Now, and when it has been kept compiled for a while.
        for _ in 0..3 {
            assert_eq!(standin.both(&worker, &read).status, status, "{how}");
        }
    };
    expect(0, "at first");
    std::thread::sleep(Duration::from_secs(2));
    expect(0, "kept compiled");

    write(&file, "false");
    expect(1, "rewritten in place");

    let new = file.with_extension("new");
    write(&new, "true ");
    std::fs::rename(&new, &file).unwrap();
    expect(0, "renamed over");

    // Another release, copied some time before.
    let application = standin.0.join("application");
    let next = standin.0.join("next");
    let copied = Command::new("cp").arg("-a").arg(&application).arg(&next).status().unwrap();
    assert!(copied.success());
    write(&next.join("Espo/Core/Utils/Policy.php"), "false");
    std::thread::sleep(Duration::from_secs(2));
    expect(0, "not moved yet");
    std::fs::rename(&application, standin.0.join("previous")).unwrap();
    std::fs::rename(&next, &application).unwrap();
    expect(1, "the directory is another one");
}

#[test]
fn what_has_not_changed_stays_compiled() {
    let standin = Standin::version("9.2.7");
    let worker = Worker::start(&standin);
    let read = ["AclCheck", "--userId=alice", "--scope=Account", "--id=1"];
    standin.extension("echo opcache_get_status()['opcache_statistics']['misses']; return 0;");
    standin.age();
    standin.both(&worker, &read);
    worker.ask(&["Extension"]).outcome().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let misses = || {
        standin.both(&worker, &read);
        worker.ask(&["Extension"]).outcome().unwrap().output
    };
    // What was new a moment ago is compiled once more.
    misses();
    let before = misses();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(misses(), before);
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
