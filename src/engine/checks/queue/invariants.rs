//! Invariants of jobs, tickets and their order after every call.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::{CheckQueue, State, Waiting};
use crate::engine::checks::check::Urgency;

impl CheckQueue {
    /// Checks that jobs, tickets, counts and order agree. For tests: the cost is proportional to
    /// the number of waiting tickets.
    ///
    /// # Panics
    /// If they do not agree.
    pub fn check_invariants(&self) {
        let (mut running, mut queued, mut retries) = (0, BTreeSet::new(), BTreeSet::new());
        let mut tickets = 0;
        for (id, job) in &self.jobs {
            match job.state {
                State::Running(_) => running += 1,
                State::Queued => {
                    queued.insert((job.urgency, Rc::clone(&job.check.user), *id));
                }
                State::Retry(at) => {
                    retries.insert((at, *id));
                }
            }
            let is_running = matches!(job.state, State::Running(_));
            assert!(is_running || !job.tickets.is_empty(), "{id:?} has no tickets");
            // No ticket joins a check that was running when one of its tickets was canceled.
            let has_run = is_running || job.failures > 0;
            assert!(has_run || self.by_check.get(&job.check) == Some(id), "{id:?} is not found");
            tickets += job.tickets.len();
            for ticket in &job.tickets {
                let known = self.by_ticket.get(ticket).map(|(id, _)| id);
                assert_eq!(known, Some(id), "{ticket:?}");
            }
        }
        assert_eq!(tickets, self.by_ticket.len());
        assert_eq!(running, self.running);
        assert_eq!(retries, self.retries);
        assert_eq!(queued, self.queue.jobs());
        assert!(self.by_check.values().all(|id| self.jobs.contains_key(id)));
        let mut waiting = Waiting::default();
        let mut by_user: HashMap<Rc<str>, Waiting> = HashMap::new();
        for (id, urgency) in self.by_ticket.values() {
            *waiting.of(*urgency) += 1;
            if *urgency != Urgency::Login
                && let Some(job) = self.jobs.get(id)
            {
                *by_user.entry(Rc::clone(&job.check.user)).or_default().of(*urgency) += 1;
            }
        }
        assert_eq!(waiting, self.waiting);
        assert_eq!(by_user, self.by_user);
        // A ticket that was admitted stays when the capacity is reduced.
        assert!(self.waiting() >= waiting.logins + waiting.subscriptions + waiting.rechecks);
    }
}
