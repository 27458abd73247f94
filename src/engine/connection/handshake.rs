//! The request that opens a connection, while it is incomplete.

use std::net::IpAddr;

use crate::engine::limits::MAX_HEAD;

/// A request whose end has not been found yet.
#[derive(Debug)]
pub struct Handshake {
    /// Remote address of the TCP connection.
    peer: IpAddr,
    /// A PROXY protocol header precedes the request.
    expects_proxy_header: bool,
    bytes: Vec<u8>,
    /// Length of `bytes` at the latest attempt to parse them.
    parsed: usize,
}

impl Handshake {
    /// A request from `peer` with no bytes yet.
    #[must_use]
    pub fn new(peer: IpAddr, expects_proxy_header: bool) -> Self {
        Self { peer, expects_proxy_header, bytes: Vec::new(), parsed: 0 }
    }

    /// Remote address of the TCP connection.
    #[must_use]
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The bytes received so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds bytes and returns whether to parse now: at the first bytes, at the blank line, and
    /// whenever the length has doubled, so that a peer that sends byte by byte costs no more than
    /// one that sends all at once.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        // The blank line may have started in earlier bytes.
        let from = self.bytes.len().saturating_sub(2);
        self.bytes.extend_from_slice(bytes);
        let new = self.bytes.get(from..).unwrap_or_default();
        let blank = new.windows(2).any(|pair| pair == b"\n\n")
            || new.windows(3).any(|triple| triple == b"\n\r\n");
        let due = blank || self.bytes.len() >= (2 * self.parsed).min(MAX_HEAD);
        if due {
            self.parsed = self.bytes.len();
        }
        due
    }

    pub(super) fn expects_proxy_header(&self) -> bool {
        self.expects_proxy_header
    }

    /// Removes a complete PROXY header and returns the bytes after it.
    pub(super) fn skip_proxy_header(&mut self, length: usize) -> Vec<u8> {
        let bytes = self.take().bytes;
        self.expects_proxy_header = false;
        bytes.get(length..).unwrap_or_default().to_vec()
    }

    /// Takes the bytes.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.peer, self.expects_proxy_header))
    }

    /// Allocated memory in bytes.
    pub(super) fn buffered(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// How often a request in pieces of `step` bytes is parsed, and whether the last piece is.
    fn parses(request: &[u8], step: usize) -> (usize, bool) {
        let mut handshake = Handshake::new(Ipv4Addr::LOCALHOST.into(), false);
        let mut due = Vec::new();
        for piece in request.chunks(step) {
            due.push(handshake.feed(piece));
        }
        assert_eq!(handshake.bytes(), request);
        (due.iter().filter(|due| **due).count(), *due.last().unwrap())
    }

    #[test]
    fn a_request_is_parsed_when_complete_and_rarely_before() {
        for end in ["\r\n\r\n", "\n\n", "\r\n\n", "\n\r\n"] {
            let request = format!("GET / HTTP/1.1\r\nCookie: {}{end}", "x".repeat(10_000));
            for step in [1, 2, 3, 1_000, 20_000] {
                let (count, last) = parses(request.as_bytes(), step);
                assert!(last && count <= 17, "{step}: {count}");
            }
        }
    }

    #[test]
    fn the_bytes_after_a_proxy_header_are_kept() {
        let mut handshake = Handshake::new(Ipv4Addr::LOCALHOST.into(), true);
        handshake.feed(b"PROXY UNKNOWN\r\nGET");
        assert_eq!(handshake.skip_proxy_header(15), b"GET");
        assert!(handshake.bytes().is_empty() && !handshake.expects_proxy_header());
    }
}
