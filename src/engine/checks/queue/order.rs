//! The order in which checks run: by urgency, then round-robin among users.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use super::JobId;
use crate::engine::checks::check::Urgency;

/// Jobs that wait to be started.
#[derive(Debug, Default)]
pub(super) struct Queue {
    logins: Line,
    subscriptions: Line,
    rechecks: Line,
    /// Jobs taken so far.
    taken: u32,
}

/// The jobs of one urgency. Each user has one turn, regardless of the number of their jobs.
#[derive(Debug, Default)]
struct Line {
    turns: VecDeque<Rc<str>>,
    /// The jobs of the users who have a turn, in the order of their ids.
    jobs: HashMap<Rc<str>, BTreeSet<JobId>>,
    /// How many turns belong to users without jobs.
    empty_turns: usize,
}

/// The order of urgency is reversed for every n-th job: a flood of logins must not delay the
/// subscriptions for ever.
const REVERSED_EVERY: u32 = 8;

impl Queue {
    /// Adds a job of a user.
    pub(super) fn push(&mut self, urgency: Urgency, user: &Rc<str>, id: JobId) {
        self.line(urgency).push(user, id);
    }

    /// Takes the job that runs next.
    pub(super) fn pop(&mut self) -> Option<JobId> {
        let mut order = [Urgency::Login, Urgency::Subscription, Urgency::Recheck];
        if (self.taken + 1).is_multiple_of(REVERSED_EVERY) {
            order.reverse();
        }
        let id = order.into_iter().find_map(|urgency| self.line(urgency).pop())?;
        self.taken = self.taken.wrapping_add(1);
        Some(id)
    }

    /// Removes a job that is not to be run.
    pub(super) fn remove(&mut self, urgency: Urgency, user: &str, id: JobId) {
        self.line(urgency).remove(user, id);
    }

    /// Whether no job waits.
    pub(super) fn is_empty(&self) -> bool {
        [&self.logins, &self.subscriptions, &self.rechecks].iter().all(|line| line.is_empty())
    }

    /// All waiting jobs. Checks that the turns agree with them. For tests.
    pub(super) fn jobs(&self) -> BTreeSet<(Urgency, Rc<str>, JobId)> {
        let lines = [
            (Urgency::Login, &self.logins),
            (Urgency::Subscription, &self.subscriptions),
            (Urgency::Recheck, &self.rechecks),
        ];
        let mut all = BTreeSet::new();
        for (urgency, line) in lines {
            let users: BTreeSet<_> = line.turns.iter().collect();
            assert_eq!(users.len(), line.turns.len(), "a user has two turns");
            assert_eq!(users, line.jobs.keys().collect());
            assert_eq!(line.jobs.values().filter(|jobs| jobs.is_empty()).count(), line.empty_turns);
            for (user, jobs) in &line.jobs {
                all.extend(jobs.iter().map(|id| (urgency, Rc::clone(user), *id)));
            }
        }
        all
    }

    fn line(&mut self, urgency: Urgency) -> &mut Line {
        match urgency {
            Urgency::Login => &mut self.logins,
            Urgency::Subscription => &mut self.subscriptions,
            Urgency::Recheck => &mut self.rechecks,
        }
    }
}

impl Line {
    fn push(&mut self, user: &Rc<str>, id: JobId) {
        let jobs = match self.jobs.entry(Rc::clone(user)) {
            Entry::Occupied(entry) => {
                let jobs = entry.into_mut();
                self.empty_turns -= usize::from(jobs.is_empty());
                jobs
            }
            Entry::Vacant(entry) => {
                self.turns.push_back(Rc::clone(user));
                entry.insert(BTreeSet::new())
            }
        };
        jobs.insert(id);
    }

    fn pop(&mut self) -> Option<JobId> {
        loop {
            let user = self.turns.pop_front()?;
            let jobs = self.jobs.get_mut(&user)?;
            let id = jobs.pop_first();
            if jobs.is_empty() {
                self.jobs.remove(&user);
                self.release_memory();
            } else {
                self.turns.push_back(user);
            }
            match id {
                Some(id) => return Some(id),
                None => self.empty_turns = self.empty_turns.saturating_sub(1),
            }
        }
    }

    fn remove(&mut self, user: &str, id: JobId) {
        let Some(jobs) = self.jobs.get_mut(user) else { return };
        if !jobs.remove(&id) || !jobs.is_empty() {
            return;
        }
        self.empty_turns += 1;
        // When thousands disconnect at once, not every removal may scan all turns.
        if self.empty_turns * 2 > self.turns.len() {
            self.jobs.retain(|_, jobs| !jobs.is_empty());
            self.turns.retain(|user| self.jobs.contains_key(user));
            self.empty_turns = 0;
            self.release_memory();
        }
    }

    fn is_empty(&self) -> bool {
        self.empty_turns == self.turns.len()
    }

    /// Releases the memory of a burst.
    fn release_memory(&mut self) {
        if self.turns.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Urgency::{Login, Recheck, Subscription};
    use super::*;

    fn popped(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop()).map(|id| id.0).collect()
    }

    fn push(queue: &mut Queue, urgency: Urgency, user: &str, id: u64) {
        queue.push(urgency, &user.into(), JobId(id));
    }

    #[test]
    fn users_take_turns_and_each_users_jobs_keep_their_order() {
        let mut queue = Queue::default();
        for id in 0..4 {
            push(&mut queue, Subscription, "busy", id);
        }
        push(&mut queue, Subscription, "a", 4);
        push(&mut queue, Subscription, "b", 5);
        assert_eq!(popped(&mut queue), [0, 4, 5, 1, 2, 3]);
        assert!(queue.is_empty() && queue.subscriptions.jobs.is_empty());
    }

    #[test]
    fn urgent_jobs_come_first_but_do_not_starve_the_others() {
        let mut queue = Queue::default();
        for id in 0..20 {
            push(&mut queue, Login, &id.to_string(), id);
        }
        push(&mut queue, Subscription, "a", 100);
        push(&mut queue, Recheck, "a", 101);
        let order = popped(&mut queue);
        assert_eq!(order[..9], [0, 1, 2, 3, 4, 5, 6, 101, 7]);
        assert_eq!(order[15], 100);
        assert_eq!(order.len(), 22);
    }

    #[test]
    fn removed_jobs_are_not_run() {
        let mut queue = Queue::default();
        push(&mut queue, Recheck, "a", 1);
        push(&mut queue, Recheck, "a", 2);
        push(&mut queue, Recheck, "b", 3);
        queue.remove(Recheck, "a", JobId(1));
        queue.remove(Recheck, "b", JobId(3));
        queue.remove(Recheck, "b", JobId(3));
        queue.remove(Recheck, "unknown", JobId(2));
        assert_eq!(popped(&mut queue), [2]);
        assert!(queue.is_empty());
    }

    #[test]
    fn removed_jobs_leave_no_turns_behind() {
        let mut queue = Queue::default();
        push(&mut queue, Login, "stays", 0);
        for id in 1..1_000 {
            push(&mut queue, Login, &id.to_string(), id);
            queue.remove(Login, &id.to_string(), JobId(id));
            assert!(queue.logins.turns.len() <= 3);
        }
        push(&mut queue, Login, "999", 1_000);
        assert_eq!(popped(&mut queue), [0, 1_000]);
        let line = &queue.logins;
        assert!(queue.is_empty() && line.jobs.is_empty() && line.turns.is_empty());
        assert_eq!(line.empty_turns, 0);
    }
}
