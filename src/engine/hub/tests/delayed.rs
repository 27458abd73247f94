//! Subscriptions that are delayed because the check queue has no room.

use super::*;

const RECORDS: [&str; 3] =
    ["recordUpdate.Account.1", "recordUpdate.Account.2", "recordUpdate.Account.3"];

impl World {
    /// A world with three delayed subscriptions of one connection.
    fn delayed() -> Self {
        let mut world = Self::with(A, "ann");
        for record in RECORDS {
            world.subscribe(A, record);
            let (ticket, _) = world.check();
            assert!(!world.hub.has_delayed(A) || record != RECORDS[0]);
            world.hub.delay(ticket);
            // Its check was not run: a verdict is ignored.
            world.answer(ticket, &Verdict::Granted);
        }
        world
    }

    fn resume(&mut self, room: usize) -> Vec<Ticket> {
        self.hub.resume(A, room);
        let ticket = |action| match action {
            Action::Check(ticket, Urgency::Subscription, _) => ticket,
            other => panic!("{other:?}"),
        };
        self.actions().into_iter().map(ticket).collect()
    }
}

#[test]
fn delayed_subscriptions_are_checked_as_far_as_there_is_room() {
    let mut world = World::delayed();
    assert!(world.hub.has_delayed(A) && !world.hub.has_delayed(B));
    assert_eq!(world.resume(0), []);
    let tickets = world.resume(2);
    assert_eq!(tickets.len(), 2);
    for ticket in tickets {
        world.answer(ticket, &Verdict::Granted);
    }
    for (record, receivers) in RECORDS.iter().zip([&[A][..], &[A], &[]]) {
        assert_eq!(world.receivers(record, None), receivers);
    }
    let [ticket] = world.resume(9)[..] else { panic!() };
    assert!(!world.hub.has_delayed(A));
    world.hub.delay(ticket);
    assert!(world.hub.has_delayed(A));
    let [ticket] = world.resume(1)[..] else { panic!() };
    world.answer(ticket, &Verdict::Denied);
    assert_eq!(world.receivers(RECORDS[2], None), []);
    assert_eq!((world.resume(9), world.actions()), (vec![], vec![]));
}

#[test]
fn delayed_subscriptions_can_be_unsubscribed_and_closed() {
    let mut world = World::delayed();
    world.unsubscribe(A, RECORDS[0]);
    // It is already subscribed.
    world.subscribe(A, RECORDS[1]);
    assert_eq!(world.actions(), []);
    assert_eq!(world.resume(9).len(), 2);
    let mut world = World::delayed();
    world.hub.close(A);
    world.hub.resume(A, 9);
    assert!(!world.hub.has_delayed(A) && world.hub.is_empty());
    assert_eq!(world.actions(), []);
}

#[test]
fn a_delayed_subscription_is_checked_at_once_if_its_rule_changes() {
    let mut world = World::delayed();
    world.hub.reload(Some(changed("Other :userId :id")));
    assert_eq!(world.actions().len(), RECORDS.len());
    assert!(!world.hub.has_delayed(A));
    // An unchanged rule does not trigger a check.
    let mut world = World::delayed();
    world.hub.begin_reload();
    world.hub.reload(None);
    assert_eq!(world.actions(), []);
    assert!(world.hub.has_delayed(A));
}
