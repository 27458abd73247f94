use super::Urgency::{Login, Recheck, Subscription};
use super::*;
use crate::engine::checks::verdict::Failure;
use crate::engine::id::ConnId;
use crate::engine::limits::MAX_WAITING_CHECKS;

const NOW: Time = Time::from_millis(0);

fn ticket(conn: u32, serial: u32) -> Ticket {
    Ticket { conn: ConnId::new(conn, conn), serial }
}

/// A check of a user who has no other.
fn check_of_one(number: u32) -> Check {
    Check::topic(&format!("one{number}"), Box::new([number.to_string().into()]))
}

fn check(name: &str) -> Check {
    Check::topic("u", Box::new([name.into()]))
}

fn started(queue: &mut CheckQueue) -> Option<(JobId, String)> {
    let (id, check) = queue.start(NOW)?;
    Some((id, check.arguments.join(" ")))
}

fn finish(queue: &mut CheckQueue, now: Time, id: JobId, verdict: &Verdict) -> Vec<Ticket> {
    let mut answers = Vec::new();
    queue.finish(now, id, verdict, &mut answers);
    assert!(answers.iter().all(|answer| answer.verdict == *verdict));
    answers.iter().map(|answer| answer.ticket).collect()
}

fn failed() -> Verdict {
    Verdict::Failed(Failure::TimedOut)
}

#[test]
fn identical_checks_share_one_run() {
    let mut queue = CheckQueue::new(4);
    for conn in 1..=3 {
        queue.request(NOW, ticket(conn, 1), check("a"), Subscription).unwrap();
    }
    let (a, name) = started(&mut queue).unwrap();
    assert_eq!((name.as_str(), queue.start(NOW)), ("a", None));
    queue.request(NOW, ticket(4, 1), check("a"), Subscription).unwrap();
    queue.request(NOW, ticket(4, 2), check("b"), Subscription).unwrap();
    assert_eq!(started(&mut queue).unwrap().1, "b");
    let all = (1..=4).map(|conn| ticket(conn, 1)).collect::<Vec<_>>();
    assert_eq!(finish(&mut queue, NOW, a, &Verdict::Granted), all);
    queue.request(NOW, ticket(5, 1), check("a"), Subscription).unwrap();
    assert_eq!(started(&mut queue).unwrap().1, "a");
}

#[test]
fn logins_come_first_and_the_limit_is_respected() {
    let mut queue = CheckQueue::new(2);
    for serial in 1..=3 {
        queue.request(NOW, ticket(1, serial), check(&serial.to_string()), Subscription).unwrap();
    }
    queue.request(NOW, ticket(2, 0), Check::authentication("t", "u"), Login).unwrap();
    let (first, name) = started(&mut queue).unwrap();
    assert_eq!(name, "AuthTokenCheck t u");
    assert_eq!(started(&mut queue).unwrap().1, "1");
    assert_eq!(started(&mut queue), None);
    finish(&mut queue, NOW, first, &Verdict::Denied);
    assert_eq!(started(&mut queue).unwrap().1, "2");
    assert_eq!(queue.running(), 2);
}

#[test]
fn a_canceled_check_is_not_run_unless_another_ticket_waits() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    queue.request(NOW, ticket(2, 1), check("b"), Subscription).unwrap();
    queue.request(NOW, ticket(3, 1), check("b"), Subscription).unwrap();
    queue.cancel(ticket(1, 1));
    queue.cancel(ticket(2, 1));
    queue.cancel(ticket(9, 9));
    let (b, name) = started(&mut queue).unwrap();
    assert_eq!(name, "b");
    queue.cancel(ticket(3, 1));
    assert_eq!(queue.running(), 1);
    assert_eq!(finish(&mut queue, NOW, b, &Verdict::Granted), []);
    assert!(queue.is_idle());
    assert_eq!(queue.running(), 0);
}

#[test]
fn a_recently_granted_check_is_not_run_again() {
    let mut queue = CheckQueue::new(1);
    queue.set_cache_lifetime(Duration::from_secs(3));
    let request = |queue: &mut CheckQueue, now, serial, urgency| {
        queue.request(now, ticket(1, serial), check("a"), urgency).unwrap()
    };
    assert!(!request(&mut queue, NOW, 1, Subscription));
    let (id, _) = started(&mut queue).unwrap();
    let soon = NOW.after(Duration::from_secs(2));
    finish(&mut queue, soon, id, &Verdict::Granted);
    assert!(request(&mut queue, soon, 2, Subscription) && queue.is_idle());
    assert!(!request(&mut queue, soon, 3, Recheck));
    queue.cancel(ticket(1, 3));
    // Not after unsubscribing, and not when it has expired.
    queue.forget_verdict(&check("a"));
    assert!(!request(&mut queue, soon, 4, Subscription));
    let (id, _) = started(&mut queue).unwrap();
    finish(&mut queue, soon, id, &Verdict::Granted);
    assert!(!request(&mut queue, NOW.after(Duration::from_secs(3)), 5, Subscription));
}

#[test]
fn a_check_granted_after_a_cancellation_is_not_cached() {
    let mut queue = CheckQueue::new(2);
    queue.set_cache_lifetime(Duration::from_secs(3));
    queue.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    queue.request(NOW, ticket(2, 1), check("a"), Subscription).unwrap();
    let (id, _) = started(&mut queue).unwrap();
    queue.cancel(ticket(1, 1));
    finish(&mut queue, NOW, id, &Verdict::Granted);
    assert_eq!(queue.request(NOW, ticket(1, 2), check("a"), Subscription), Ok(false));
}

#[test]
fn many_subscriptions_of_one_user_do_not_delay_others() {
    let mut queue = CheckQueue::new(usize::MAX);
    for serial in 1..500 {
        let many = Check::topic("busy", Box::new([serial.to_string().into()]));
        queue.request(NOW, ticket(1, serial), many, Subscription).unwrap();
    }
    queue
        .request(NOW, ticket(2, 1), Check::topic("b", Box::new(["b".into()])), Subscription)
        .unwrap();
    queue.request(NOW, ticket(3, 0), Check::authentication("t", "c"), Login).unwrap();
    let order: Vec<_> = (0..4).map(|_| started(&mut queue).unwrap().1).collect();
    assert_eq!(order, ["AuthTokenCheck t c", "1", "b", "2"]);
}

#[test]
fn a_recheck_becomes_urgent_when_a_subscription_joins_and_is_not_retried() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 1), check("other"), Recheck).unwrap();
    queue.request(NOW, ticket(1, 2), check("a"), Recheck).unwrap();
    queue.request(NOW, ticket(2, 1), check("a"), Subscription).unwrap();
    let (a, name) = started(&mut queue).unwrap();
    assert_eq!(name, "a");
    assert_eq!(finish(&mut queue, NOW, a, &Verdict::Granted), [ticket(1, 2), ticket(2, 1)]);
    let (other, _) = started(&mut queue).unwrap();
    assert_eq!(finish(&mut queue, NOW, other, &failed()), [ticket(1, 1)]);
    assert!(queue.is_idle());
}

#[test]
fn a_subscription_that_joins_a_running_recheck_is_retried() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 1), check("a"), Recheck).unwrap();
    let (a, _) = queue.start(NOW).unwrap();
    queue.request(NOW, ticket(2, 1), check("a"), Subscription).unwrap();
    assert_eq!(queue.urgency(a), Some(Subscription));
    assert_eq!(finish(&mut queue, NOW, a, &failed()), []);
    queue.expire(NOW.after(RETRIES[0]));
    let (a, _) = queue.start(NOW).unwrap();
    assert_eq!(finish(&mut queue, NOW, a, &Verdict::Granted), [ticket(1, 1), ticket(2, 1)]);
}

#[test]
fn rechecks_subscriptions_and_logins_take_no_room_from_each_other() {
    let fill = |queue: &mut CheckQueue, first: u32, count: usize, urgency| {
        for number in first..first + count as u32 {
            let serial = u32::from(urgency != Login);
            queue.request(NOW, ticket(number, serial), check_of_one(number), urgency).unwrap();
        }
        let serial = if urgency == Login { 0 } else { 7 };
        let one_more = queue.request(NOW, ticket(99_999, serial), check_of_one(99_999), urgency);
        assert_eq!(one_more, Err(QueueFull::ForAll));
    };
    let kinds = [
        (Subscription, MAX_WAITING_SUBSCRIPTIONS),
        (Recheck, MAX_WAITING_RECHECKS),
        (Login, MAX_WAITING_LOGINS),
    ];
    for turn in 0..kinds.len() {
        let mut queue = CheckQueue::new(0);
        let mut first = 0;
        for step in 0..kinds.len() {
            let (urgency, count) = kinds[(turn + step) % kinds.len()];
            assert!(!queue.is_full_for_logins() || (turn + step) % kinds.len() < 2);
            fill(&mut queue, first, count, urgency);
            first += count as u32;
        }
        assert_eq!(queue.waiting(), MAX_WAITING_CHECKS);
        assert!(queue.is_full_for_logins());
    }
}

#[test]
fn a_failed_check_of_a_subscription_is_retried_a_few_times() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    let mut now = NOW;
    for delay in RETRIES {
        let (id, _) = queue.start(NOW).unwrap();
        assert_eq!(finish(&mut queue, now, id, &failed()), []);
        assert_eq!((queue.start(NOW), queue.running()), (None, 0));
        now = now.after(delay);
        assert_eq!(queue.next_deadline(), Some(now));
        queue.expire(now);
    }
    let (id, _) = queue.start(NOW).unwrap();
    assert_eq!(finish(&mut queue, now, id, &failed()), [ticket(1, 1)]);
    assert!(queue.is_idle());
}

#[test]
fn a_failed_login_is_answered_at_once() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 0), Check::authentication("t", "u"), Login).unwrap();
    let (id, _) = queue.start(NOW).unwrap();
    assert_eq!(finish(&mut queue, NOW, id, &failed()), [ticket(1, 0)]);
}

#[test]
fn a_check_that_waits_for_a_retry_can_be_canceled() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    let (id, _) = queue.start(NOW).unwrap();
    finish(&mut queue, NOW, id, &failed());
    queue.cancel(ticket(1, 1));
    assert!(queue.is_idle());
    assert_eq!(queue.next_deadline(), None);
}

#[test]
fn joining_a_check_that_waits_for_a_retry_runs_it_at_once() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    for number in 2..20 {
        let (id, _) = queue.start(NOW).unwrap();
        assert_eq!(finish(&mut queue, NOW, id, &failed()), []);
        assert_eq!(queue.start(NOW), None);
        queue.request(NOW, ticket(number, 1), check("a"), Subscription).unwrap();
        assert_eq!(queue.next_deadline(), None);
    }
    let (id, _) = queue.start(NOW).unwrap();
    assert_eq!(finish(&mut queue, NOW, id, &Verdict::Granted).len(), 19);
    assert!(queue.is_idle());
}

#[test]
fn a_repeated_request_does_not_get_an_older_verdict() {
    let mut queue = CheckQueue::new(3);
    queue.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    queue.request(NOW, ticket(2, 1), check("a"), Subscription).unwrap();
    let (first, _) = queue.start(NOW).unwrap();
    queue.cancel(ticket(1, 1));
    queue.request(NOW, ticket(1, 2), check("a"), Subscription).unwrap();
    let (second, _) = queue.start(NOW).unwrap();
    assert_eq!(finish(&mut queue, NOW, first, &Verdict::Granted), [ticket(2, 1)]);
    // Others still join the second run.
    queue.request(NOW, ticket(3, 1), check("a"), Subscription).unwrap();
    assert_eq!(queue.start(NOW), None);
    let both = [ticket(1, 2), ticket(3, 1)];
    assert_eq!(finish(&mut queue, NOW, second, &Verdict::Denied), both);
    assert!(queue.is_idle());
}

#[test]
fn nothing_starts_while_paused() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 1), check("a"), Subscription).unwrap();
    queue.set_paused(true);
    assert_eq!(queue.start(NOW), None);
    queue.set_paused(false);
    assert!(queue.start(NOW).is_some());
}

#[test]
fn the_queue_is_bounded_regardless_of_cancellations() {
    let mut queue = CheckQueue::new(0);
    let count = MAX_WAITING_SUBSCRIPTIONS as u32;
    for number in 0..count {
        queue.request(NOW, ticket(number, 1), check_of_one(number), Subscription).unwrap();
    }
    assert_eq!(
        queue.request(NOW, ticket(0, 2), check_of_one(count), Subscription),
        Err(QueueFull::ForAll)
    );
    for round in 0..100_000 {
        let number = round % count;
        queue.cancel(ticket(number, 1));
        queue.request(NOW, ticket(number, 1), check_of_one(number), Subscription).unwrap();
    }
    assert_eq!(queue.waiting(), MAX_WAITING_SUBSCRIPTIONS);
    for number in 0..count {
        queue.cancel(ticket(number, 1));
    }
    assert!(queue.is_idle());
}

#[test]
fn users_with_many_requests_leave_room_for_others() {
    for users in [1, 13, 1_000] {
        let mut queue = CheckQueue::new(0);
        let request = |queue: &mut CheckQueue, user: u32, number: u32| {
            let check = Check::topic(&user.to_string(), Box::new([number.to_string().into()]));
            queue.request(NOW, ticket(user, number), check, Subscription)
        };
        let mut taken = 0;
        for number in 1..=1_200 {
            for user in 0..users {
                match request(&mut queue, user, number) {
                    Ok(_) => taken += 1,
                    Err(full) => assert_eq!(full, QueueFull::ForUser),
                }
            }
        }
        let most = MAX_WAITING_SUBSCRIPTIONS * users as usize / (SHARE_OF_USER + users as usize);
        assert!(taken <= most + users as usize, "{users}: {taken}");
        assert!(queue.room(Subscription, "another") > 0);
        assert_eq!(request(&mut queue, 5_000, 1), Ok(false));
        // Rechecks and logins have their own room.
        queue.request(NOW, ticket(0, 5_000), check("a"), Recheck).unwrap();
        let login = Check::authentication("t", "0");
        queue.request(NOW, ticket(9_999, 0), login, Login).unwrap();
        // A user with fewer waiting tickets has room again.
        queue.cancel(ticket(0, 1));
        queue.cancel(ticket(0, 2));
        assert!(queue.room(Subscription, "0") > 0);
        assert_eq!(request(&mut queue, 0, 6_000), Ok(false));
    }
}

#[test]
fn a_token_is_never_shown() {
    let mut queue = CheckQueue::new(1);
    queue.request(NOW, ticket(1, 0), Check::authentication("s3cret", "u"), Login).unwrap();
    assert!(!format!("{queue:?}").contains("s3cret"));
}
