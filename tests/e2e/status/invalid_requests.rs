//! Invalid, slow and excessive requests: the daemon continues to serve.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use crate::support::{Control, Port, Standin, alice, ask_port, eventually, expect_alive};

/// The complete response.
fn answer(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

fn send(control: &Control, bytes: &[u8]) -> UnixStream {
    let mut stream = control.connect();
    let _ = stream.write_all(bytes);
    stream
}

#[test]
fn every_request_is_answered_or_disconnected() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    let mut alice = alice(&daemon);
    let descriptors = daemon.descriptors();
    let long = [b"GET /status HTTP/1.1\r\nCookie: ".to_vec(), vec![b'x'; 100_000]].concat();
    let mut body = b"POST /send?topic=a HTTP/1.1\r\nContent-Length: 60000\r\n\r\n".to_vec();
    body.extend_from_slice(&vec![b'x'; 1_000_000]);
    for (bytes, status) in [
        (&b"\0\0\0\0"[..], "400"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "400"),
        (b"GET /status HTTP/3.0\r\n\r\n", "400"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", "404"),
        (b"DELETE /status HTTP/1.1\r\n\r\n", "405"),
        (b"GET /kick?user=alice HTTP/1.1\r\n\r\n", "405"),
        (b"POST /kick HTTP/1.1\r\n\r\n", "400"),
        (b"POST /send?topic=a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "411"),
        (b"POST /send?topic=a HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", "413"),
        (&body, "422"),
        (&long, "431"),
    ] {
        let response = answer(send(&control, bytes));
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
    }
    // Without a request, or with an incomplete one.
    drop(control.connect());
    drop(send(&control, b"GET /sta"));
    drop(send(&control, b"GET /tail HTTP/1.1\r\n\r\n"));
    // A half-closed client still receives its response.
    let half = send(&control, b"GET /healthz HTTP/1.1\r\n\r\n");
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(answer(half).ends_with("\r\n\r\nok\n"));
    // Many requests at once.
    let pipelined = b"GET /healthz HTTP/1.1\r\n\r\n".repeat(1_000);
    assert!(answer(send(&control, &pipelined)).ends_with("\r\n\r\nok\n"));
    expect_alive(&daemon, &mut alice, 1);
    eventually("all connections are closed", || daemon.descriptors() == descriptors);
}

#[test]
fn a_hundred_slow_clients_do_not_block_others() {
    let standin = Standin::new();
    let port = Port::reserve();
    let metrics = port.address();
    let flags = ["--metrics", &metrics.to_string()];
    let (daemon, control) = Control::start(&standin, &flags);
    let mut alice = alice(&daemon);
    let descriptors = daemon.descriptors();
    let slow: Vec<_> = (0..100).map(|_| send(&control, b"GET /status HT")).collect();
    let mut silent: Vec<_> =
        (0..100).map(|_| std::net::TcpStream::connect(metrics).unwrap()).collect();
    assert_eq!(control.ask("GET", "/healthz", ""), (200, "ok\n".to_owned()));
    assert_eq!(ask_port(metrics, "GET", "/healthz"), (200, "ok\n".to_owned()));
    assert!(daemon.descriptors() <= descriptors + 16);
    expect_alive(&daemon, &mut alice, 1);
    // No client waits forever.
    for stream in slow {
        assert_eq!(answer(stream), "");
    }
    for stream in &mut silent {
        let _ = stream.read(&mut [0]);
    }
    eventually("all connections are closed", || daemon.descriptors() == descriptors);
    // Tails are not closed in favor of other requests; further tails are rejected.
    let mut tails: Vec<_> = (0..8).map(|_| send(&control, b"GET /tail HTTP/1.1\r\n\r\n")).collect();
    for tail in &mut tails {
        tail.read_exact(&mut [0; 15]).unwrap();
    }
    let response = answer(control.connect());
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(ask_port(metrics, "GET", "/healthz"), (200, "ok\n".to_owned()));
    tails.pop();
    eventually("there is room again", || {
        let mut stream = control.connect();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n");
        answer(stream).starts_with("HTTP/1.1 200 ")
    });
    expect_alive(&daemon, &mut alice, 2);
}

#[test]
fn an_unread_response_blocks_nothing() {
    let standin = Standin::new();
    let (daemon, control) = Control::start(&standin, &[]);
    let mut alice = alice(&daemon);
    for number in 0..128 {
        alice.subscribe(&format!("newNotification.{number}.{}", "x".repeat(400)));
    }
    alice.expect_silence();
    let _deaf: Vec<_> = (0..30).map(|_| send(&control, b"GET /topics HTTP/1.1\r\n\r\n")).collect();
    expect_alive(&daemon, &mut alice, 1);
    control.get("/topics");
}

#[test]
fn the_metrics_port_has_two_paths() {
    let standin = Standin::new();
    let port = Port::reserve();
    let metrics = port.address();
    let (mut daemon, control) = Control::start(&standin, &["--metrics", &metrics.to_string()]);
    daemon.wait_for(&format!("Serving metrics at http://{metrics}/metrics."));
    let (status, text) = ask_port(metrics, "GET", "/metrics");
    assert_eq!((status, text.starts_with("# HELP ")), (200, true));
    assert_eq!(ask_port(metrics, "GET", "/healthz"), (200, "ok\n".to_owned()));
    for path in ["/", "/status", "/users", "/topics", "/connections", "/tail"] {
        assert_eq!(ask_port(metrics, "GET", path).0, 404, "{path}");
    }
    for path in ["/kick?user=alice", "/send?topic=newNotification"] {
        assert_eq!(ask_port(metrics, "POST", path).0, 404, "{path}");
    }
    assert_eq!(ask_port(metrics, "POST", "/metrics").0, 405);
    assert!(control.get("/metrics").starts_with("# HELP "));
    assert_eq!(control.number("/messages/received"), 0);
    // A second daemon serves without the metrics port.
    let other = Standin::new();
    let mut second =
        crate::support::Daemon::start_with(&other, &["--metrics", &metrics.to_string()]);
    second.wait_for(&format!("Cannot serve metrics at {metrics}"));
    second.connect("bob");
}
