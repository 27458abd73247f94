//! Whatever has changed, the very next check sees it.

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
