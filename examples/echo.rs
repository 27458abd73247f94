//! A WebSocket server that sends each message back, made of the engine's connection and blocking
//! sockets: for tools/autobahn.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use espocrm_websocket::engine::connection::{Connection, Handshake, Input};
use espocrm_websocket::engine::id::ConnId;
use espocrm_websocket::engine::protocol::frame::SharedFrame;
use espocrm_websocket::engine::protocol::http;
use espocrm_websocket::engine::protocol::outbox::Full;
use espocrm_websocket::engine::protocol::reader::Incoming;
use espocrm_websocket::engine::time::Time;
use tungstenite::Bytes;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// The suite does not expect pings.
const PING_INTERVAL: Duration = Duration::from_secs(3_600);

fn main() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("http://{}", listener.local_addr()?);
    for tcp in listener.incoming() {
        let tcp = tcp?;
        thread::spawn(move || {
            if let Err(error) = serve(tcp) {
                eprintln!("{error}");
            }
        });
    }
    Ok(())
}

fn serve(mut tcp: TcpStream) -> io::Result<()> {
    let mut now = Time::default();
    let handshake = Handshake::new(tcp.peer_addr()?.ip(), false);
    let mut conn = Connection::new(ConnId::new(0, 0), handshake, now);
    // So small that one read never contains more frames than are allowed in a second.
    let mut buffer = [0; 4096];
    let mut incoming = Vec::new();
    loop {
        let length = tcp.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        // The suite sends faster than any browser, so each read has a second of its own.
        now = now.after(Duration::from_secs(1));
        let mut bytes = buffer.get(..length).unwrap_or_default().to_vec();
        loop {
            let input = conn.handle_input(now, &bytes, &mut incoming).map_err(too_slow)?;
            let Input::Request(request) = input else { break };
            let Some(rest) = answer(&mut conn, now, request) else { break };
            bytes = rest;
        }
        for item in incoming.drain(..) {
            match item {
                Incoming::Message(text) => conn.send(SharedFrame::text(&text)),
                Incoming::Binary(bytes) => conn.send(binary(bytes)),
                item => conn.handle_incoming(now, item).map(drop),
            }
            .map_err(too_slow)?;
            write(&mut conn, &mut tcp)?;
        }
        write(&mut conn, &mut tcp)?;
    }
}

/// Answers a request, and returns the bytes that follow it. `None` if it is not complete.
fn answer(conn: &mut Connection, now: Time, request: Handshake) -> Option<Vec<u8>> {
    let mut headers = http::no_headers();
    let upgrade = match http::parse(request.bytes(), &mut headers) {
        Ok(None) => {
            conn.resume(request);
            return None;
        }
        Ok(Some(head)) => head.upgrade().map(|upgrade| (upgrade, head.length)),
        Err(refusal) => Err(refusal),
    };
    match upgrade {
        Ok((upgrade, length)) => {
            conn.accept(now, PING_INTERVAL, &upgrade);
            request.bytes().get(length..).map(<[u8]>::to_vec)
        }
        Err(refusal) => {
            conn.refuse(now, refusal);
            None
        }
    }
}

/// Writes all output.
fn write(conn: &mut Connection, tcp: &mut TcpStream) -> io::Result<()> {
    while !conn.outbox().is_empty() {
        let mut slice = [io::IoSlice::new(&[])];
        conn.outbox().slices(&mut slice);
        let count = tcp.write_vectored(&slice)?;
        conn.outbox_mut().advance(count);
        conn.handle_written(count);
    }
    if conn.handle_all_written() {
        tcp.shutdown(std::net::Shutdown::Write)?;
    }
    Ok(())
}

fn binary(bytes: Bytes) -> SharedFrame {
    let frame = Frame::message(bytes, OpCode::Data(Data::Binary), true);
    let mut encoded = Vec::with_capacity(frame.len());
    // Writing to a vector cannot fail.
    let _ = frame.format(&mut encoded);
    SharedFrame::encoded(encoded)
}

fn too_slow(Full: Full) -> io::Error {
    io::Error::other("the peer reads too slowly")
}
