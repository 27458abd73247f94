//! Limits on everything that a peer can make the daemon keep, with the resulting memory.
//!
//! Each constant states its worst case, per connection unless stated otherwise. The `echo`
//! feature, which is never shipped, raises the limit of messages for a test suite.

use std::time::Duration;

/// Bytes of the head of an HTTP upgrade. EspoCRM's cookies need 1 to 2 KiB; single sign-on portals
/// add more. Kept until the upgrade is answered: 16 KiB.
pub const MAX_HEAD: usize = 16 * 1024;

/// Header lines of an HTTP upgrade; parsed on the stack (100 × 32 B), not kept.
pub const MAX_HEADERS: usize = 100;

/// File descriptors for everything except browser connections: libzmq, PHP's pipes, workers, the
/// control socket, the log. `max_connections` is reduced if the process may not open as many.
pub const RESERVED_DESCRIPTORS: u64 = 256;

/// Bytes of one WebSocket message from a browser, in one frame or in fragments; real ones have less
/// than 1 KiB. Kept while incomplete: 64 KiB of raw frame and 64 KiB of earlier fragments.
pub const MAX_CLIENT_MESSAGE: usize =
    if cfg!(feature = "echo") { 16 * 1024 * 1024 } else { 64 * 1024 };

/// Bytes of a topic, after prefix expansion. EspoCRM's longest has about 60.
pub const MAX_TOPIC: usize = 512;

/// Bytes of a token, a user id or one parameter of a topic. Real ones have 17 to 36.
pub const MAX_PARAMETER: usize = 128;

/// Subscriptions of one connection; a browser tab of EspoCRM has 2 to 6. Each costs 12 B, and up to
/// 700 B more if no other connection has that topic: 87 KiB.
pub const MAX_SUBSCRIPTIONS: usize = 128;

/// WAMP prefixes of one connection; EspoCRM's client defines none. At most
/// 16 × (128 B + 512 B + 64 B): 11 KiB.
pub const MAX_PREFIXES: usize = 16;

/// Bytes of a prefix's short name; [`MAX_TOPIC`] limits the long one.
pub const MAX_PREFIX: usize = 128;

/// Bytes in the outbound queue of one connection, on top of the kernel's buffer, including 48 B for
/// each frame. Connections share the frames of an event; 1.5 MiB is the cost of a single slow
/// reader.
///
/// A connection that keeps [`PACE`] never reaches this limit: it has a backlog of at most
/// [`MAX_BACKLOG`] when messages are received, then gets at most [`MAX_TURN`] and one more message,
/// with 128 KiB for the topics, headers and 48 B that frames add to 256 messages.
pub const MAX_OUTBOX: usize = MAX_BACKLOG + MAX_TURN + MAX_SUBMISSION + 128 * 1024;

/// The same, at two successive pings, if the connection has not read as much in between. The kernel
/// buffers 64 KiB and more before anything is queued here.
pub const MAX_OUTBOX_LASTING: usize = 128 * 1024;

/// Bytes in the outbound queue of one connection that delay further messages while it keeps
/// [`PACE`]: the messages then wait in libzmq, not in outbound queues.
pub const MAX_BACKLOG: usize = 192 * 1024;

/// Bytes of messages received in a row before everything queued is offered to the kernel.
pub const MAX_TURN: usize = 192 * 1024;

/// Bytes that a connection must read in each [`WINDOW`] to delay messages, 64 KiB/s: a slower one
/// would delay all others too much.
pub const PACE: usize = 128 * 1024;

/// How long a connection that does not read delays the others: once for each backlog. Meanwhile
/// libzmq keeps what EspoCRM sends, up to [`MAX_RECEIVE_QUEUE`] messages of each sender, even if
/// that sender has exited.
pub const WINDOW: Duration = Duration::from_secs(2);

/// Buffer memory of all connections in bytes, beyond the cost of idle ones: incomplete heads and
/// messages, queued frames (counted in full for each connection), topics, prefixes. A browser tab
/// of EspoCRM uses less than 1 KB, so ten thousand stay below 10 MB. Above half of the limit,
/// messages are delayed while any connection that keeps [`PACE`] has queued output. Above the
/// limit, the connections with the most memory are evicted, but not for their output if they keep
/// pace: together those use little more than half, and the messages of one turn, which they share.
/// Configured by `max_buffered`.
pub const MAX_BUFFERED: usize = 64 * 1024 * 1024;

/// Bytes other than output that a connection may use without being evicted while it keeps [`PACE`];
/// 40 MB for ten thousand of them.
pub const MAX_BUFFERED_AT_PACE: usize = 4 * 1024;

/// The smallest `max_buffered`: enough for one connection that uses all of its limits.
pub const MIN_BUFFERED: usize = 4 * 1024 * 1024;

/// Incomplete handshakes, not counting those that began less than [`HANDSHAKE_GRACE`] ago. Above
/// this limit the oldest handshake of the client address with the most handshakes is evicted, so
/// that a flood from one address does not affect others.
pub const MAX_HANDSHAKES: usize = 1_024;

/// How long a handshake may take before [`MAX_HANDSHAKES`] applies: thousands of browser tabs may
/// connect at the same moment, and with TLS each costs the daemon a millisecond.
pub const HANDSHAKE_GRACE: Duration = Duration::from_secs(4);

/// Incomplete handshakes of any age, if `connections` are allowed: half of them, so that a flood
/// leaves room for others. Above this limit the oldest handshake of the client address with the
/// most handshakes is evicted at once. [`MAX_BUFFERED`] counts their heads; their order costs at
/// most 300 B each, as part of [`CONNECTION`], since such a connection has no session yet.
#[must_use]
pub const fn max_new_handshakes(connections: usize) -> usize {
    if connections / 2 > MAX_HANDSHAKES { connections / 2 } else { MAX_HANDSHAKES }
}

/// Logins of one client address that wait for their check; the browser tabs of an office behind one
/// address reconnect together. Above this limit connections are rejected (503) and retry.
pub const MAX_LOGINS_OF_ADDRESS: u32 = 1_024;

/// Messages, or fragments of them, that a connection may send in one second. A browser tab sends
/// one for each subscription when it connects, and then one a minute.
pub const MAX_FRAMES_PER_SECOND: u16 = 1_000;

/// Control frames in one second. A browser answers pings and sends none itself.
pub const MAX_CONTROL_FRAMES_PER_SECOND: u16 = 100;

/// Pings during which a message may stay incomplete: between 50 and 75 s by default. Otherwise a
/// peer that sends a byte now and then would keep its memory for ever.
pub const MAX_PINGS_WHILE_INCOMPLETE: u8 = 2;

/// Bytes of one message from EspoCRM. Real ones have 60 B to a few KiB (reminders).
pub const MAX_SUBMISSION: usize = 1024 * 1024;

/// Bytes of one message that libzmq accepts. Messages longer than [`MAX_SUBMISSION`] are logged and
/// dropped; above this limit libzmq closes the sender's connection without reporting it.
pub const MAX_RECEIVED: usize = 2 * MAX_SUBMISSION;

/// Messages that libzmq queues for each connected PHP process: real ones have sent one or two. A
/// process that sends the longest messages as fast as it can makes libzmq use 32 MiB.
pub const MAX_RECEIVE_QUEUE: i32 = 16;

/// Connections to the ZeroMQ socket. EspoCRM's console commands stay connected for some
/// milliseconds, php-fpm's processes for their lifetime. Above this limit the ZeroMQ context is
/// recreated, which closes all of them.
pub const MAX_SENDERS: usize = 1_024;

/// Bytes that libzmq may use. It limits its memory by the number of messages, and does not limit
/// the parts of a message that never ends. So while any sender sends, the memory of the whole
/// process is checked ten times a second, and if it has grown by more than this beyond all that is
/// accounted for, the ZeroMQ context is recreated.
pub const MAX_ZEROMQ: usize = 64 * 1024 * 1024;

/// Nesting depth of a message from EspoCRM: the limit of PHP's own `json_encode`.
pub const MAX_DEPTH: usize = 512;

/// Logins that wait for an access check. Above this limit new connections are rejected (503) and
/// retry. Subscriptions and rechecks do not take room from logins.
pub const MAX_WAITING_LOGINS: usize = 10 * 1024;

/// Subscriptions that wait for an access check. Further ones are delayed: they cost nothing more
/// than the subscription itself, and are queued as soon as there is room.
pub const MAX_WAITING_SUBSCRIPTIONS: usize = 4 * 1024;

/// Rechecks that wait for an access check. Further ones are skipped until the user's next recheck.
pub const MAX_WAITING_RECHECKS: usize = 2 * 1024;

/// A user may take this fraction (1/n) of the free room for subscriptions, and of that for
/// rechecks. So a single user takes at most a fifth of the total, thirteen take three quarters, and
/// any number of them leave some room for others.
pub const SHARE_OF_USER: usize = 4;

/// Tickets that wait for an access check, in total. Each costs about 150 B, and at most 600 B more
/// if no other ticket waits for the same check: 12 MiB.
pub const MAX_WAITING_CHECKS: usize =
    MAX_WAITING_LOGINS + MAX_WAITING_SUBSCRIPTIONS + MAX_WAITING_RECHECKS;

/// Granted verdicts in the check cache, of at most 600 B each: 2.4 MB.
pub const MAX_CACHED_VERDICTS: usize = 4 * 1024;

/// Entity types of EspoCRM; with many extensions it has a few hundred. If there are more, unknown
/// ones are not excluded. Each costs at most [`MAX_PARAMETER`] + 32 B, twice during a reload: 0.7
/// MB.
pub const MAX_ENTITY_TYPES: usize = 2_048;

/// Bytes that a PHP process may print: a check prints 36, the probe some hundred KiB with many
/// extensions. A process that prints more is killed.
pub const MAX_CHILD_OUTPUT: usize = 1024 * 1024;

/// Bytes that an idle connection costs: its slab entry, its session, its timer, and the names of
/// its user and its token, which have at most [`MAX_PARAMETER`] bytes each.
pub const CONNECTION: usize = 1_024;

/// Bytes that TLS adds to a connection: 8 KiB of state, an incomplete incoming record and a queued
/// outgoing record of 16 KiB each.
pub const TLS_CONNECTION: usize = 40 * 1_024;

/// Bytes of a ticket if no other ticket waits for the same check.
pub const TICKET: usize = 750;

/// Bytes that the daemon itself needs: code, libraries, buffers of the event loop, the check cache.
pub const PROCESS: usize = 12 * 1024 * 1024;

/// Bytes of memory that are accounted for, in the daemon without libzmq and PHP processes: for this
/// number of `connections`, the `buffered` bytes of all of them, with or without built-in TLS, and
/// this number of tickets that wait for `checks`. `usize::MAX` on overflow.
#[must_use]
pub const fn accounted(connections: usize, tls: bool, buffered: usize, checks: usize) -> usize {
    let each = if tls { CONNECTION + TLS_CONNECTION } else { CONNECTION };
    PROCESS
        .saturating_add(connections.saturating_mul(each))
        .saturating_add(buffered)
        .saturating_add(checks.saturating_mul(TICKET))
}

/// Upper bound of the daemon's memory in bytes. `buffered` is the limit of all connections
/// together, [`MAX_BUFFERED`] by default; `children` is the number of simultaneous PHP processes.
#[must_use]
pub const fn worst_case(connections: usize, tls: bool, buffered: usize, children: usize) -> usize {
    let all = accounted(connections, tls, buffered, MAX_WAITING_CHECKS);
    all.saturating_add(MAX_ZEROMQ).saturating_add(children.saturating_mul(MAX_CHILD_OUTPUT))
}

/// From accepting a connection to the end of its handshake, including TLS.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a browser may take to answer a Close frame, or to read an HTTP error, before the TCP
/// connection is closed anyway.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

/// Unanswered pings after which a connection is considered lost.
pub const MAX_UNANSWERED_PINGS: u8 = 2;

/// Bytes of the head of a control request. Those of `curl` have 100, Prometheus's 300.
pub const MAX_CONTROL_HEAD: usize = 4 * 1024;

/// Bytes of a test message sent through the control socket.
pub const MAX_CONTROL_BODY: usize = 64 * 1024;

/// Connections to the control socket, and to the metrics port: 16 in total. Each has a request, a
/// response that was not read yet, or [`MAX_TAIL`].
pub const MAX_CONTROL: usize = 8;

/// Items of a list in a control response, of about 200 B each: 2 MB until the response is read.
pub const MAX_LISTED: usize = 10_000;

/// Users whose names the command `espocrm-websocket status` requests from EspoCRM, the first ones
/// of a list: 64 KB for the ids, and at most [`MAX_CHILD_OUTPUT`] for the names.
pub const MAX_NAMES: usize = 1_000;

/// Bytes of `tail` output that wait for a client that does not read.
pub const MAX_TAIL: usize = 64 * 1024;

/// How long a control request may take, including its response.
pub const CONTROL_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client of the control socket waits for the end of a reload. systemd waits for 90 s.
pub const RELOAD_DEADLINE: Duration = Duration::from_secs(75);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_case_of_extreme_settings_is_the_largest_number() {
        let most = usize::MAX;
        for (connections, buffered, children) in [(most, 0, 0), (0, most, 0), (0, 0, most)] {
            assert_eq!(worst_case(connections, true, buffered, children), most);
            assert_eq!(worst_case(connections, false, buffered, children), most);
        }
        assert_eq!(accounted(most, true, most, most), most);
        assert_eq!(worst_case(10_000, false, MAX_BUFFERED, 6), 175_620_096);
    }
}
