//! Whatever peers do, the daemon uses no more memory than it logs at startup.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::support::{
    Client, Control, DEADLINE, Daemon, Pusher, Standin, command, eventually, request,
};

const USERS: usize = 20;
const CONNECTIONS: usize = 800;

#[test]
fn memory_stays_within_the_estimate_with_every_limit_reached() {
    let standin = Standin::new();
    let mut program = command();
    let control = Control::path(&standin);
    program.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--no-worker"]);
    program.args(["--max-connections", &CONNECTIONS.to_string(), "--espocrm"]);
    program.arg(standin.path()).arg("--control").arg(&control).env("TMPDIR", standin.path());
    let mut daemon = Daemon::spawn(program);
    let printed = daemon.wait_for("Limits: 800 connections and ");
    let words: Vec<_> = printed.split_whitespace().collect();
    let unit = words.iter().position(|word| *word == "MB").unwrap();
    let at_most = words[unit - 1].parse::<u64>().unwrap() * 1_000_000;

    let mut other_client = daemon.connect("bystander");
    let mut clients: Vec<_> = (0..CONNECTIONS - 2)
        .map(|number| {
            let mut client = Client::tcp(daemon.address);
            client.upgrade(&super::target(&format!("user{}", number % USERS)));
            // A client that does not read must not block the test for long.
            client.stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
            client
        })
        .collect();
    for client in &mut clients {
        client.expect_welcome();
    }
    other_client.expect_silence();
    // Each client uses as much as it may. Those that use most are evicted meanwhile.
    standin.hold("AclCheck");
    for (number, client) in clients.iter_mut().enumerate() {
        let _ = client.stream.write_all(&maximum_input(number));
    }
    other_client.expect_silence();
    let pusher = Pusher::connect(&daemon.zeromq);
    for number in 0..100 {
        let text = "x".repeat(20_000);
        pusher.send(&json!({"topicId": "newNotification", "n": number, "text": text}));
    }
    daemon.wait_for("The largest are ended");
    other_client.expect_silence();

    let peak = daemon.status("VmHWM") * 1024;
    println!("stated: {at_most} B, used: {peak} B");
    assert!(Control::at(&control).number("/connections/ended/memory") > 0);
    assert!(peak <= at_most, "{peak} B");
    // Without ZeroMQ's share, which has its own test: the memory was really used.
    assert!(peak >= 60_000_000, "{peak} B");
    standin.release();
    drop(clients);
    eventually("their memory is returned", || daemon.status("VmRSS") * 1024 < peak / 2);
    daemon.connect("alice").expect_silence();
}

/// Everything that a connection may send without being closed.
fn maximum_input(number: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut output_of =
        |text: String| all.extend_from_slice(&<Client>::frame(0x81, text.as_bytes()));
    output_of(json!([5, "newNotification"]).to_string());
    for prefix in 0..16 {
        let name = format!("{prefix:0>128}");
        output_of(json!([1, name, "u".repeat(512)]).to_string());
    }
    for topic in 0..40 {
        output_of(json!([5, format!("recordUpdate.Account.{number}x{topic:0>100}")]).to_string());
    }
    for topic in 0..90 {
        output_of(json!([5, format!("newNotification.{number}.{topic:0>480}")]).to_string());
    }
    // A message without its end, in two frames.
    all.extend_from_slice(&<Client>::frame(0x01, &b"a".repeat(60_000)));
    let frame = <Client>::frame(0x00, &b"a".repeat(5_000));
    all.extend_from_slice(&frame[..frame.len() - 1]);
    all
}

#[test]
fn memory_is_returned_while_other_clients_stay_connected() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &[]);
    let stay = |number: usize| daemon.connect(&format!("u{}", number % 20));
    let mut others: Vec<_> = (0..20).map(stay).collect();
    let before = daemon.status("VmRSS");
    // Messages without their end. Some of these tabs stay, so that used blocks lie between those
    // that are freed.
    let unfinished = |number: usize, length: usize| {
        let mut client = stay(number);
        let frame = <Client>::frame(0x81, &b"a".repeat(length));
        client.send(&frame[..frame.len() - 1]);
        client
    };
    let mut leaving = Vec::new();
    let mut staying = Vec::new();
    for number in 0..350 {
        leaving.push(unfinished(number, 40_000));
        if number % 20 == 19 {
            staying.push(unfinished(number, 40_000));
        }
    }
    eventually("the memory grows", || daemon.status("VmRSS") > before + 10_000);
    drop(leaving);
    eventually("the memory is returned", || daemon.status("VmRSS") < before + 6_000);
    for other in &mut others {
        other.expect_silence();
    }
}

#[test]
fn a_client_that_never_completes_a_message_is_disconnected() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &["--ping-interval", "1s"]);
    let mut slow = daemon.connect("alice");
    let frame = <Client>::frame(0x81, &b" ".repeat(10_000));
    let mut bytes = frame.into_iter();
    // Sends a byte now and then, and answers each ping.
    let mut writing = slow.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for byte in bytes.by_ref() {
            std::thread::sleep(Duration::from_millis(50));
            if writing.write_all(&[byte]).is_err() {
                return bytes.len();
            }
        }
        0
    });
    let start = std::time::Instant::now();
    // Pongs would be in the middle of its frame, so it sends none; its bytes keep it alive.
    while let Some(frame) = slow.next_raw() {
        assert_eq!(frame.opcode, 9, "no Close frame: {frame:?}");
    }
    assert!(start.elapsed() < DEADLINE);
    let _ = slow.stream.shutdown(Shutdown::Both);
    assert!(writer.join().unwrap() > 0);
    control.expect("/connections/ended/incomplete", 1);
    daemon.connect("alice").expect_silence();
}

#[test]
fn a_client_that_lags_for_long_is_disconnected_before_its_queue_grows() {
    let standin = Standin::new();
    let (mut daemon, control) = Control::start(&standin, &["--ping-interval", "2s"]);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&daemon.address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut slow = Client::over(stream);
    slow.send(request(&super::target("alice")).as_bytes());
    slow.read_head();
    slow.expect_welcome();
    daemon.subscribe(&mut slow, "alice", "newNotification");
    let mut good = daemon.connect("alice");
    daemon.subscribe(&mut good, "alice", "newNotification");
    let pusher = Pusher::connect(&daemon.zeromq);
    let text = "x".repeat(600_000);
    let message = json!({"topicId": "newNotification", "userId": "alice", "text": text});
    pusher.send(&message);
    good.expect_event(&message);
    let line = daemon.wait_for("A browser could not keep up");
    assert!(line.contains(" bytes are queued for it, the limit is 1572864"), "{line}");
    control.expect("/connections/ended/slow", 1);
    good.expect_silence();
}
