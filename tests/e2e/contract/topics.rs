//! Topics, their categories, and the access checks that these require.

use serde_json::{Value, json};

use espocrm_websocket::engine::printable::printable;

use crate::support::{Client, Daemon, Pusher, Standin};

/// The topic checks so far, as argument vectors.
fn checks(standin: &Standin) -> Vec<Vec<String>> {
    let mut checks = standin.arguments();
    checks.retain(|words| words[0] != "AuthTokenCheck");
    checks
}

/// Expects that all these topics are denied.
fn expect_denials(daemon: &mut Daemon, client: &mut Client, topics: &[&str]) {
    for topic in topics {
        client.subscribe(topic);
        let topic = printable(topic);
        daemon.wait_for(&format!("check access failed for topic {topic} for user alice"));
    }
}

#[test]
fn the_topics_of_espocrm_are_checked_by_its_commands() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("6b030f5b450565077");
    for topic in [
        "newNotification",
        "popupNotifications.event",
        "appParamsUpdate",
        "streamUpdate.Account.6b030f5b6b56fd2fd",
        "recordUpdate.Account.6b030f5b6b56fd2fd",
        "calendarUpdate",
    ] {
        daemon.subscribe(&mut client, "6b030f5b450565077", topic);
    }
    let user = "--userId=6b030f5b450565077";
    let id = "--id=6b030f5b6b56fd2fd";
    assert_eq!(
        standin.arguments(),
        [
            &["AuthTokenCheck", "tok-6b030f5b450565077", "6b030f5b450565077"][..],
            &["AclCheck", user, "--scope=Account", id, "--action=stream"],
            &["AclCheck", user, "--scope=Account", id, "--action=read"],
            &["AclCheck", user, "--scope=Calendar"],
        ]
    );
}

#[test]
fn extra_topic_segments_make_a_distinct_topic() {
    let standin = Standin::new();
    standin.custom_categories(&json!({"myExtension": {}}));
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    let topics = [
        "myExtension.anything",
        "myExtension.any thing/ü.",
        "recordUpdate.Account.1.more.$(id)",
        "calendarUpdate.2026",
        "popupNotifications.event.x",
    ];
    for topic in topics {
        daemon.subscribe(&mut client, "alice", topic);
    }
    let read = ["AclCheck", "--userId=alice", "--scope=Account", "--id=1", "--action=read"];
    let calendar = ["AclCheck", "--userId=alice", "--scope=Calendar"];
    assert_eq!(checks(&standin), [&read[..], &calendar]);
    let pusher = Pusher::connect(&daemon.zeromq);
    for topic in ["myExtension", "myExtension.other", "recordUpdate.Account.1", "calendarUpdate"] {
        pusher.send(&json!({ "topicId": topic }));
    }
    for topic in topics {
        let message = json!({ "topicId": topic });
        pusher.send(&message);
        client.expect_event(&message);
    }
}

#[test]
fn category_names_and_parameters_may_contain_dots() {
    let standin = Standin::new();
    let check = |name: &str| json!(format!("AclCheck --userId=:userId --scope={name} --id=:id"));
    standin.custom_categories(&json!({
        "my": {"paramList": ["id"], "accessCheckCommand": check("My")},
        "my.group": {"paramList": ["scope", "id"], "accessCheckCommand": check("Group")},
        "my.group.name": {
            "paramList": ["scope", "id"],
            "accessCheckCommand":
                "AclCheck --both=:scope:id/:scope --userId=:userId --scope=:scope --id=:id :other",
        },
        "my.group.open": {},
    }));
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    for topic in [
        "my.1",
        "my.groups.2",
        "my.group.Account.3",
        "my.group.name.Account.4",
        "my.group.name.Account.5.more",
        "my.group.open",
        "my.group.open.Account.6",
    ] {
        daemon.subscribe(&mut client, "alice", topic);
    }
    let vector = |scope: &str, id: &str| {
        ["AclCheck", "--userId=alice", &format!("--scope={scope}"), &format!("--id={id}")]
            .map(str::to_owned)
            .to_vec()
    };
    let whole = |id: &str| {
        let mut words = vector("Account", id);
        words.insert(1, format!("--both=Account{id}/Account"));
        words.push(":other".to_owned());
        words
    };
    let expected =
        [vector("My", "1"), vector("My", "groups"), vector("Group", "3"), whole("4"), whole("5")];
    assert_eq!(checks(&standin), expected);
    // The longest matching category name is used even if it leaves too few parameters.
    expect_denials(
        &mut daemon,
        &mut client,
        &["my.group.name.Account", "my.group.name", "my.group.x"],
    );
    assert_eq!(checks(&standin).len(), expected.len());
}

#[test]
fn a_topic_with_invalid_parameters_is_denied_without_a_check() {
    let standin = Standin::new();
    let mut daemon = Daemon::start_with(&standin, &["--max-checks", "1"]);
    let mut client = daemon.connect("alice");
    let long = format!("recordUpdate.Account.{}", "1".repeat(129));
    let too_long = format!("newNotification.{}", "x".repeat(512 - 15));
    expect_denials(
        &mut daemon,
        &mut client,
        &[
            "recordUpdate",
            "recordUpdate.",
            "recordUpdate.Account",
            "recordUpdate.Account.",
            "recordUpdate..1",
            "recordUpdate.Account..1",
            "recordUpdate.-Account.1",
            "recordUpdate.Account.-1",
            "recordUpdate.Account.--action=edit",
            "recordUpdate.Account.1 2",
            "recordUpdate.Account. 1",
            "recordUpdate.Account.1;id",
            "recordUpdate.Account.$(id)",
            "recordUpdate.Account.`id`",
            "recordUpdate.Account.'1'",
            "recordUpdate.Account.1/2",
            "recordUpdate.Account.\\1",
            "recordUpdate.Account.:userId",
            "recordUpdate.Account.1\n",
            "recordUpdate.Account.1\0",
            "recordUpdate.Account.é",
            "recordUpdate.Acc:id.1",
            "RecordUpdate.Account.1",
            " recordUpdate.Account.1",
            "recordUpdates.Account.1",
            "popupNotifications",
            &long,
            &too_long,
        ],
    );
    // The limits themselves, and the permitted characters.
    let longest = "1".repeat(128);
    for topic in
        [&too_long[..512], &format!("recordUpdate.My_Entity-2.{longest}"), "recordUpdate._._"]
    {
        daemon.subscribe(&mut client, "alice", topic);
    }
    let vector = |scope: &str, id: &str| {
        [
            "AclCheck",
            "--userId=alice",
            &format!("--scope={scope}"),
            &format!("--id={id}"),
            "--action=read",
        ]
        .map(str::to_owned)
    };
    assert_eq!(checks(&standin), [vector("My_Entity-2", &longest), vector("_", "_")]);
}

#[test]
fn a_category_with_an_invalid_definition_is_denied_to_everyone() {
    let standin = Standin::new();
    let commands = [
        json!("AclCheck --id=:id; touch data/owned"),
        json!("AclCheck --id=:id | cat"),
        json!("AclCheck --id=:id > data/owned"),
        json!("AclCheck --id=:id && true"),
        json!("AclCheck --id=$(id)"),
        json!("AclCheck --id=`id`"),
        json!("AclCheck --id=\"$HOME\""),
        json!("AclCheck --id=\\1"),
        json!("AclCheck --id=* ~"),
        json!("AclCheck 'never closed"),
        json!(":id"),
        json!("--option"),
        json!("   "),
        json!(true),
        json!(["AclCheck"]),
    ];
    let name = |number: usize| format!("broken{number}");
    let broken = commands.iter().enumerate().map(|(number, command)| {
        (name(number), json!({"paramList": ["id"], "accessCheckCommand": command}))
    });
    let mut categories = Value::Object(broken.collect());
    categories["brokenList"] = json!({"paramList": [1]});
    categories["brokenType"] = json!("AclCheck --id=1");
    standin.custom_categories(&categories);
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    let topics: Vec<String> = (0..commands.len())
        .map(name)
        .chain(["brokenList".to_owned(), "brokenType".to_owned()])
        .map(|name| format!("{name}.1"))
        .collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    expect_denials(&mut daemon, &mut client, &topics);
    for topic in &topics {
        let name = topic.trim_end_matches(".1");
        daemon.wait_for(&format!("topic category \"{name}\" is not served"));
    }
    daemon.subscribe(&mut client, "alice", "calendarUpdate");
    assert_eq!(checks(&standin), [["AclCheck", "--userId=alice", "--scope=Calendar"]]);
    let pusher = Pusher::connect(&daemon.zeromq);
    for topic in topics {
        pusher.send(&json!({ "topicId": topic }));
    }
    pusher.send(&json!({"topicId": "calendarUpdate"}));
    client.expect_event(&json!({"topicId": "calendarUpdate"}));
}

#[test]
fn quotation_marks_group_words_as_in_a_shell() {
    let standin = Standin::new();
    standin.custom_categories(&json!({
        "quoted": {"paramList": ["id"], "accessCheckCommand": "CustomCheck  'a $(b)' \"c :id\" ''"},
        "yes": {"accessCheckCommand": "CustomCheck 'yes'"},
    }));
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    expect_denials(&mut daemon, &mut client, &["quoted.1"]);
    daemon.subscribe(&mut client, "alice", "yes");
    let yes = ["CustomCheck", "yes"];
    assert_eq!(checks(&standin), [&["CustomCheck", "a $(b)", "c 1", ""][..], &yes]);
}

#[test]
fn before_9_2_the_output_is_the_verdict() {
    let standin = Standin::version("9.1.9");
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    daemon.subscribe(&mut client, "alice", "recordUpdate.Account.1");
    expect_denials(&mut daemon, &mut client, &["recordUpdate.Account.deny1"]);
    // A valid token of another user.
    Client::open(daemon.address, "bob", "tok-alice").expect_close(1008);
    Client::open(daemon.address, "bob", "wrong").expect_close(1008);
    standin.set("failure", "noise");
    Client::open(daemon.address, "bob", "tok-bob").expect_drop();
}

#[test]
fn since_9_2_an_exit_status_without_output_grants_nothing() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    standin.set("failure", "noise");
    client.subscribe("recordUpdate.Account.1");
    daemon.wait_for("The access check of a subscription failed: PHP printed unexpected output");
    assert_eq!(daemon.count("add topic recordUpdate.Account.1"), 0);
    standin.unset("failure");
    daemon.wait_for("add topic recordUpdate.Account.1 for user alice");
    expect_denials(&mut daemon, &mut client, &["recordUpdate.Account.deny1"]);
}

#[test]
fn a_subscription_is_retried_after_a_failed_check() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut client = daemon.connect("alice");
    standin.set("failure", "error");
    client.subscribe("recordUpdate.Account.1");
    client.subscribe("recordUpdate.Account.deny1");
    daemon.wait_for("The access check of a subscription failed");
    client.expect_silence();
    standin.unset("failure");
    daemon.wait_for("add topic recordUpdate.Account.1 for user alice");
    daemon.wait_for("check access failed for topic recordUpdate.Account.deny1 for user alice");
    let message = json!({"topicId": "recordUpdate.Account.1"});
    Pusher::connect(&daemon.zeromq).send(&message);
    client.expect_event(&message);
}
