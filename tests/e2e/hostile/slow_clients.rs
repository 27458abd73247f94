//! Clients that send so slowly that they never finish.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::support::{Client, DEADLINE, Daemon, Standin, request};
use crate::tls::{BOTH, authority, secure};

/// Sends these bytes, one per second, until the connection is closed, and returns how long that
/// took.
fn drip(stream: &mut (impl Read + Write), bytes: &[u8]) -> Duration {
    let start = Instant::now();
    for byte in bytes {
        assert!(start.elapsed() < DEADLINE, "the connection was not closed");
        let _ = stream.write_all(&[*byte]).and_then(|()| stream.flush());
        // Read until a second has passed.
        match stream.read(&mut [0; 64]) {
            Ok(0) => return start.elapsed(),
            Ok(length) => panic!("{length} bytes were received after {:?}", start.elapsed()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return start.elapsed(),
            },
        }
    }
    panic!("the connection was not closed");
}

/// All cases are in one test so that the suite waits for the deadline only once.
#[test]
fn one_byte_per_second_times_out_the_upgrade_and_the_tls_handshake() {
    let authority = authority::Authority::new();
    let (mut standin, other) = (Standin::new(), Standin::new());
    let plain = Daemon::start(&other);
    secure(&mut standin, &authority.issue("server", authority::EC));
    let daemon = Daemon::start(&standin);
    let connect = |daemon: &Daemon| {
        let tcp = TcpStream::connect(daemon.address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    };
    let name = ServerName::try_from("localhost").unwrap();
    let session = || ClientConnection::new(authority.client(BOTH), name.clone()).unwrap();
    let mut hello = Vec::new();
    session().write_tls(&mut hello).unwrap();
    let head = request("/?authToken=tok-alice&userId=alice");
    let mut alice = super::alice(&plain);
    let took = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| drip(&mut connect(&plain), head.as_bytes()));
        let handshake = scope.spawn(|| drip(&mut connect(&daemon), &hello));
        let within = scope.spawn(|| {
            let mut stream = StreamOwned::new(session(), connect(&daemon));
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock).unwrap();
            }
            drip(&mut stream, head.as_bytes())
        });
        [upgrade, handshake, within].map(|thread| thread.join().unwrap())
    });
    for took in took {
        // The deadline is 10 s, for TLS and the upgrade together.
        assert!((Duration::from_secs(9)..Duration::from_secs(30)).contains(&took), "{took:?}");
    }
    super::expect_alive(&plain, &mut alice, 1);
    Client::tcp(daemon.address);
}
