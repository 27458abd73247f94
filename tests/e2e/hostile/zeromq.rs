//! Who connects where EspoCRM's PHP does: peers of every version, and those that want to harm. Nobody
//! else notices them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::{alice, expect_alive, expect_no_spinning, notification};
use crate::support::{Client, DEADLINE, Daemon, Php, Pusher, Standin, eventually};

/// With this all begin that know of versions.
const SIGNATURE: &[u8] = b"\xff\0\0\0\0\0\0\0\x01\x7f";

/// What a peer of 3.x says of itself.
const READY: &[u8] = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH";

/// Peers that are kept at a time.
const MAX_SENDERS: usize = 128;

/// Bytes of a message.
const MAX_MESSAGE: usize = 1024 * 1024;

/// A ZeroMQ peer of bytes.
struct Peer(TcpStream);

impl Peer {
    fn connect(daemon: &Daemon) -> Self {
        let stream = TcpStream::connect(daemon.zeromq.strip_prefix("tcp://").unwrap()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// One of ZMTP 3, ready to send messages.
    fn ready(daemon: &Daemon, minor: u8) -> Self {
        let mut peer = Self::connect(daemon);
        peer.send(SIGNATURE);
        peer.expect(SIGNATURE);
        peer.expect(&[3]);
        peer.send(&[3, minor]);
        let mut rest = b"NULL".to_vec();
        rest.resize(52, 0);
        peer.expect(&[0]);
        peer.expect(&rest);
        peer.send(&rest);
        peer.expect(b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PULL");
        peer.send(READY);
        peer
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn expect(&mut self, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        self.0.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
    }
}

/// A frame since ZMTP 2.0.
fn frame(flags: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u64;
    [&[flags | 2][..], &length.to_be_bytes(), content].concat()
}

/// A frame of ZMTP 1.0.
fn old_frame(message: &Value) -> Vec<u8> {
    let message = message.to_string();
    [&[u8::try_from(message.len() + 1).unwrap(), 0], message.as_bytes()].concat()
}

#[test]
fn peers_of_every_version_of_zeromq_are_understood() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);

    // libzmq 2: it takes our signature for a name.
    let mut peer = Peer::connect(&daemon);
    peer.send(b"\x01\0");
    peer.expect(SIGNATURE);
    peer.send(&old_frame(&notification(1)));
    alice.expect_event(&notification(1));

    // The drafts of libzmq 3, and libzmq 3.2.
    for revision in [0, 1] {
        let mut peer = Peer::connect(&daemon);
        peer.send(SIGNATURE);
        peer.expect(SIGNATURE);
        peer.expect(&[3]);
        peer.send(&[revision]);
        // PULL.
        peer.expect(&[7]);
        // PUSH, without a name.
        peer.send(&[8]);
        let message = notification(usize::from(revision));
        if revision == 0 {
            peer.expect(&[1, 0]);
            peer.send(&[1, 0]);
            peer.send(&old_frame(&message));
        } else {
            peer.expect(&[0, 0]);
            peer.send(&[0, 0]);
            peer.send(&frame(0, message.to_string().as_bytes()));
        }
        alice.expect_event(&message);
    }

    // libzmq 4.0 and later.
    for minor in [0, 1] {
        let mut peer = Peer::ready(&daemon, minor);
        peer.send(&frame(0, notification(5).to_string().as_bytes()));
        alice.expect_event(&notification(5));
        peer.send(b"\x04\x0b\x04PING\0\x64here");
        peer.expect(b"\x04\x09\x04PONGhere");
        peer.send(&frame(0, notification(6).to_string().as_bytes()));
        alice.expect_event(&notification(6));
    }
    assert_eq!(daemon.count("was dropped"), 0);
}

#[test]
fn whoever_does_not_speak_zeromq_is_sent_away_without_a_word() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let mut curve = [SIGNATURE, b"\x03\x01CURVE"].concat();
    curve.resize(64, 0);
    let mut publisher = [SIGNATURE, b"\x03\x01NULL"].concat();
    publisher.resize(64, 0);
    publisher.extend(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB");
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"{\"topicId\":\"newNotification\"}",
        &[0; 1_000],
        &[0xff; 1_000],
        &curve,
        &publisher,
    ] {
        let mut stranger = Peer::connect(&daemon);
        let _ = stranger.0.write_all(bytes);
        eventually("it is sent away", || match stranger.0.read(&mut [0; 64]) {
            Ok(length) => length == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        });
    }
    expect_alive(&daemon, &mut alice, 1);
    assert_eq!(daemon.count("was dropped"), 0);
}

#[test]
fn a_message_of_parts_without_end_is_not_kept() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let memory = daemon.status("VmRSS");
    // One by libzmq, one by hand.
    let pusher = zmq::Context::new().socket(zmq::PUSH).unwrap();
    pusher.set_linger(0).unwrap();
    pusher.connect(&daemon.zeromq).unwrap();
    let mut peer = Peer::ready(&daemon, 1);
    let part = vec![b'x'; MAX_MESSAGE];
    for number in 0..200 {
        peer.send(&frame(1, &part));
        pusher.send(&part, zmq::SNDMORE).unwrap();
        if number % 50 == 0 {
            expect_alive(&daemon, &mut alice, number);
        }
    }
    daemon.wait_for("it has several parts");
    let grown = daemon.status("VmHWM").saturating_sub(memory);
    assert!(grown < 8 * 1024, "{grown} kB");
    // It is over at last, and the next message is a good one.
    peer.send(&frame(0, &part));
    peer.send(&frame(0, notification(201).to_string().as_bytes()));
    alice.expect_event(&notification(201));
}

#[test]
fn a_message_without_end_is_not_kept() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let memory = daemon.status("VmRSS");
    let mut peer = Peer::ready(&daemon, 0);
    peer.send(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff");
    for number in 0..200 {
        peer.send(&vec![b'x'; MAX_MESSAGE]);
        if number % 50 == 0 {
            expect_alive(&daemon, &mut alice, number);
        }
    }
    daemon.wait_for("it is too big");
    let grown = daemon.status("VmHWM").saturating_sub(memory);
    assert!(grown < 8 * 1024, "{grown} kB");
}

#[test]
fn messages_that_never_come_to_their_end_take_a_bounded_memory() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let memory = daemon.status("VmRSS");
    let most = vec![b'x'; MAX_MESSAGE - 1];
    let mut peers = Vec::new();
    for _ in 0..100 {
        let mut peer = Peer::ready(&daemon, 1);
        // One byte is missing.
        let mut bytes = frame(0, &most);
        bytes[1..9].copy_from_slice(&(MAX_MESSAGE as u64).to_be_bytes());
        // It may be sent away before.
        let _ = peer.0.write_all(&bytes);
        peers.push(peer);
    }
    // A real one comes through.
    let mut text = notification(1);
    text["text"] = "x".repeat(MAX_MESSAGE - 200).into();
    Php::send(&daemon.zeromq, std::slice::from_ref(&text));
    alice.expect_event(&text);
    let grown = daemon.status("VmHWM").saturating_sub(memory);
    // 16 MiB are kept; memory is given out in doubling steps, and some of it as the text goes out.
    assert!(grown < 48 * 1024, "{grown} kB");
    drop(peers);
    expect_alive(&daemon, &mut alice, 2);
}

#[test]
fn ten_thousand_peers_that_say_nothing_keep_nobody_out() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let (memory, descriptors) = (daemon.status("VmRSS"), daemon.descriptors());
    let mut silent = Vec::new();
    for number in 0..10_000 {
        let mut peer = Peer::connect(&daemon);
        // Silent from the beginning, within the greeting, or with all said but a message.
        match number % 4 {
            0 => {}
            1 => peer.0.write_all(&SIGNATURE[..5]).unwrap(),
            2 => peer.0.write_all(b"\x01\0").unwrap(),
            _ => peer.0.write_all(SIGNATURE).unwrap(),
        }
        silent.push(peer);
        // Far more than are kept, and no more descriptors than this process may have.
        if silent.len() > 1_000 {
            silent.drain(..500);
        }
        if number % 1_000 == 999 {
            expect_alive(&daemon, &mut alice, number);
            let open = daemon.descriptors() - descriptors;
            assert!(open <= MAX_SENDERS + 1, "{open}");
        }
    }
    silent.truncate(200);
    silent.extend((0..MAX_SENDERS).map(|_| Peer::ready(&daemon, 1)));
    expect_alive(&daemon, &mut alice, 10_000);
    daemon.connect("bob");
    expect_no_spinning(&daemon);
    let grown = daemon.status("VmHWM").saturating_sub(memory);
    assert!(grown < 4 * 1024, "{grown} kB");
    drop(silent);
    eventually("all is given back", || daemon.descriptors() == descriptors);
}

#[test]
fn a_flood_of_peers_loses_no_message() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut silent = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                // Up to ten thousand a second: PHP needs some of the processor, too.
                silent.extend((0..100).map(|_| Peer::connect(&daemon)));
                if silent.len() > 1_000 {
                    silent.drain(..500);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let _stop = OnDrop(&stop);
        for number in 0..10 {
            Php::send(&daemon.zeromq, &[notification(number)]);
            alice.expect_event(&notification(number));
        }
        daemon.connect("bob");
    });
}

/// Ends a thread that goes on for as long as it is not told otherwise, also if a test fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_peer_that_pings_without_reading_is_sent_away() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let mut peer = Peer::ready(&daemon, 1);
    let pings = b"\x04\x17\x04PING\0\0sixteen bytes...".repeat(1_000);
    eventually("it is sent away", || peer.0.write_all(&pings).is_err());
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn a_burst_of_php_processes_beyond_the_number_of_peers_loses_nothing() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let count = 2 * MAX_SENDERS;
    // The daemon comes late, and then finds them all at once.
    daemon.signal("STOP");
    let pushers: Vec<Pusher> = (0..count).map(|_| Pusher::connect(&daemon.zeromq)).collect();
    for (number, pusher) in pushers.iter().enumerate() {
        pusher.send(&notification(number));
    }
    std::thread::sleep(Duration::from_millis(100));
    daemon.signal("CONT");
    let numbers = (0..count).map(|_| number_of(&mut alice));
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..count as u64).collect::<Vec<_>>());
    alice.expect_silence();
}

fn number_of(client: &mut Client) -> u64 {
    client.next_message()[2]["number"].as_u64().unwrap()
}
