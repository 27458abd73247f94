//! Invariants that hold whenever the server waits, some of them at any time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::oracle::Oracle;
use super::tab::Stage;
use super::{FIRST_CONN, Server};
use crate::daemon::connection::{Connection, Phase};
use crate::engine::id::ConnId;
use crate::engine::limits::{CLOSE_DEADLINE, HANDSHAKE_DEADLINE, MAX_OUTBOX};

/// Checks the server's lists and sums.
pub(super) fn check_lists(server: &mut Server) {
    // Some of the turns are enough: this takes most of the time.
    if server.stats.opened.is_multiple_of(4) {
        server.hub.check_invariants();
        server.check_queue.check_invariants();
        server.pool.check_invariants();
        server.accepting.handshakes().check_invariants();
    }
    let dirty = set(server.dirty.iter().copied());
    let unread = set(server.unread.iter().copied());
    let ended = set(server.ended.iter().copied());
    let mut buffered = 0;
    let is_handshake = |conn: &Connection| matches!(conn.phase, Phase::Upgrading(_));
    let handshakes = server.accepting.handshakes();
    let in_progress = server.conns.iter().filter(|(_, conn)| is_handshake(conn));
    assert!(in_progress.clone().all(|(_, conn)| handshakes.contains(conn.id)));
    assert_eq!(in_progress.count(), handshakes.len());
    for (slot, conn) in &mut server.conns {
        assert_eq!(conn.id.slot(), slot);
        assert_eq!(ended.contains(&slot), conn.has_ended(), "{slot} in the list of ended ones");
        if !conn.has_ended() {
            assert_eq!(dirty.contains(&conn.id), conn.dirty, "{slot} in the list of dirty ones");
            assert_eq!(unread.contains(&conn.id), conn.unread, "{slot} in the list of unread ones");
        }
        let before = conn.buffered();
        buffered += before;
        conn.update_buffered(&mut buffered);
        assert_eq!(before, conn.buffered(), "buffered bytes of {slot}");
        let outbox = conn.outbox.held();
        assert!(outbox <= MAX_OUTBOX, "the outbound queue of {slot} has {outbox} bytes");
    }
    assert_eq!(server.buffered, buffered);
    for id in server.backpressure.waiting() {
        let conn = server.conns.get(id.slot()).filter(|conn| conn.id == id);
        assert!(conn.is_some_and(|conn| !conn.outbox.is_empty()), "{id} has no backlog");
    }
    // Each connection is counted when it is accepted, and again when the reason of its end is
    // known.
    let uncounted = server.conns.iter().filter(|(_, conn)| !conn.counted).count() as u64;
    let stats = &server.stats;
    assert_eq!(stats.opened, uncounted + stats.refused() + stats.ended());
    assert!(server.conns.iter().all(|(_, conn)| conn.counted || !conn.has_ended()));
    assert!(ended.iter().all(|slot| server.conns.contains(*slot)));
}

fn set<T: Ord>(items: impl Iterator<Item = T>) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    for item in items {
        assert!(set.insert(item), "duplicate in a list");
    }
    set
}

/// Checks a server that has finished its work and would wait this long.
pub(super) fn check_settled(server: &mut Server, oracle: &Oracle, wait: Option<Duration>) {
    check_lists(server);
    assert!(server.ended.is_empty() && server.answers.is_empty());
    assert_eq!(server.conns.len(), oracle.open());
    assert_eq!(server.check_queue.running(), oracle.running.len());
    // Connections found to have ended during the flush are handled in the next turn.
    if !server.hub.has_actions() {
        assert_eq!(server.check_queue.waiting(), oracle.checks.waiting());
    }
    for tab in oracle.tabs.values().filter(|tab| tab.stage != Stage::Unaccepted) {
        let number = tab.number;
        let kernel = tab.browser.kernel.borrow();
        let slot = kernel.token.expect("it was registered").0 - FIRST_CONN;
        let id = server.conns[slot].id;
        let user = tab.is_logged_in.then(|| tab.user()).filter(|_| tab.stage == Stage::Open);
        assert_eq!(server.hub.user(id), user, "user of {number}");
        assert!(!tab.is_overdue(oracle.now), "{number} is not ended: {:?}", tab.stage);
        if wait == Some(Duration::ZERO) || kernel.edge {
            continue;
        }
        assert!(!kernel.is_readable(), "{number} is not read completely");
        if !kernel.is_blocked() {
            assert!(tab.expected.is_empty(), "{number} did not get {:?}", tab.expected);
            assert!(tab.pongs.is_empty(), "{number} did not get a pong");
            assert_eq!(tab.parsed, tab.written, "{number} got a partial frame");
            let since_ping = oracle.now.since(tab.pinged);
            let is_pinged = since_ping < oracle.ping_interval + Duration::from_secs(1);
            assert!(tab.stage != Stage::Open || is_pinged, "{number} is not pinged");
        }
        let deadline = match tab.stage {
            Stage::Upgrading => {
                tab.accepted.after(HANDSHAKE_DEADLINE).max(tab.last_read.after(CLOSE_DEADLINE))
            }
            Stage::Open if kernel.was_blocked => continue,
            Stage::Open => tab.pinged.after(oracle.ping_interval),
            _ => tab.since.after(CLOSE_DEADLINE),
        };
        let wake = server.clock.now().after(wait.expect("a timeout while clients are connected"));
        assert!(
            wake <= deadline.after(Duration::from_secs(1)),
            "{number} has no timer for its deadline: {:?}",
            tab.stage
        );
    }
}

/// Checks that nothing is left after all connections have ended.
pub(super) fn check_empty(server: &mut Server, oracle: &Oracle) {
    check_lists(server);
    assert!(server.conns.is_empty() && server.hub.is_empty() && server.check_queue.is_idle());
    assert!(oracle.tabs.is_empty() && oracle.checks.waiting() == 0);
    assert!(server.buffered == 0 && server.addresses.is_empty() && server.backpressure.is_empty());
    let mut due: Vec<ConnId> = Vec::new();
    server.timers.take_due(oracle.now.after(Duration::from_secs(3_600)), &mut due);
    assert!(server.timers.is_empty());
}
