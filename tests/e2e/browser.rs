//! Tests with a real Chromium that shows the demo page, and with a real PHP behind the daemon.

use serde_json::{Value, json};

use crate::support::{Chromium, Daemon, Page, Php, Port, Proxy, ProxyKind, Standin, eventually};

#[test]
fn the_demo_page_loads_only_from_the_daemon_and_its_tabs_connect() {
    let demo = Daemon::demo();
    let mut chromium = Chromium::start();
    let mut page = chromium.open(&format!("http://{}/", demo.address));
    page.eventually(STATES, &json!(["open", "open", "open"]));
    let (http, ws) = (format!("http://{}/", demo.address), format!("ws://{}/?", demo.address));
    let requests = page.requests();
    assert_eq!(requests.iter().filter(|url| url.starts_with(&ws)).count(), 3);
    for url in requests {
        let own = url == http || url.starts_with(&ws) || url.starts_with("data:");
        assert!(own, "{url}");
    }
    assert_eq!(page.errors(), Vec::<&Value>::new());
}

#[test]
fn demo_messages_reach_exactly_the_permitted_tabs() {
    let demo = Daemon::demo();
    let mut chromium = Chromium::start();
    let mut page = chromium.open(&format!("http://{}/", demo.address));
    all_subscribed(&demo);

    // Alice's tabs come first, then Bob's.
    send(&mut page, "newNotification");
    page.eventually(EVENTS, &json!([["newNotification"], ["newNotification"], []]));
    send(&mut page, "recordUpdate");
    let record = "recordUpdate.Account.1";
    let (alice, bob) = (json!(["newNotification", record]), json!([record]));
    page.eventually(EVENTS, &json!([alice, alice, bob]));

    // Access to this record is denied, although every tab subscribes to it.
    page.evaluate("document.getElementById('record').value = 'deny7'");
    page.evaluate(&click("document", "open the account"));
    eventually("it is denied to all tabs", || {
        ["recordUpdate", "streamUpdate"].iter().all(|category| {
            let line = format!("check access failed for topic {category}.Account.deny7");
            count(&demo, &line) == 3
        })
    });
    send(&mut page, "recordUpdate");
    send(&mut page, "streamUpdate");
    send(&mut page, "appParamsUpdate");
    let alice = json!(["newNotification", record, "appParamsUpdate"]);
    let bob = json!([record, "appParamsUpdate"]);
    page.eventually(EVENTS, &json!([alice, alice, bob]));

    // Only the tab that has subscribed to the calendar and to a record receives these messages.
    page.evaluate("document.querySelector('input[data-topic=calendarUpdate]').click()");
    eventually("the calendar is subscribed to", || count(&demo, "add topic calendarUpdate") == 1);
    page.evaluate(
        "document.querySelectorAll('input[data-topic=\"recordUpdate.Account.1\"]')[2].click()",
    );
    eventually("the record is unsubscribed from", || count(&demo, "remove topic") == 1);
    page.evaluate("document.getElementById('record').value = '1'");
    for kind in ["calendarUpdate", "recordUpdate", "popupNotifications.event", "streamUpdate"] {
        send(&mut page, kind);
    }
    let stream = "streamUpdate.Account.1";
    let second = json!([
        "newNotification",
        record,
        "appParamsUpdate",
        record,
        "popupNotifications.event",
        stream
    ]);
    let mut first = second.clone();
    first.as_array_mut().unwrap().insert(3, json!("calendarUpdate"));
    page.eventually(EVENTS, &json!([first, second, [record, "appParamsUpdate", stream]]));

    // Each line contains the time of the message.
    let times =
        "[...document.querySelectorAll('.ms')].every(it => /^\\d+\\.\\d ms$/.test(it.textContent))";
    assert_eq!(page.evaluate(times), true);
    assert_eq!(page.errors(), Vec::<&Value>::new());
}

#[test]
fn demo_tabs_reconnect_after_a_restart_of_the_daemon() {
    let port = Port::reserve();
    let address = port.address().to_string();
    let mut demo = Daemon::demo_at(&address);
    let mut chromium = Chromium::start();
    let mut page = chromium.open(&format!("http://{address}/"));
    all_subscribed(&demo);
    let mut expected = Vec::new();
    for signal in ["TERM", "KILL"] {
        demo.stop(signal);
        let unclean =
            "[...document.querySelectorAll('.why')].every(it => /unclean/.test(it.textContent))";
        page.eventually(unclean, &json!(true));
        demo = Daemon::demo_at(&address);
        all_subscribed(&demo);
        page.eventually(STATES, &json!(["open", "open", "open"]));
        send(&mut page, "appParamsUpdate");
        expected.push("appParamsUpdate");
        page.eventually(EVENTS, &json!([expected, expected, expected]));
    }
    assert_eq!(page.errors(), Vec::<&Value>::new());
}

#[test]
fn demo_tabs_do_not_reconnect_after_a_clean_close() {
    let port = Port::reserve();
    let address = port.address().to_string();
    let demo = Daemon::demo_at(&address);
    let mut chromium = Chromium::start();
    let mut page = chromium.open(&format!("http://{address}/"));
    all_subscribed(&demo);

    page.evaluate("document.querySelector('[data-open=mallory]').click()");
    page.eventually(STATES, &json!(["open", "open", "open", "ended"]));
    page.evaluate(&click("document.querySelectorAll('.tab')[2]", "make a forbidden call"));
    page.eventually(STATES, &json!(["open", "open", "ended", "ended"]));
    let ends = "[...document.querySelectorAll('.tab')].slice(2).map(tab => \
                tab.querySelector('.why').textContent.split(':')[0] + ' ' + \
                tab.querySelector('.events').textContent)";
    let call = "clean close 1008 “not allowed” error: You are not allowed to make calls";
    assert_eq!(page.evaluate(ends), json!([call, "clean close 1008 “access denied” "]));

    // The other tabs reconnect. If these two had tried to, they would have done so earlier.
    demo.stop("TERM");
    let demo = Daemon::demo_at(&address);
    eventually("both are subscribed", || count(&demo, "add topic") == 10);
    page.eventually(STATES, &json!(["open", "open", "ended", "ended"]));
    assert_eq!(count(&demo, ": open"), 2);
    send(&mut page, "appParamsUpdate");
    let event = ["appParamsUpdate"];
    page.eventually(EVENTS, &json!([event, event, [null], []]));
}

#[test]
fn a_browser_receives_messages_and_distinguishes_clean_from_unclean_closes() {
    let demo = Daemon::demo();
    let mut chromium = Chromium::start();
    let mut page = chromium.open(&format!("http://{}/", demo.address));
    let mut service = Service::start();
    let url = format!("ws://{}/", service.port.address());
    expect_delivery_and_correct_closes(&mut page, &mut service, &url);
}

#[test]
fn a_browser_behind_each_proxy_receives_messages_and_distinguishes_clean_from_unclean_closes() {
    let demo = Daemon::demo();
    let mut chromium = Chromium::start();
    let mut page = chromium.open(&format!("http://{}/", demo.address));
    let mut service = Service::start();
    for kind in [ProxyKind::Nginx, ProxyKind::Apache, ProxyKind::Caddy] {
        let proxy = Proxy::start(kind, service.port.address());
        let url = format!("wss://localhost:{}/wss", proxy.address().port());
        expect_delivery_and_correct_closes(&mut page, &mut service, &url);
    }
}

/// A daemon with PHP behind it that always uses the same port.
struct Service {
    standin: Standin,
    port: Port,
    daemon: Option<Daemon>,
}

impl Service {
    fn start() -> Self {
        let mut service = Self { standin: Standin::new(), port: Port::reserve(), daemon: None };
        service.daemon();
        service
    }

    /// The daemon; starts a new one if the previous one was stopped.
    fn daemon(&mut self) -> &mut Daemon {
        let address = self.port.address().to_string();
        let start = || Daemon::start_with(&self.standin, &["--listen", &address]);
        self.daemon.get_or_insert_with(start)
    }

    fn stop(&mut self, signal: &str) {
        self.daemon.take().unwrap().stop(signal);
    }
}

fn expect_delivery_and_correct_closes(page: &mut Page, service: &mut Service, url: &str) {
    let good = connect(&format!("{url}?authToken=tok-alice&userId=alice"));
    let bad = connect(&format!("{url}?authToken=tok-bob&userId=alice"));
    for signal in ["TERM", "KILL"] {
        page.evaluate(&good);
        page.eventually("socket.got.length", &json!(1));
        assert_eq!(page.evaluate("[socket.protocol, socket.got[0].length]"), json!(["wamp", 3]));
        page.evaluate("socket.send(JSON.stringify([5, 'newNotification']))");
        let daemon = service.daemon();
        daemon.wait_for("add topic newNotification for user alice");
        let message = json!({"userId": "alice", "topicId": "newNotification", "name": "Київ"});
        Php::send(&daemon.zeromq, std::slice::from_ref(&message));
        page.eventually("socket.got[1]", &json!([8, "newNotification", message]));
        // A stopped daemon.
        service.stop(signal);
        assert_eq!(page.evaluate("socket.end"), json!([false, 1006]));
        // No daemon.
        page.evaluate(&good);
        assert_eq!(page.evaluate("socket.end"), json!([false, 1006]));
        service.daemon();
    }
    // A token that cannot be checked.
    service.standin.set("failure", "exit255");
    page.evaluate(&good);
    assert_eq!(page.evaluate("socket.end"), json!([false, 1006]));
    service.standin.unset("failure");
    // A denied token.
    for _ in 0..20 {
        page.evaluate(&bad);
        assert_eq!(page.evaluate("socket.end"), json!([true, 1008]));
    }
}

/// A script that opens a WebSocket as EspoCRM's client does.
fn connect(url: &str) -> String {
    format!(
        "socket = new WebSocket('{url}', 'wamp'); socket.got = []; \
         socket.onmessage = event => socket.got.push(JSON.parse(event.data)); \
         socket.end = new Promise(end => \
             socket.onclose = event => end([event.wasClean, event.code])); 0"
    )
}

/// The states of the page's tabs, with the page's names for them.
const STATES: &str = "[...document.querySelectorAll('.tab')].map(tab => tab.dataset.state)";

/// The topics of the messages that each tab has received, oldest first.
const EVENTS: &str = "[...document.querySelectorAll('.tab')].map(tab => \
    [...tab.querySelectorAll('.events li')].map(line => line.dataset.topic).reverse())";

/// A script that clicks all buttons with this text in a part of the page.
fn click(part: &str, text: &str) -> String {
    format!(
        "[...{part}.querySelectorAll('button')].filter(it => it.textContent === '{text}')\
         .forEach(it => it.click())"
    )
}

/// Clicks the button for this kind of message and waits until the message was sent.
fn send(page: &mut Page, kind: &str) {
    page.evaluate(&format!("document.querySelector('[data-kind=\"{kind}\"]').click()"));
    assert_eq!(page.status("/send?"), 202);
}

/// Waits until the page's three tabs have their initial subscriptions.
fn all_subscribed(demo: &Daemon) {
    eventually("all tabs are subscribed", || count(demo, "add topic") == 15);
}

fn count(daemon: &Daemon, text: &str) -> usize {
    daemon.log().iter().filter(|line| line.contains(text)).count()
}
