use super::Urgency::{Authentication, Recheck, Subscription};
use super::*;
use crate::engine::checks::verdict::Failure;
use crate::engine::id::ConnId;
use crate::engine::limits::MAX_WAITING_CHECKS;

const NOW: Time = Time::from_millis(0);

fn ticket(conn: u32, serial: u32) -> Ticket {
    Ticket { conn: ConnId::new(conn, conn), serial }
}

/// Of a user who has no other.
fn check_of_one(number: u32) -> Check {
    Check::topic(&format!("one{number}"), Box::new([number.to_string().into()]))
}

fn check(name: &str) -> Check {
    Check::topic("u", Box::new([name.into()]))
}

fn started(access: &mut CheckQueue) -> Option<(JobId, String)> {
    let (id, check) = access.start(NOW)?;
    Some((id, check.arguments.join(" ")))
}

fn finish(access: &mut CheckQueue, now: Time, id: JobId, verdict: &Verdict) -> Vec<Ticket> {
    let mut answers = Vec::new();
    access.finish(now, id, verdict, &mut answers);
    assert!(answers.iter().all(|answer| answer.verdict == *verdict));
    answers.iter().map(|answer| answer.ticket).collect()
}

fn failed() -> Verdict {
    Verdict::Unchecked(Failure::TimedOut)
}

#[test]
fn identical_checks_share_one_run() {
    let mut access = CheckQueue::new(4);
    for conn in 1..=3 {
        access.request(NOW, ticket(conn, 1), check("a"), Subscription).unwrap();
    }
    let (a, name) = started(&mut access).unwrap();
    assert_eq!((name.as_str(), access.start(NOW)), ("a", None));
    access.request(NOW, ticket(4, 1), check("a"), Subscription).unwrap();
    access.request(NOW, ticket(4, 2), check("b"), Subscription).unwrap();
    assert_eq!(started(&mut access).unwrap().1, "b");
    let all = (1..=4).map(|conn| ticket(conn, 1)).collect::<Vec<_>>();
    assert_eq!(finish(&mut access, NOW, a, &Verdict::Granted), all);
    access.request(NOW, ticket(5, 1), check("a"), Subscription).unwrap();
    assert_eq!(started(&mut access).unwrap().1, "a");
}

#[test]
fn authentications_come_first_and_the_limit_holds() {
    let mut access = CheckQueue::new(2);
    for serial in 1..=3 {
        access.request(NOW, ticket(1, serial), check(&serial.to_string()), Subscription).unwrap();
    }
    access.request(NOW, ticket(2, 0), Check::authentication("t", "u"), Authentication).unwrap();
    let (first, name) = started(&mut access).unwrap();
    assert_eq!(name, "AuthTokenCheck t u");
    assert_eq!(started(&mut access).unwrap().1, "1");
    assert_eq!(started(&mut access), None);
    finish(&mut access, NOW, first, &Verdict::Denied);
    assert_eq!(started(&mut access).unwrap().1, "2");
    assert_eq!(access.running(), 2);
}

#[test]
fn a_cancelled_check_is_not_run_unless_somebody_else_waits() {
    let mut access = CheckQueue::new(1);
    access.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    access.request(NOW, ticket(2, 1), check("b"), Subscription).unwrap();
    access.request(NOW, ticket(3, 1), check("b"), Subscription).unwrap();
    access.cancel(ticket(1, 1));
    access.cancel(ticket(2, 1));
    access.cancel(ticket(9, 9));
    let (b, name) = started(&mut access).unwrap();
    assert_eq!(name, "b");
    access.cancel(ticket(3, 1));
    assert_eq!(access.running(), 1);
    assert_eq!(finish(&mut access, NOW, b, &Verdict::Granted), []);
    assert!(access.is_idle());
    assert_eq!(access.running(), 0);
}

#[test]
fn what_was_granted_a_moment_ago_is_not_asked_again() {
    let mut access = CheckQueue::new(1);
    access.set_reuse(Duration::from_secs(3));
    let ask = |access: &mut CheckQueue, now, serial, urgency| {
        access.request(now, ticket(1, serial), check("a"), urgency).unwrap()
    };
    assert!(!ask(&mut access, NOW, 1, Subscription));
    let (id, _) = started(&mut access).unwrap();
    let soon = NOW.after(Duration::from_secs(2));
    finish(&mut access, soon, id, &Verdict::Granted);
    assert!(ask(&mut access, soon, 2, Subscription) && access.is_idle());
    assert!(!ask(&mut access, soon, 3, Recheck));
    access.cancel(ticket(1, 3));
    // Not by who has unsubscribed, and not when it is too long ago.
    access.forget_verdict(&check("a"));
    assert!(!ask(&mut access, soon, 4, Subscription));
    let (id, _) = started(&mut access).unwrap();
    finish(&mut access, soon, id, &Verdict::Granted);
    assert!(!ask(&mut access, NOW.after(Duration::from_secs(3)), 5, Subscription));
}

#[test]
fn what_was_granted_while_somebody_lost_interest_is_asked_again() {
    let mut access = CheckQueue::new(2);
    access.set_reuse(Duration::from_secs(3));
    access.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    access.request(NOW, ticket(2, 1), check("a"), Subscription).unwrap();
    let (id, _) = started(&mut access).unwrap();
    access.cancel(ticket(1, 1));
    finish(&mut access, NOW, id, &Verdict::Granted);
    assert_eq!(access.request(NOW, ticket(1, 2), check("a"), Subscription), Ok(false));
}

#[test]
fn one_users_many_subscriptions_do_not_hold_up_anothers() {
    let mut access = CheckQueue::new(usize::MAX);
    for serial in 1..500 {
        let many = Check::topic("greedy", Box::new([serial.to_string().into()]));
        access.request(NOW, ticket(1, serial), many, Subscription).unwrap();
    }
    access
        .request(NOW, ticket(2, 1), Check::topic("b", Box::new(["b".into()])), Subscription)
        .unwrap();
    access.request(NOW, ticket(3, 0), Check::authentication("t", "c"), Authentication).unwrap();
    let order: Vec<_> = (0..4).map(|_| started(&mut access).unwrap().1).collect();
    assert_eq!(order, ["AuthTokenCheck t c", "1", "b", "2"]);
}

#[test]
fn a_recheck_is_hurried_when_a_tab_waits_for_its_answer_and_is_not_tried_again() {
    let mut access = CheckQueue::new(1);
    access.request(NOW, ticket(1, 1), check("other"), Recheck).unwrap();
    access.request(NOW, ticket(1, 2), check("a"), Recheck).unwrap();
    access.request(NOW, ticket(2, 1), check("a"), Subscription).unwrap();
    let (a, name) = started(&mut access).unwrap();
    assert_eq!(name, "a");
    assert_eq!(finish(&mut access, NOW, a, &Verdict::Granted), [ticket(1, 2), ticket(2, 1)]);
    let (other, _) = started(&mut access).unwrap();
    assert_eq!(finish(&mut access, NOW, other, &failed()), [ticket(1, 1)]);
    assert!(access.is_idle());
}

#[test]
fn a_subscription_that_joins_a_recheck_that_runs_is_tried_again() {
    let mut access = CheckQueue::new(1);
    access.request(NOW, ticket(1, 1), check("a"), Recheck).unwrap();
    let (a, _) = access.start(NOW).unwrap();
    access.request(NOW, ticket(2, 1), check("a"), Subscription).unwrap();
    assert_eq!(access.urgency(a), Some(Subscription));
    assert_eq!(finish(&mut access, NOW, a, &failed()), []);
    access.expire(NOW.after(RETRIES[0]));
    let (a, _) = access.start(NOW).unwrap();
    assert_eq!(finish(&mut access, NOW, a, &Verdict::Granted), [ticket(1, 1), ticket(2, 1)]);
}

#[test]
fn neither_rechecks_nor_subscriptions_nor_logins_take_room_from_each_other() {
    let fill = |access: &mut CheckQueue, first: u32, count: usize, urgency| {
        for number in first..first + count as u32 {
            let serial = u32::from(urgency != Authentication);
            access.request(NOW, ticket(number, serial), check_of_one(number), urgency).unwrap();
        }
        let serial = if urgency == Authentication { 0 } else { 7 };
        let one_more = access.request(NOW, ticket(99_999, serial), check_of_one(99_999), urgency);
        assert_eq!(one_more, Err(QueueFull::ForAll));
    };
    let kinds = [
        (Subscription, MAX_WAITING_SUBSCRIPTIONS),
        (Recheck, MAX_WAITING_RECHECKS),
        (Authentication, MAX_WAITING_LOGINS),
    ];
    for turn in 0..kinds.len() {
        let mut access = CheckQueue::new(0);
        let mut first = 0;
        for step in 0..kinds.len() {
            let (urgency, count) = kinds[(turn + step) % kinds.len()];
            assert!(!access.is_crowded() || (turn + step) % kinds.len() < 2);
            fill(&mut access, first, count, urgency);
            first += count as u32;
        }
        assert_eq!(access.waiting(), MAX_WAITING_CHECKS);
        assert!(access.is_crowded());
    }
}

#[test]
fn a_failed_subscription_is_tried_again_a_few_times() {
    let mut access = CheckQueue::new(1);
    access.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    let mut now = NOW;
    for delay in RETRIES {
        let (id, _) = access.start(NOW).unwrap();
        assert_eq!(finish(&mut access, now, id, &failed()), []);
        assert_eq!((access.start(NOW), access.running()), (None, 0));
        now = now.after(delay);
        assert_eq!(access.next_deadline(), Some(now));
        access.expire(now);
    }
    let (id, _) = access.start(NOW).unwrap();
    assert_eq!(finish(&mut access, now, id, &failed()), [ticket(1, 1)]);
    assert!(access.is_idle());
}

#[test]
fn a_failed_authentication_is_answered_at_once() {
    let mut access = CheckQueue::new(1);
    access.request(NOW, ticket(1, 0), Check::authentication("t", "u"), Authentication).unwrap();
    let (id, _) = access.start(NOW).unwrap();
    assert_eq!(finish(&mut access, NOW, id, &failed()), [ticket(1, 0)]);
}

#[test]
fn a_check_that_waits_for_another_attempt_is_cancelled() {
    let mut access = CheckQueue::new(1);
    access.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    let (id, _) = access.start(NOW).unwrap();
    finish(&mut access, NOW, id, &failed());
    access.cancel(ticket(1, 1));
    assert!(access.is_idle());
    assert_eq!(access.next_deadline(), None);
}

#[test]
fn who_joins_a_check_that_waits_for_another_attempt_has_it_run_at_once() {
    let mut access = CheckQueue::new(1);
    access.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    for number in 2..20 {
        let (id, _) = access.start(NOW).unwrap();
        assert_eq!(finish(&mut access, NOW, id, &failed()), []);
        assert_eq!(access.start(NOW), None);
        access.request(NOW, ticket(number, 1), check("a"), Subscription).unwrap();
        assert_eq!(access.next_deadline(), None);
    }
    let (id, _) = access.start(NOW).unwrap();
    assert_eq!(finish(&mut access, NOW, id, &Verdict::Granted).len(), 19);
    assert!(access.is_idle());
}

#[test]
fn who_asks_again_gets_no_answer_of_before() {
    let mut access = CheckQueue::new(3);
    access.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    access.request(NOW, ticket(2, 1), check("a"), Subscription).unwrap();
    let (first, _) = access.start(NOW).unwrap();
    access.cancel(ticket(1, 1));
    access.request(NOW, ticket(1, 2), check("a"), Subscription).unwrap();
    let (second, _) = access.start(NOW).unwrap();
    assert_eq!(finish(&mut access, NOW, first, &Verdict::Granted), [ticket(2, 1)]);
    // Which does not keep others from joining the second one.
    access.request(NOW, ticket(3, 1), check("a"), Subscription).unwrap();
    assert_eq!(access.start(NOW), None);
    let both = [ticket(1, 2), ticket(3, 1)];
    assert_eq!(finish(&mut access, NOW, second, &Verdict::Denied), both);
    assert!(access.is_idle());
}

#[test]
fn paused_nothing_starts() {
    let mut access = CheckQueue::new(1);
    access.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    access.set_paused(true);
    assert_eq!(access.start(NOW), None);
    access.set_paused(false);
    assert!(access.start(NOW).is_some());
}

#[test]
fn the_queue_is_bounded_whatever_is_cancelled() {
    let mut access = CheckQueue::new(0);
    let count = MAX_WAITING_SUBSCRIPTIONS as u32;
    for number in 0..count {
        access.request(NOW, ticket(number, 1), check_of_one(number), Subscription).unwrap();
    }
    assert_eq!(
        access.request(NOW, ticket(0, 2), check_of_one(count), Subscription),
        Err(QueueFull::ForAll)
    );
    for round in 0..100_000 {
        let number = round % count;
        access.cancel(ticket(number, 1));
        access.request(NOW, ticket(number, 1), check_of_one(number), Subscription).unwrap();
    }
    assert_eq!(access.waiting(), MAX_WAITING_SUBSCRIPTIONS);
    for number in 0..count {
        access.cancel(ticket(number, 1));
    }
    assert!(access.is_idle());
}

#[test]
fn users_who_want_all_leave_room_for_others() {
    for users in [1, 13, 1_000] {
        let mut access = CheckQueue::new(0);
        let ask = |access: &mut CheckQueue, user: u32, number: u32| {
            let check = Check::topic(&user.to_string(), Box::new([number.to_string().into()]));
            access.request(NOW, ticket(user, number), check, Subscription)
        };
        let mut taken = 0;
        for number in 1..=1_200 {
            for user in 0..users {
                match ask(&mut access, user, number) {
                    Ok(_) => taken += 1,
                    Err(full) => assert_eq!(full, QueueFull::ForUser),
                }
            }
        }
        let most = MAX_WAITING_SUBSCRIPTIONS * users as usize / (SHARE_OF_USER + users as usize);
        assert!(taken <= most + users as usize, "{users}: {taken}");
        assert!(access.room(Subscription, "another") > 0);
        assert_eq!(ask(&mut access, 5_000, 1), Ok(false));
        // Rechecks and logins have their own room.
        access.request(NOW, ticket(0, 5_000), check("a"), Recheck).unwrap();
        let login = Check::authentication("t", "0");
        access.request(NOW, ticket(9_999, 0), login, Authentication).unwrap();
        // There is room again for a user who waits for fewer.
        access.cancel(ticket(0, 1));
        access.cancel(ticket(0, 2));
        assert!(access.room(Subscription, "0") > 0);
        assert_eq!(ask(&mut access, 0, 6_000), Ok(false));
    }
}

#[test]
fn a_token_is_never_shown() {
    let mut access = CheckQueue::new(1);
    access
        .request(NOW, ticket(1, 0), Check::authentication("s3cret", "u"), Authentication)
        .unwrap();
    assert!(!format!("{access:?}").contains("s3cret"));
}
