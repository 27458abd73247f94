//! Metrics as a real Prometheus reads them; dashboard and alerts use no other names.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{
    Client, Control, Daemon, Port, ProcessGroup, Pusher, Standin, TempDir, ask_port, eventually,
    program, run,
};

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring").join(file)
}

fn promtool() -> Command {
    let mut promtool = program("/usr/bin/promtool");
    promtool.current_dir(docs(""));
    promtool
}

/// A daemon with some traffic.
fn used(standin: &Standin, metrics: SocketAddr) -> (Daemon, Client) {
    let mut daemon = Daemon::start_with(standin, &["--metrics", &metrics.to_string()]);
    let mut alice = daemon.connect("alice");
    daemon.subscribe(&mut alice, "alice", "recordUpdate.Account.1");
    let pusher = Pusher::connect(&daemon.zeromq);
    let update = json!({"topicId": "recordUpdate.Account.1"});
    pusher.send(&update);
    pusher.send_bytes(b"{}");
    alice.expect_event(&update);
    daemon.wait_for("A ZeroMQ message was dropped");
    Client::open(daemon.address, "bob", "tok-wrong").expect_close(1008);
    (daemon, alice)
}

/// The names of all series.
fn names(metrics: &str) -> BTreeSet<String> {
    let series = metrics.lines().filter(|line| !line.starts_with('#'));
    series.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

/// The names of the daemon's and the process's metrics that a text mentions.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    let ours = |word: &&str| {
        word.starts_with("espocrm_websocket_")
            || (word.starts_with("process_") && *word != "process_")
    };
    words.filter(ours).map(str::to_owned).collect()
}

#[test]
fn promtool_accepts_the_metrics() {
    let standin = Standin::new();
    let port = Port::reserve();
    let (_daemon, _alice) = used(&standin, port.address());
    let (_, text) = ask_port(port.address(), "GET", "/metrics");
    let mut check = promtool();
    check.args(["check", "metrics"]).stdin(Stdio::piped());
    check.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    assert_eq!((output.status.success(), String::from_utf8_lossy(&printed).trim()), (true, ""));
    // Values from users and messages do not appear in it.
    for word in ["alice", "bob", "Account", "127.0.0.1"] {
        assert!(!text.contains(word), "{word} is in\n{text}");
    }
}

#[test]
fn dashboard_and_alerts_match_the_exported_metrics() {
    let standin = Standin::new();
    let port = Port::reserve();
    let (_daemon, _alice) = used(&standin, port.address());
    let (_, text) = ask_port(port.address(), "GET", "/metrics");
    let there = names(&text);
    assert!(there.len() > 25, "{there:?}");
    let mut shown = BTreeSet::new();
    for file in ["grafana.json", "alerts.yml", "alerts_test.yml"] {
        let text = fs::read_to_string(docs(file)).unwrap();
        let mentioned = mentioned(&text);
        assert!(!mentioned.is_empty(), "{file}");
        let unknown: Vec<_> = mentioned.difference(&there).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
        shown.extend(mentioned);
    }
    let unseen: Vec<_> = there.difference(&shown).collect();
    assert!(unseen.is_empty(), "the dashboard does not show {unseen:?}");
    let dashboard = fs::read(docs("grafana.json")).unwrap();
    serde_json::from_slice::<Value>(&dashboard).unwrap();
}

#[test]
fn the_alerts_are_well_formed_and_fire_only_when_expected() {
    for arguments in [
        &["check", "rules", "alerts.yml"][..],
        &["test", "rules", "alerts_test.yml"],
        &["check", "config", "prometheus.yml"],
    ] {
        let mut check = promtool();
        check.args(arguments);
        let output = run(check);
        let printed = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&printed));
    }
    // The test covers every alert.
    let alerts = fs::read_to_string(docs("alerts.yml")).unwrap();
    let test = fs::read_to_string(docs("alerts_test.yml")).unwrap();
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert_eq!(test.matches(&format!(" {alert} ")).count(), 1, "{alert}");
        assert_eq!(test.matches(&format!("\"{alert}\"")).count(), 1, "{alert}");
    }
}

/// A real Prometheus with the documented configuration, for this daemon.
struct Prometheus {
    _process: ProcessGroup,
    port: Port,
    _dir: TempDir,
}

impl Prometheus {
    fn start(metrics: SocketAddr) -> Self {
        let dir = TempDir::new("prometheus");
        let config = fs::read_to_string(docs("prometheus.yml")).unwrap();
        assert!(config.contains("127.0.0.1:9170") && config.contains("interval: 15s"));
        let config = config.replace("127.0.0.1:9170", &metrics.to_string());
        let config = config.replace("interval: 15s", "interval: 1s");
        fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        fs::copy(docs("alerts.yml"), dir.path().join("alerts.yml")).unwrap();
        let port = Port::reserve();
        let mut command = program("/usr/bin/prometheus");
        command.current_dir(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command.args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        command.arg(format!("--web.listen-address={}", port.address()));
        Self { _process: ProcessGroup::start(command), port, _dir: dir }
    }

    /// The values of a query, each with the label that distinguishes it.
    fn query(&self, query: &str) -> Vec<(String, f64)> {
        let Some(body) = self.get(&format!("/api/v1/query?query={query}")) else {
            return Vec::new();
        };
        let answer: Value = serde_json::from_str(&body).unwrap();
        let results = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{body}"));
        let value = |result: &Value| {
            let reason = result["metric"]["reason"].as_str().unwrap_or_default();
            (reason.to_owned(), result["value"][1].as_str().unwrap().parse().unwrap())
        };
        results.iter().map(value).collect()
    }

    /// The current series of an expression. Panics unless the evaluation succeeds.
    fn evaluate(&self, expression: &str) -> Vec<Value> {
        let body = self.get(&format!("/api/v1/query?query={}", encoded(expression)));
        let body = body.unwrap_or_else(|| panic!("not evaluated: {expression}"));
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["status"], "success", "{expression}: {body}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// `None` while Prometheus does not listen.
    fn get(&self, target: &str) -> Option<String> {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(self.port.address()).ok()?;
        let request = format!("GET {target} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.to_owned())
    }

    fn expect(&self, query: &str, expected: &[(&str, f64)]) {
        let expected: Vec<_> =
            expected.iter().map(|(label, value)| ((*label).to_owned(), *value)).collect();
        let mut current = Vec::new();
        eventually(&format!("{query} is {expected:?}"), || {
            let is = self.query(query);
            if is != current {
                println!("{query} is {is:?}");
                current = is;
            }
            current == expected
        });
    }
}

#[test]
fn prometheus_scrapes_correct_values() {
    let standin = Standin::new();
    let port = Port::reserve();
    let (daemon, alice) = used(&standin, port.address());
    let prometheus = Prometheus::start(port.address());
    prometheus.expect("up", &[("", 1.0)]);
    prometheus.expect("espocrm_websocket_connections", &[("", 1.0)]);
    prometheus.expect("espocrm_websocket_healthy", &[("", 1.0)]);
    prometheus.expect("espocrm_websocket_deliveries_total", &[("", 1.0)]);
    let dropped = "espocrm_websocket_messages_dropped_total%3E0";
    prometheus.expect(dropped, &[("malformed", 1.0)]);
    let ended = "espocrm_websocket_connections_ended_total%3E0";
    prometheus.expect(ended, &[("token_denied", 1.0)]);
    drop(alice);
    prometheus.expect("espocrm_websocket_connections", &[("", 0.0)]);
    let rules = prometheus.get("/api/v1/rules").unwrap();
    let rules: Value = serde_json::from_str(&rules).unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 7);
    // Its own time counts from the same moment.
    let started = prometheus.query("time()-process_start_time_seconds");
    assert!((0.0..600.0).contains(&started[0].1), "{started:?}");
    daemon.stop("TERM");
    prometheus.expect("up", &[("", 0.0)]);
}

fn encoded(expression: &str) -> String {
    expression.bytes().fold(String::new(), |mut text, byte| {
        write!(text, "%{byte:02X}").unwrap();
        text
    })
}

/// Whether one of these series has a number.
fn has_a_number(series: &[Value]) -> bool {
    let value = |it: &Value| it["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
    series.iter().filter_map(value).any(f64::is_finite)
}

/// Each query of the dashboard with its legend, as Grafana sends it for this job.
fn queries_of_the_dashboard() -> Vec<(String, String)> {
    let dashboard: Value =
        serde_json::from_slice(&fs::read(docs("grafana.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let query = |target: &Value| {
        let expression = target["expr"].as_str().unwrap().replace("$job", "espocrm-websocket");
        let expression = expression.replace("$__rate_interval", "15s");
        assert!(!expression.contains('$'), "{expression}");
        (expression, target["legendFormat"].as_str().unwrap_or_default().to_owned())
    };
    targets.map(query).collect()
}

/// The expression that an alert compares, without the comparison.
fn compared(expression: &str) -> &str {
    let end = expression.rfind([' ']).unwrap();
    let expression = expression[..end].trim_end();
    expression.strip_suffix("==").or(expression.strip_suffix('>')).unwrap().trim_end()
}

#[test]
fn prometheus_evaluates_every_query_of_the_dashboard_and_the_alerts() {
    let standin = Standin::new();
    let port = Port::reserve();
    let (daemon, mut alice) = used(&standin, port.address());
    let prometheus = Prometheus::start(port.address());
    prometheus.expect("up", &[("", 1.0)]);
    let pusher = Pusher::connect(&daemon.zeromq);
    for number in 0..130 {
        alice.subscribe(&format!("newNotification.{number}"));
    }
    let mut number = 130;
    // Rates cover the last seconds, so there must be constant activity.
    let mut cause_traffic = || {
        Client::open(daemon.address, "bob", "tok-wrong").expect_close(1008);
        Client::tcp(daemon.address).send(b"GET / HTTP/1.1\r\n\r\n");
        pusher.send(&json!({"topicId": "newNotification", "userId": "bob"}));
        pusher.send_bytes(b"{}");
        alice.subscribe(&format!("newNotification.{number}"));
        number += 1;
        std::thread::sleep(std::time::Duration::from_millis(300));
    };
    let mut expect_a_number = |expression: &str, legend: &str| {
        let mut series = Vec::new();
        eventually(&format!("{expression} has a number"), || {
            cause_traffic();
            series = prometheus.evaluate(expression);
            has_a_number(&series)
        });
        let labels = legend.split("{{").skip(1).map(|it| it.split("}}").next().unwrap());
        for label in labels {
            assert!(
                series.iter().all(|it| it["metric"][label].is_string()),
                "{legend}: {series:?}"
            );
        }
    };

    let queries = queries_of_the_dashboard();
    assert!(queries.len() > 30, "{queries:?}");
    for (expression, legend) in queries {
        if expression.contains("accept_failures") {
            // There are no series, so only the evaluation is tested.
            prometheus.evaluate(&expression);
        } else {
            expect_a_number(&expression, &legend);
        }
    }
    let rules = prometheus.get("/api/v1/rules").unwrap();
    let rules: Value = serde_json::from_str(&rules).unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 7);
    for rule in rules {
        let expression = rule["query"].as_str().unwrap();
        prometheus.evaluate(expression);
        expect_a_number(compared(expression), "");
    }
    // The dashboard uses this to find its jobs.
    let jobs = prometheus.get("/api/v1/label/job/values?match[]=espocrm_websocket_healthy");
    let jobs: Value = serde_json::from_str(&jobs.unwrap()).unwrap();
    assert_eq!(jobs["data"], json!(["espocrm-websocket"]));
}

#[test]
fn the_control_socket_returns_the_same_metrics() {
    let standin = Standin::new();
    let (_daemon, control) = Control::start(&standin, &[]);
    let mut check = promtool();
    check.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut check = check.spawn().unwrap();
    let text = control.get("/metrics");
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(check.wait().unwrap().success());
}
