//! ZeroMQ peers on the port for EspoCRM's PHP: peers of every version, and hostile peers. Other
//! clients are not affected.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::{alice, expect_alive, expect_no_spinning, expect_served, notification};
use crate::support::{Client, DEADLINE, Daemon, Pusher, Standin, eventually};

/// The signature with which all peers that support versions begin.
const SIGNATURE: &[u8] = b"\xff\0\0\0\0\0\0\0\x01\x7f";

/// The READY command of a 3.x peer.
const READY: &[u8] = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH";

/// The maximum number of concurrent peers.
const MAX_SENDERS: usize = 1024;

/// The memory that libzmq may hold, plus what may arrive between two measurements, in kB. The sum
/// is far more than libzmq normally uses.
const MAX_ZEROMQ: u64 = 400 * 1024;

/// The largest accepted message, in bytes.
const MAX_MESSAGE: usize = 1024 * 1024;

/// A ZeroMQ peer at byte level.
struct Peer(TcpStream);

impl Peer {
    fn connect(daemon: &Daemon) -> Self {
        let mut peer = None;
        eventually("the port accepts connections", || {
            peer = Self::try_connect(daemon).ok();
            peer.is_some()
        });
        peer.unwrap()
    }

    fn try_connect(daemon: &Daemon) -> io::Result<Self> {
        let stream = TcpStream::connect(daemon.zeromq.strip_prefix("tcp://").unwrap())?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Ok(Self(stream))
    }

    /// A ZMTP 3 peer that is ready to send messages.
    fn ready(daemon: &Daemon, minor: u8) -> Self {
        let mut peer = Self::connect(daemon);
        peer.send(SIGNATURE);
        peer.expect(SIGNATURE);
        peer.expect(&[3]);
        peer.send(&[3, minor]);
        let mut rest = b"NULL".to_vec();
        rest.resize(52, 0);
        peer.expect(&[1]);
        peer.expect(&rest);
        peer.send(&rest);
        peer.expect(b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PULL");
        peer.send(READY);
        peer
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Sends, unless the daemon has disconnected the peer.
    fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    fn expect(&mut self, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        self.0.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
    }
}

/// A frame of ZMTP 2.0 or later.
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
fn peers_of_every_zeromq_version_are_supported() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);

    // libzmq 2 interprets the daemon's signature as a name.
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
fn peers_that_do_not_speak_zeromq_affect_no_other_peer() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let mut curve = [SIGNATURE, b"\x03\x01CURVE"].concat();
    curve.resize(64, 0);
    let mut publisher = [SIGNATURE, b"\x03\x01NULL"].concat();
    publisher.resize(64, 0);
    publisher.extend(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB");
    let mut strangers = Vec::new();
    for (number, bytes) in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"{\"topicId\":\"newNotification\"}",
        &[0; 1_000],
        &[0xff; 1_000],
        &curve,
        &publisher,
    ]
    .into_iter()
    .enumerate()
    {
        let mut stranger = Peer::connect(&daemon);
        stranger.try_send(bytes);
        strangers.push(stranger);
        expect_alive(&daemon, &mut alice, number);
    }
    expect_no_spinning(&daemon);
    assert_eq!(daemon.count("message newNotification for user alice"), strangers.len());
}

#[test]
fn an_endless_multipart_message_uses_bounded_memory() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let part = frame(1, &vec![b'x'; MAX_MESSAGE]);
    let start = daemon.status("VmHWM");
    while daemon.count("is restarted") == 0 {
        let mut peer = Peer::ready(&daemon, 1);
        for _ in 0..2_000 {
            if peer.0.write_all(&part).is_err() {
                break;
            }
        }
    }
    let line = daemon.wait_for("its input uses");
    assert!(line.contains("bytes of memory, the limit is"), "{line}");
    let grown = daemon.status("VmHWM") - start;
    assert!(grown < MAX_ZEROMQ, "{grown} kB");
    expect_alive(&daemon, &mut alice, 1);
    daemon.connect("bob");
    eventually("the memory is returned", || daemon.status("VmRSS") < start + 16 * 1024);
    expect_no_spinning(&daemon);
}

#[test]
fn senders_that_stay_connected_and_idle_cause_no_wake_ups() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    // Like php-fpm processes: some have sent a message, some have not sent anything yet.
    let idle: Vec<Pusher> = (0..20).map(|_| Pusher::connect(&daemon.zeromq)).collect();
    idle.iter().step_by(2).for_each(|pusher| pusher.send(&notification(1)));
    eventually("the daemon sleeps", || {
        let before = daemon.status("voluntary_ctxt_switches");
        std::thread::sleep(Duration::from_secs(2));
        daemon.status("voluntary_ctxt_switches") == before
    });
    // New messages are still noticed.
    let mut alice = alice(&daemon);
    idle[0].send(&notification(2));
    alice.expect_event(&notification(2));
}

#[test]
fn an_endless_message_with_pauses_uses_bounded_memory() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let part = frame(1, &vec![b'x'; MAX_MESSAGE]);
    let start = daemon.status("VmHWM");
    let mut peer = Peer::ready(&daemon, 1);
    // The daemon sleeps during each pause.
    for _ in 0..40 {
        for _ in 0..10 {
            peer.try_send(&part);
        }
        std::thread::sleep(Duration::from_millis(500));
        if daemon.count("is restarted") > 0 {
            break;
        }
    }
    daemon.wait_for("its input uses");
    let grown = daemon.status("VmHWM") - start;
    assert!(grown < 128 * 1024, "{grown} kB");
    expect_alive(&daemon, &mut alice, 1);
}

#[test]
fn an_oversized_message_disconnects_its_sender() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let memory = daemon.status("VmRSS");
    for length in [3 * MAX_MESSAGE as u64, u64::MAX / 2, u64::MAX] {
        let mut peer = Peer::ready(&daemon, 1);
        peer.send(&[&[2][..], &length.to_be_bytes()].concat());
        eventually("the connection is closed", || peer.0.write_all(&[b'x'; 1_000]).is_err());
        expect_alive(&daemon, &mut alice, 1);
    }
    let grown = daemon.status("VmHWM").saturating_sub(memory);
    assert!(grown < 16 * 1024, "{grown} kB");
}

#[test]
fn ten_thousand_silent_peers_do_not_block_other_peers() {
    let standin = Standin::new();
    let mut daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let (memory, descriptors) = (daemon.status("VmRSS"), daemon.descriptors());
    let mut silent = Vec::new();
    for number in 0..10_000 {
        let Ok(mut peer) = Peer::try_connect(&daemon) else {
            // While libzmq restarts, the port does not accept connections.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        // Silent from the beginning, within the greeting, or after everything except a message.
        match number % 4 {
            0 => {}
            1 => peer.try_send(&SIGNATURE[..5]),
            2 => peer.try_send(b"\x01\0"),
            _ => peer.try_send(SIGNATURE),
        }
        silent.push(peer);
        // As many as a test may hold open, and more than the daemon keeps.
        if silent.len() > 3_000 {
            silent.drain(..500);
        }
    }
    daemon.wait_for("senders, the limit is 1024");
    assert!(daemon.descriptors() < descriptors + 4 * MAX_SENDERS);
    expect_served(&daemon, &mut alice);
    daemon.connect("bob");
    drop(silent);
    eventually("all descriptors are closed", || daemon.descriptors() == descriptors);
    expect_no_spinning(&daemon);
    let grown = daemon.status("VmHWM").saturating_sub(memory);
    assert!(grown < 64 * 1024, "{grown} kB");
}

#[test]
fn a_peer_that_pings_without_reading_affects_no_other_peer() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let mut peer = Peer::ready(&daemon, 1);
    peer.0.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let memory = daemon.status("VmRSS");
    let pings = b"\x04\x17\x04PING\0\0sixteen bytes...".repeat(1_000);
    for _ in 0..1_000 {
        peer.try_send(&pings);
    }
    expect_alive(&daemon, &mut alice, 1);
    let grown = daemon.status("VmHWM").saturating_sub(memory);
    assert!(grown < 16 * 1024, "{grown} kB");
}

#[test]
fn a_burst_of_php_processes_loses_nothing() {
    let standin = Standin::new();
    let daemon = Daemon::start(&standin);
    let mut alice = alice(&daemon);
    let count = 500_usize;
    // The daemon is stopped and then finds all messages at once.
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
