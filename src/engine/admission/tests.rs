use super::*;
use crate::engine::connection::{Handshake, Phase};
use crate::engine::protocol::http;

const NOW: Time = Time::from_millis(1_000);

const PROXY: &str = "10.0.0.1";
const CLIENT: &str = "192.0.2.7";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(text: &str) -> ClientKey {
    ClientKey::of(address(text))
}

fn policy() -> Policy {
    Policy { connections: 100, per_address: 3, per_user: 2, ..Policy::default() }
}

fn conn(number: u32) -> Connection {
    let handshake = Handshake::new(address(CLIENT), false);
    Connection::new(ConnId::new(number, number), handshake, NOW)
}

/// Calls `f` with the parsed head of a request that has these additional headers.
fn with_head<T>(headers: &str, f: impl FnOnce(&Head<'_, '_>) -> T) -> T {
    let request = format!("GET / HTTP/1.1\r\nHost: crm\r\n{headers}\r\n");
    let mut scratch = http::no_headers();
    f(&http::parse(request.as_bytes(), &mut scratch).unwrap().unwrap())
}

#[test]
fn a_few_connections_above_the_limit_are_answered() {
    let admission = Admission::new(policy());
    let over = Limit::Connections(100);
    for (open, decision) in [
        (0, Decision::Admit),
        (99, Decision::Admit),
        (100, Decision::Reject(over)),
        (163, Decision::Reject(over)),
        (164, Decision::Drop(over)),
    ] {
        assert_eq!(admission.decide_connection(open), decision, "{open}");
    }
    assert_eq!(over.end(), End::ConnectionLimit);
}

#[test]
fn the_limit_of_an_address_counts_its_open_connections() {
    let mut admission = Admission::new(policy());
    let client = key(CLIENT);
    let mut conns: Vec<_> = (0..19).map(conn).collect();
    for (count, conn) in conns.iter_mut().enumerate() {
        let decision = admission.decide_client(client);
        let connections = u32::try_from(count).unwrap();
        let limit = Limit::Address { client, connections, limit: 3 };
        let expected = if count < 3 { Decision::Admit } else { Decision::Reject(limit) };
        assert_eq!(decision, expected);
        admission.count(conn, client);
    }
    assert!(matches!(admission.decide_client(client), Decision::Drop(Limit::Address { .. })));
    assert_eq!(admission.decide_client(key("192.0.2.8")), Decision::Admit);
    for conn in conns.iter_mut().skip(2) {
        conn.end(End::PeerClosed);
        admission.end(conn);
        // Again, without effect.
        admission.end(conn);
    }
    assert_eq!(admission.decide_client(client), Decision::Admit);
    admission.set_policy(Policy { per_address: 2, ..policy() });
    assert!(matches!(admission.decide_client(client), Decision::Reject(_)));
    admission.set_policy(Policy { per_address: 0, ..policy() });
    assert_eq!(admission.decide_client(client), Decision::Admit);
}

#[test]
fn a_connection_counts_for_one_client_at_a_time() {
    let mut admission = Admission::new(policy());
    let mut conn = conn(1);
    // For its peer, and after a reload that makes the peer a proxy, for the client that it names.
    admission.begin_handshake(conn.id(), key(PROXY), NOW);
    admission.count(&mut conn, key(PROXY));
    admission.count(&mut conn, key(CLIENT));
    admission.check_invariants(std::iter::once(&conn));
    conn.end(End::PeerClosed);
    admission.end(&mut conn);
    admission.check_invariants(std::iter::once(&conn));
    assert!(admission.addresses.count(key(PROXY)).connections == 0);
}

#[test]
fn a_login_is_rejected_at_each_limit() {
    let mut admission = Admission::new(policy());
    let free = Load { is_locked_down: false, is_queue_full: false, user: Some(("alice", 1)) };
    let conn = conn(0);
    assert_eq!(admission.decide_login(&conn, &free), Decision::Admit);
    let user = Limit::User { user: "alice", connections: 2 };
    for (load, limit, reason) in [
        (Load { is_locked_down: true, ..free }, Limit::SelfCheck, End::Untrusted),
        (Load { is_queue_full: true, ..free }, Limit::CheckQueue, End::CheckQueue),
        (Load { user: Some(("alice", 2)), ..free }, user, End::UserLimit),
    ] {
        assert_eq!(admission.decide_login(&conn, &load), Decision::Reject(limit));
        assert_eq!(limit.end(), reason);
    }
    // Without credentials it is closed cleanly, after the upgrade.
    assert_eq!(admission.decide_login(&conn, &Load { user: None, ..free }), Decision::Admit);
    admission.set_policy(Policy { per_user: 0, ..policy() });
    let many = Load { user: Some(("alice", 1_000_000)), ..free };
    assert_eq!(admission.decide_login(&conn, &many), Decision::Admit);
}

#[test]
fn the_logins_of_an_address_that_wait_are_limited() {
    let mut admission = Admission::new(policy());
    let load = Load { is_locked_down: false, is_queue_full: false, user: None };
    let mut conns: Vec<_> = (0..=MAX_LOGINS_OF_ADDRESS).map(conn).collect();
    for conn in &mut conns {
        admission.count(conn, key(CLIENT));
    }
    let (last, others) = conns.split_last_mut().unwrap();
    for conn in &mut *others {
        assert_eq!(admission.decide_login(last, &load), Decision::Admit);
        admission.begin_login(conn);
        // Again, without effect.
        admission.begin_login(conn);
    }
    let limit = Limit::Logins(key(CLIENT));
    assert_eq!(admission.decide_login(last, &load), Decision::Reject(limit));
    assert_eq!(limit.end(), End::LoginLimit);
    // Clients of a proxy that does not name them are not counted.
    assert_eq!(admission.decide_login(&conn(9_999), &load), Decision::Admit);
    admission.end_login(&mut others[0]);
    admission.end_login(&mut others[0]);
    assert_eq!(admission.decide_login(last, &load), Decision::Admit);
    admission.begin_login(last);
    assert_eq!(admission.decide_login(&others[0], &load), Decision::Reject(limit));
    // A connection that ends no longer waits.
    last.end(End::PeerClosed);
    admission.end(last);
    assert_eq!(admission.decide_login(&others[0], &load), Decision::Admit);
}

#[test]
fn a_trusted_proxy_names_its_clients() {
    let proxies = vec![PROXY.parse().unwrap()];
    let mut admission = Admission::new(Policy { trusted_proxies: proxies, ..policy() });
    let forwarded = |admission: &Admission, peer| {
        let headers = format!("X-Forwarded-For: 203.0.113.5, {CLIENT}\r\n");
        with_head(&headers, |head| admission.client_of_head(address(peer), head))
    };
    assert_eq!(admission.client_of_peer(address(PROXY)), None);
    assert_eq!(admission.client_of_peer(address("10.0.0.2")), Some(key("10.0.0.2")));
    assert_eq!(forwarded(&admission, PROXY), Some(key(CLIENT)));
    assert_eq!(forwarded(&admission, "10.0.0.2"), None);
    assert_eq!(with_head("", |head| admission.client_of_head(address(PROXY), head)), None);
    assert!(!admission.expects_proxy_header(address(PROXY)));
    // With the PROXY protocol, only its header counts.
    let policy = Policy { proxy_protocol: true, ..admission.policy.clone() };
    admission.set_policy(policy);
    assert_eq!(forwarded(&admission, PROXY), None);
    assert!(admission.expects_proxy_header(address(PROXY)));
    assert!(!admission.expects_proxy_header(address("10.0.0.2")));
}

#[test]
fn without_trusted_proxies_any_private_address_may_be_a_proxy() {
    let admission = Admission::new(policy());
    for peer in [PROXY, "127.0.0.1", "::1"] {
        assert_eq!(admission.client_of_peer(address(peer)), None, "{peer}");
    }
    assert_eq!(admission.client_of_peer(address("8.8.8.8")), Some(key("8.8.8.8")));
}

#[test]
fn only_listed_origins_are_allowed_if_any_is_listed() {
    let mut admission = Admission::new(policy());
    let allows =
        |admission: &Admission, headers| with_head(headers, |head| admission.allows_origin(head));
    assert!(allows(&admission, "") && allows(&admission, "Origin: https://evil.example\r\n"));
    let origins = vec![Origin::of("https://crm.example").unwrap()];
    admission.set_policy(Policy { origins, ..policy() });
    assert!(allows(&admission, "Origin: https://crm.example\r\n"));
    assert!(!allows(&admission, "") && !allows(&admission, "Origin: https://evil.example\r\n"));
}

#[test]
fn a_handshake_ends_with_its_connection() {
    let mut admission = Admission::new(Policy { connections: 10_000, ..policy() });
    let mut conns: Vec<_> = (0..=1_024).map(conn).collect();
    for conn in &conns {
        admission.begin_handshake(conn.id(), key(CLIENT), NOW);
    }
    assert_eq!(admission.surplus_handshake(NOW), None);
    let later = admission.next_deadline().unwrap();
    let surplus = admission.surplus_handshake(later).unwrap();
    assert_eq!((surplus.id, surplus.client), (conns[0].id(), key(CLIENT)));
    admission.check_invariants(conns.iter());
    let conn = &mut conns[0];
    conn.end(End::HandshakeLimit);
    admission.end(conn);
    assert_eq!(conn.phase(), Phase::Ended);
    assert_eq!((admission.surplus_handshake(later), admission.next_deadline()), (None, None));
    admission.check_handshakes();
}
