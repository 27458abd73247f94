//! Invariants that hold whenever the server waits, some of them at any time.

use std::time::Duration;

use super::oracle::Oracle;
use super::tab::Stage;
use super::{EventSource, Server};
use crate::engine::connection::Phase;
use crate::engine::limits::{CLOSE_DEADLINE, HANDSHAKE_DEADLINE};

/// Checks the server's lists and sums.
pub(super) fn check_lists(server: &mut Server) {
    // Some of the turns are enough: this takes most of the time.
    if server.telemetry.stats.opened.is_multiple_of(4) {
        server.hub.check_invariants();
        server.checks.check_invariants();
        server.zmq.check_invariants();
        server.admission.check_handshakes();
    }
    server.conns.check_invariants();
    let conns = server.conns.iter().map(|conn| &conn.state);
    server.admission.check_invariants(conns.clone());
    // Each connection is counted when it is accepted, and again when the reason of its end is
    // known.
    let uncounted = conns.clone().filter(|conn| !conn.is_end_reported()).count() as u64;
    let stats = &server.telemetry.stats;
    assert_eq!(stats.opened, uncounted + stats.refused() + stats.ended());
    assert!(conns.clone().all(|conn| conn.is_end_reported() || conn.phase() != Phase::Ended));
}

/// Checks a server that has finished its work and would wait this long.
pub(super) fn check_settled(server: &mut Server, oracle: &Oracle, wait: Option<Duration>) {
    check_lists(server);
    assert!(server.conns.is_settled() && !server.checks.has_answers());
    assert_eq!(server.conns.len(), oracle.open());
    assert_eq!(server.checks.queue().running(), oracle.running.len());
    let reloads = &oracle.reloads;
    assert_eq!(server.is_reloading(), reloads.is_running);
    assert!(reloads.is_running || !server.systemd.is_reloading(), "a reload is not reported");
    let is_due = oracle.self_check.is_due(oracle.now) && !reloads.is_running;
    assert!(!is_due || wait == Some(Duration::ZERO), "the self-check is not started in time");
    if let Some(latest) = reloads.latest_check().filter(|_| oracle.open() > 0) {
        let wake = server.clock.now().after(wait.expect("a timeout while clients are connected"));
        let is_in_time = wake <= latest || wait == Some(Duration::ZERO);
        assert!(is_in_time, "the files are not checked in time");
    }
    // Connections found to have ended during the flush are handled in the next turn.
    if !server.hub.has_actions() {
        assert_eq!(server.checks.queue().waiting(), oracle.checks.waiting());
    }
    for tab in oracle.tabs.values().filter(|tab| tab.stage != Stage::Unaccepted) {
        let number = tab.number;
        let kernel = tab.browser.kernel.borrow();
        let source = EventSource::of(kernel.token.expect("it was registered"));
        let Some(EventSource::Connection(slot)) = source else { panic!("{source:?}") };
        let id = server.conns.id(slot).expect("it is open");
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
    assert!(server.conns.is_empty() && server.hub.is_empty() && server.checks.queue().is_idle());
    assert!(oracle.tabs.is_empty() && oracle.checks.waiting() == 0);
    assert_eq!(server.conns.buffered(), 0);
    assert!(server.conns.has_no_timers_after(oracle.now.after(Duration::from_secs(3_600))));
}
