//! Costs of single steps of the engine: `cargo bench --bench core`. `cargo bench --bench footprint`
//! measures their total, including the kernel.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a benchmark that cannot continue must fail, and its numbers are small"
)]

use std::hint::black_box;
use std::io::IoSlice;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use espocrm_websocket::engine::checks::check::{Check, Ticket, Urgency};
use espocrm_websocket::engine::checks::queue::CheckQueue;
use espocrm_websocket::engine::checks::verdict::Verdict;
use espocrm_websocket::engine::espocrm::category::Categories;
use espocrm_websocket::engine::espocrm::submission;
use espocrm_websocket::engine::hub::{Action, Hub};
use espocrm_websocket::engine::id::ConnId;
use espocrm_websocket::engine::protocol::frame::SharedFrame;
use espocrm_websocket::engine::protocol::http;
use espocrm_websocket::engine::protocol::http::Credentials;
use espocrm_websocket::engine::protocol::outbox::Outbox;
use espocrm_websocket::engine::protocol::reader::Reader;
use espocrm_websocket::engine::protocol::wamp;
use espocrm_websocket::engine::time::Time;
use espocrm_websocket::engine::timers::Timers;
use serde_json::json;

criterion_group!(benches, connection, delivery, timers, check_queue);
criterion_main!(benches);

const TOPIC: &str = "recordUpdate.Account.6b030f5b6b56fd2fd";

const REQUEST: &str = "\
    GET /?authToken=0123456789abcdef0123456789abcdef&userId=6b030f5b450565077 HTTP/1.1\r\n\
    Host: crm.example.com\r\n\
    Connection: Upgrade\r\n\
    Pragma: no-cache\r\n\
    Cache-Control: no-cache\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/140.0.0.0 Safari/537.36\r\n\
    Upgrade: websocket\r\n\
    Origin: https://crm.example.com\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-US,en;q=0.9\r\n\
    Cookie: auth-token-secret=0123456789abcdef0123456789abcdef; auth-username=admin\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
    Sec-WebSocket-Protocol: wamp\r\n\r\n";

/// Messages from a browser.
fn connection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("connection");
    group.bench_function("upgrade request", |bencher| {
        bencher.iter(|| {
            let mut headers = http::no_headers();
            let head = http::parse(black_box(REQUEST.as_bytes()), &mut headers);
            head.unwrap().unwrap().upgrade().unwrap().response()
        });
    });
    let subscription = frame(0x81, format!("[5,\"{TOPIC}\"]").as_bytes());
    let mut reader = Reader::default();
    let mut incoming = Vec::new();
    group.bench_function("subscription, read", |bencher| {
        bencher.iter(|| {
            incoming.clear();
            reader.feed(black_box(&subscription), &mut incoming);
        });
    });
    let text = format!("[5,\"{TOPIC}\"]");
    group.bench_function("subscription, understood", |bencher| {
        bencher.iter(|| drop(black_box(wamp::parse(black_box(&text)).unwrap())));
    });
    let pong = frame(0x8a, b"");
    group.bench_function("pong, read", |bencher| {
        bencher.iter(|| {
            incoming.clear();
            reader.feed(black_box(&pong), &mut incoming);
        });
    });
    group.finish();
}

/// From a message of EspoCRM to the slices for the kernel.
fn delivery(criterion: &mut Criterion) {
    let message = format!("{{\"topicId\":\"{TOPIC}\"}}");
    let message = message.as_bytes();
    let mut group = criterion.benchmark_group("delivery");
    group.bench_function("message, read", |bencher| {
        bencher.iter(|| drop(black_box(submission::parse(black_box(message)).unwrap())));
    });
    for receivers in [1, 100, 10_000] {
        let hub = hub(receivers);
        group.throughput(Throughput::Elements(receivers.into()));
        group.bench_function(BenchmarkId::new("receivers and frame", receivers), |bencher| {
            bencher.iter(|| {
                let submission = submission::parse(black_box(message)).unwrap();
                let frame = SharedFrame::text(&wamp::event(&submission.topic, submission.json));
                for conn in hub.receivers(&submission).unwrap() {
                    black_box((conn, frame.clone()));
                }
            });
        });
    }
    let event = SharedFrame::text(&wamp::event(TOPIC, "{}"));
    for frames in [1, 64] {
        let mut outbox = Outbox::default();
        group.throughput(Throughput::Elements(frames));
        group.bench_function(BenchmarkId::new("outbox", frames), |bencher| {
            bencher.iter(|| {
                for _ in 0..frames {
                    outbox.push(event.clone()).unwrap();
                }
                let mut slices = [IoSlice::new(&[]); 64];
                black_box(outbox.slices(&mut slices));
                outbox.advance(outbox.bytes());
            });
        });
    }
    group.finish();
}

/// Pings of ten thousand connections: each timer fires and is set again.
fn timers(criterion: &mut Criterion) {
    const CONNS: u32 = 10_000;
    let mut group = criterion.benchmark_group("timers");
    group.throughput(Throughput::Elements(CONNS.into()));
    let mut timers = Timers::default();
    let mut due = Vec::new();
    let mut now = Time::from_millis(0);
    group.bench_function("10,000 set and fired", |bencher| {
        bencher.iter(|| {
            for number in 0..CONNS {
                timers.add(conn(number), now.after(Duration::from_millis((number * 5 / 2).into())));
            }
            now = now.after(Duration::from_secs(26));
            timers.take_due(now, &mut due);
            assert_eq!(due.len(), CONNS as usize);
            due.clear();
        });
    });
    group.finish();
}

/// Browser tabs that reconnect together: each check is queued, run and answered.
fn check_queue(criterion: &mut Criterion) {
    const CHECKS: u32 = 1_000;
    let mut group = criterion.benchmark_group("check queue");
    group.throughput(Throughput::Elements(CHECKS.into()));
    // Of different users, since the queue limits the checks of each.
    let check = |n: u32| {
        Check::topic(&format!("u{n}"), ["AclCheck".into(), format!("--id={n}").into()].into())
    };
    let tickets = (0..CHECKS).map(|number| Ticket { conn: conn(number), serial: 1 });
    for (name, distinct) in [("1,000 different", CHECKS), ("1,000, of 10 kinds", 10)] {
        let checks: Vec<_> =
            tickets.clone().map(|it| (it, check(it.conn.serial() % distinct))).collect();
        group.bench_function(name, |bencher| {
            let burst = || (CheckQueue::new(4), checks.clone());
            bencher.iter_batched(
                burst,
                |(mut queue, checks)| {
                    let mut answers = Vec::new();
                    for (ticket, check) in checks {
                        queue
                            .request(Time::default(), ticket, check, Urgency::Subscription)
                            .unwrap();
                    }
                    while let Some((id, _)) = queue.start(Time::default()) {
                        queue.finish(Time::default(), id, &Verdict::Granted, &mut answers);
                    }
                    assert_eq!(answers.len(), CHECKS as usize);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A hub with this many connections that are subscribed to [`TOPIC`].
fn hub(conns: u32) -> Hub {
    let categories = json!({"recordUpdate": {
        "paramList": ["scope", "id"],
        "accessCheckCommand": "AclCheck --userId=:userId --scope=:scope --id=:id --action=read",
    }});
    let mut hub = Hub::new(Categories::from_json(&categories));
    for number in 0..conns {
        let user = format!("6b030ec8{number:09x}").into();
        hub.open(conn(number), &Credentials { user, token: "t".into() });
        hub.receive(conn(number), &format!("[5,\"{TOPIC}\"]"));
        while let Some(action) = hub.poll() {
            if let Action::Check(ticket, _, _) = action {
                hub.verdict(ticket, &Verdict::Granted);
            }
        }
    }
    hub
}

fn conn(number: u32) -> ConnId {
    ConnId::new(number, number)
}

/// A short, masked frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [first, 0x80 | payload.len() as u8].into_iter().chain(mask).chain(masked).collect()
}
