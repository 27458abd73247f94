//! What a peer may make the daemon keep, with the memory that follows from it.
//!
//! The worst case is stated beside each constant, per connection unless it says otherwise. The
//! feature `echo`, which is never shipped, makes room for the messages of a test suite.

use std::time::Duration;

/// Bytes of an HTTP upgrade's head. EspoCRM's cookies need 1 to 2 KiB; single sign-on portals add
/// their own. Held only until the upgrade is answered: 16 KiB.
pub const MAX_HEAD: usize = 16 * 1024;

/// Header lines of an HTTP upgrade; parsed on the stack (100 × 32 B), nothing is kept.
pub const MAX_HEADERS: usize = 100;

/// File descriptors that are not those of browsers: libzmq's, the pipes of PHP, its workers, the
/// control socket, the log. `max_connections` is reduced if the process may not open as many.
pub const RESERVED_DESCRIPTORS: u64 = 256;

/// Bytes of one WebSocket message from a browser, in one frame or in fragments; real ones stay
/// under 1 KiB. Kept while incomplete: 64 KiB of raw frame and 64 KiB of earlier fragments.
pub const MAX_CLIENT_MESSAGE: usize =
    if cfg!(feature = "echo") { 16 * 1024 * 1024 } else { 64 * 1024 };

/// Bytes of a topic, after the expansion of a prefix. EspoCRM's longest is about 60.
pub const MAX_TOPIC: usize = 512;

/// Bytes of a token, a user's id or one parameter of a topic. Real ones have 17 to 36.
pub const MAX_PARAMETER: usize = 128;

/// Subscriptions of one connection; a tab of EspoCRM holds 2 to 6. Each costs 12 B, and up to
/// 700 B more if nobody else has that topic: 87 KiB.
pub const MAX_SUBSCRIPTIONS: usize = 128;

/// WAMP prefixes of one connection; EspoCRM's client defines none. At most
/// 16 × (128 B + 512 B + 64 B): 11 KiB.
pub const MAX_PREFIXES: usize = 16;

/// Bytes of a prefix's short name; the long one is bounded by [`MAX_TOPIC`].
pub const MAX_PREFIX: usize = 128;

/// Bytes that wait to be written to one connection, on top of what the kernel takes, 48 B for each
/// frame included. Events are shared by all connections that wait for them; 1.5 MiB is what a reader
/// costs that is alone in being slow.
///
/// A connection that keeps [`PACE`] never reaches it: it has a backlog of at most [`MAX_BACKLOG`]
/// when messages are taken, then get at most [`MAX_TURN`] and one message more, with 128 KiB for the
/// topics, headers and 48 B that frames add to 256 messages.
pub const MAX_OUTBOX: usize = MAX_BACKLOG + MAX_TURN + MAX_SUBMISSION + 128 * 1024;

/// The same, for two pings in a row, between which the connection has not taken as much. The kernel
/// takes 64 KiB and more before anything waits here.
pub const MAX_OUTBOX_LASTING: usize = 128 * 1024;

/// Bytes that wait for one connection and hold further messages back, for as long as it keeps
/// [`PACE`]: they wait in libzmq then, not in outboxes.
pub const MAX_BACKLOG: usize = 192 * 1024;

/// Bytes of messages after which none are taken before everything has been offered to the kernel.
pub const MAX_TURN: usize = 192 * 1024;

/// Bytes that a connection must take in each [`WINDOW`] to hold messages back, 64 KiB/s: a slower one
/// would delay all others too much.
pub const PACE: usize = 128 * 1024;

/// How long a connection that does not read delays the others: once for each backlog. Meanwhile
/// libzmq keeps what EspoCRM sends, up to [`MAX_RECEIVE_QUEUE`] messages of each sender, also of
/// those that have ended.
pub const WINDOW: Duration = Duration::from_secs(2);

/// Bytes that all connections hold together, beyond what each costs while it is idle: heads and
/// messages that are incomplete, frames that wait to be written (counted in full for each that
/// waits for them), topics, prefixes. A tab of EspoCRM holds under 1 KB, so that ten thousand stay
/// below 10 MB. Past half of it messages are held back while any connection that keeps [`PACE`] has
/// something waiting. Past it those are ended that hold the most, but not for output those that keep
/// pace: together they hold little more than half, and one turn's messages, which they share. The
/// setting `max_buffered` changes it.
pub const MAX_HELD: usize = 64 * 1024 * 1024;

/// Bytes other than output that a connection may hold which is not ended for memory while it keeps
/// [`PACE`]; 40 MB for ten thousand of them.
pub const MAX_HELD_AT_PACE: usize = 4 * 1024;

/// Of these, what `max_buffered` must leave: room for one connection that takes all that it may.
pub const MIN_HELD: usize = 4 * 1024 * 1024;

/// Connections that have not completed their upgrade, those not counted that began it less than
/// [`HANDSHAKE_GRACE`] ago. Past it the oldest one of the client address that has the most is ended, so
/// that a flood from one address does not affect others.
pub const MAX_HANDSHAKES: usize = 1_024;

/// How long a handshake may take before [`MAX_HANDSHAKES`] applies: thousands of tabs may connect at the
/// same moment, and with TLS each costs the daemon a millisecond.
pub const HANDSHAKE_GRACE: Duration = Duration::from_secs(4);

/// Connections that have not completed their upgrade, however recently they began it, if at most so many
/// `connections` are allowed: half of them, so that a flood leaves room for others. Past it the oldest one
/// of the client address that has the most is ended at once. Their heads are counted by [`MAX_HELD`]; the
/// order costs at most 300 B for each, which are part of [`CONNECTION`], since such a connection has no
/// session yet.
#[must_use]
pub const fn max_new_handshakes(connections: usize) -> usize {
    if connections / 2 > MAX_HANDSHAKES { connections / 2 } else { MAX_HANDSHAKES }
}

/// Logins of one client address that wait to be checked; the tabs of an office behind one address
/// come back together. Past it they are told to come back (503).
pub const MAX_LOGINS_OF_ADDRESS: u32 = 1_024;

/// Messages, or fragments of them, that a connection may send in one second. A tab sends one for
/// each subscription when it connects, and then one a minute.
pub const MAX_FRAMES_PER_SECOND: u16 = 1_000;

/// Pings, pongs and the like in one second. A browser answers ours, and sends none by itself.
pub const MAX_CONTROL_FRAMES_PER_SECOND: u16 = 100;

/// Pings for which a message may stay incomplete: between 50 and 75 s by default. A peer that sends
/// a byte now and then would hold its memory for ever.
pub const MAX_PINGS_WHILE_INCOMPLETE: u8 = 2;

/// Bytes of one message of EspoCRM. Real ones have 60 B to a few KiB (reminders).
pub const MAX_SUBMISSION: usize = 1024 * 1024;

/// Bytes of one message that libzmq takes in. What is longer than [`MAX_SUBMISSION`] is logged and
/// dropped; beyond this libzmq ends the sender's connection without a word.
pub const MAX_RECEIVED: usize = 2 * MAX_SUBMISSION;

/// Messages that libzmq keeps until they are taken, of each PHP process that is connected: real
/// ones have sent one or two. One that sends the longest as fast as it can makes it hold 32 MiB.
pub const MAX_RECEIVE_QUEUE: i32 = 16;

/// PHP processes, or others, that are connected to the ZeroMQ socket at a time. Those of EspoCRM's
/// command line stay for some milliseconds, php-fpm's as long as the process. Past it libzmq is begun anew, which ends them all.
pub const MAX_SENDERS: usize = 1_024;

/// Bytes that libzmq may hold. It bounds what it holds by the number of messages, and not at all
/// the parts of one that never ends; so while any sender sends the memory of the whole process is
/// checked ten times a second, and if it has grown by more than this beyond all that is accounted for,
/// libzmq is begun anew.
pub const MAX_ZEROMQ: usize = 64 * 1024 * 1024;

/// Nesting of a message of EspoCRM: what PHP's own `json_encode` allows.
pub const MAX_DEPTH: usize = 512;

/// Logins that wait for an access check. Past it new connections are rejected (503) and retry. Neither
/// subscriptions nor rechecks take room from logins.
pub const MAX_WAITING_LOGINS: usize = 10 * 1024;

/// Subscriptions that wait for an access check. Further ones are delayed: they cost nothing more than the
/// subscription itself, and are queued as soon as there is room.
pub const MAX_WAITING_SUBSCRIPTIONS: usize = 4 * 1024;

/// Rechecks that wait for an access check. Further ones are left out until the user's next recheck.
pub const MAX_WAITING_RECHECKS: usize = 2 * 1024;

/// A user may take one part in so many of the room that is left for subscriptions, and of that for
/// rechecks. So a single user takes at most a fifth of all, thirteen take three quarters, and any number of
/// them leave some room for others.
pub const SHARE_OF_USER: usize = 4;

/// Tickets that wait for an access check, in all. Each costs about 150 B, and at most 600 B more if no
/// other ticket waits for that check: 12 MiB.
pub const MAX_WAITING_CHECKS: usize =
    MAX_WAITING_LOGINS + MAX_WAITING_SUBSCRIPTIONS + MAX_WAITING_RECHECKS;

/// Verdicts that are remembered for a few seconds, of at most 600 B each: 2.4 MB.
pub const MAX_RECENT_VERDICTS: usize = 4 * 1024;

/// Entity types of EspoCRM; with many extensions it has a few hundred. With more than that, unknown ones
/// are not excluded. Each costs at most [`MAX_PARAMETER`] + 32 B, twice during a reload: 0.7 MB.
pub const MAX_ENTITY_TYPES: usize = 2_048;

/// Bytes that a PHP child may print; 36 are expected of a check, some hundred KiB of the settings
/// of an EspoCRM with many extensions. Anything more ends the child.
pub const MAX_CHILD_OUTPUT: usize = 1024 * 1024;

/// Bytes that a connection costs while it is idle: its place in the slab, its session, its timer, the
/// names of its user and of its token, which have at most [`MAX_PARAMETER`] bytes each.
pub const CONNECTION: usize = 1_024;

/// Bytes that TLS adds to a connection: 8 KiB of state; a record that is incomplete, or one that waits
/// to be written, of 16 KiB each.
pub const TLS_CONNECTION: usize = 40 * 1_024;

/// Bytes of a ticket that waits for an access check nobody else waits for.
pub const TICKET: usize = 750;

/// Bytes that the daemon takes for itself: code, libraries, buffers of the loop; verdicts that are
/// remembered.
pub const PROCESS: usize = 12 * 1024 * 1024;

/// Bytes of memory that are accounted for, of the daemon without libzmq and without PHP's processes:
/// so many `connections` that hold so many bytes together, with or without our own TLS, and so many
/// tickets that wait for access `checks`. It is `usize::MAX` if that is more than can be counted.
#[must_use]
pub const fn accounted(connections: usize, tls: bool, held: usize, checks: usize) -> usize {
    let each = if tls { CONNECTION + TLS_CONNECTION } else { CONNECTION };
    PROCESS
        .saturating_add(connections.saturating_mul(each))
        .saturating_add(held)
        .saturating_add(checks.saturating_mul(TICKET))
}

/// Bytes of memory that the daemon takes at most. `held`: bytes that connections may hold together,
/// [`MAX_HELD`] by default; `children`: PHP processes at a time.
#[must_use]
pub const fn worst_case(connections: usize, tls: bool, held: usize, children: usize) -> usize {
    let all = accounted(connections, tls, held, MAX_WAITING_CHECKS);
    all.saturating_add(MAX_ZEROMQ).saturating_add(children.saturating_mul(MAX_CHILD_OUTPUT))
}

/// From accepting a connection to the end of its upgrade, TLS included.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a browser may take to answer our Close frame, or to read an HTTP error, before TCP is
/// ended anyway.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

/// Pings that may go unanswered before a connection counts as lost.
pub const MAX_UNANSWERED_PINGS: u8 = 2;

/// Bytes of the head of a request at the control socket. Those of `curl` have 100, Prometheus's 300.
pub const MAX_CONTROL_HEAD: usize = 4 * 1024;

/// Bytes of a test message that is sent through it.
pub const MAX_CONTROL_BODY: usize = 64 * 1024;

/// Connections to the control socket at a time, and to the metrics' port: 16 in all. Each holds a
/// request, what waits to be read by it, or [`MAX_TAIL`].
pub const MAX_CONTROL: usize = 8;

/// Items of a list that the control socket tells, of about 200 B each: 2 MB while it is read.
pub const MAX_LISTED: usize = 10_000;

/// Users whose names `espocrm-websocket status` asks EspoCRM for, the first ones of a list. The command does
/// so, not the daemon: 64 KB for the ids, and at most [`MAX_CHILD_OUTPUT`] for the names.
pub const MAX_NAMES: usize = 1_000;

/// Bytes of lines that wait for somebody who watches messages pass, and does not read.
pub const MAX_TAIL: usize = 64 * 1024;

/// How long a request at the control socket may take, its answer included.
pub const CONTROL_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client of the control socket waits for the end of a reload. systemd waits for 90 s.
pub const RELOAD_DEADLINE: Duration = Duration::from_secs(75);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_case_of_extreme_settings_is_the_largest_number() {
        let most = usize::MAX;
        for (connections, held, children) in [(most, 0, 0), (0, most, 0), (0, 0, most)] {
            assert_eq!(worst_case(connections, true, held, children), most);
            assert_eq!(worst_case(connections, false, held, children), most);
        }
        assert_eq!(accounted(most, true, most, most), most);
        assert_eq!(worst_case(10_000, false, MAX_HELD, 6), 175_620_096);
    }
}
