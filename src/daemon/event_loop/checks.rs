//! Access checks and the self-check: what they mean for connections.

use std::rc::Rc;

use log::{error, warn};

use super::log_limiter::Cause;
use super::{Backend, Server};
use crate::daemon::checks::{CheckRunner, Context, Event};
use crate::daemon::connection::Connection;
use crate::engine::checks::check::{Check, Ticket, Urgency};
use crate::engine::checks::queue::QueueFull;
use crate::engine::connection::Phase;
use crate::engine::id::ConnId;
use crate::engine::limits::{MAX_WAITING_LOGINS, MAX_WAITING_SUBSCRIPTIONS};
use crate::engine::telemetry::stats::{End, LimitHit};
use crate::engine::time::Time;

impl Server {
    /// The check runner, and what its methods require.
    pub(super) fn checks(&mut self) -> (&mut CheckRunner, Context<'_>) {
        let context = Context {
            now: self.now,
            clock: self.clock,
            registry: self.poll.registry(),
            settings: &self.settings,
            backend: &self.backend,
            reloader: self.reloader.as_ref(),
            stats: &mut self.telemetry.stats,
        };
        (&mut self.checks, context)
    }

    pub(super) fn request_check(&mut self, ticket: Ticket, urgency: Urgency, check: Check) {
        let user = Rc::clone(&check.user);
        let requested =
            self.checks.request(self.now, ticket, urgency, check, &mut self.telemetry.stats);
        let Err(full) = requested else { return };
        if urgency == Urgency::Login {
            if self.log_limiter.should_log(Cause::QueueFull, self.now) {
                warn!(
                    "{MAX_WAITING_LOGINS} logins wait for their check by PHP. Further \
                     connections are rejected; browsers will retry. Find out why EspoCRM is slow."
                );
            }
            // Without a Close frame, so that the browser reconnects and tries again.
            return self.end(ticket.conn, End::CheckQueue);
        }
        self.telemetry.stats.hit_limit(LimitHit::UserChecks);
        self.log_delay(full, &user);
        self.hub.delay(ticket);
        self.arm(ticket.conn);
    }

    fn log_delay(&mut self, full: QueueFull, user: &str) {
        match full {
            QueueFull::ForUser if self.log_limiter.should_log(Cause::UserFull, self.now) => warn!(
                "User {user} has subscribed to so many topics at once that access checks of \
                 further ones are delayed."
            ),
            QueueFull::ForAll
                if self.log_limiter.should_log(Cause::SubscriptionsFull, self.now) =>
            {
                warn!(
                    "{MAX_WAITING_SUBSCRIPTIONS} access checks of subscriptions wait for PHP. \
                     Further ones are delayed. Find out why EspoCRM is slow, or which user \
                     subscribes to so many topics."
                );
            }
            QueueFull::ForUser | QueueFull::ForAll => {}
        }
    }

    /// Requests the checks of a connection's delayed subscriptions, as far as the queue has room.
    pub(super) fn resume_subscriptions(&mut self, id: ConnId) {
        if !self.hub.has_delayed(id) {
            return;
        }
        let Some(user) = self.hub.user(id) else { return };
        let room = self.checks.queue().room(Urgency::Subscription, user);
        self.hub.resume(id, room);
        self.carry_out();
    }

    /// Starts as many checks as may run.
    pub(super) fn start_checks(&mut self) {
        if !self.checks.queue().can_start() {
            return;
        }
        // PHP's answer is interpreted by the rules of the EspoCRM version that is on disk now.
        self.check_for_changes();
        let (checks, mut context) = self.checks();
        checks.start_due(&mut context);
    }

    /// Handles the PHP processes that have ended.
    pub(super) fn reap_children(&mut self) {
        for finished in self.checks.reap_children() {
            let (checks, mut context) = self.checks();
            match checks.handle_finished(&mut context, finished) {
                None => {}
                Some(Event::Probed(finished)) => self.finish_reload(&finished),
                Some(Event::Untrusted) => self.lock_down(),
            }
        }
        let (checks, mut context) = self.checks();
        checks.reap_workers(&mut context);
    }

    /// Schedules a self-check. No other check is started before it ends.
    pub(super) fn request_self_check(&mut self) {
        if matches!(self.backend, Backend::Espocrm(_)) {
            self.checks.request_self_check(self.now);
        }
        self.update_check_pause();
    }

    /// Pauses the check queue while a reload runs.
    pub(super) fn update_check_pause(&mut self) {
        self.checks.set_reloading(self.is_reloading());
    }

    /// When [`self_check_if_due`](Self::self_check_if_due) has something to do.
    pub(super) fn next_self_check(&self) -> Option<Time> {
        let runs_php = matches!(self.backend, Backend::Espocrm(_));
        self.checks.next_self_check().filter(|_| runs_php)
    }

    pub(super) fn self_check_if_due(&mut self) {
        if self.next_self_check().is_none_or(|at| at > self.now) {
            return;
        }
        if self.checks.rejects_clients() {
            // Without connections, nothing else detects that the settings were fixed.
            self.check_for_changes();
        }
        if !self.is_reloading() {
            let (checks, mut context) = self.checks();
            checks.start_self_check(&mut context);
        }
    }

    /// Ends all connections without a Close frame, since their access is in doubt; browsers retry
    /// until the self-check passes. New connections get 503.
    pub(super) fn lock_down(&mut self) {
        error!(
            "Self-check failed: EspoCRM accepted a random token as a login ({} command.php {}), so \
             its access checks cannot be trusted. All connections are ended and new ones rejected \
             (503) until it rejects such a token; that is checked every 10 s. Check which PHP \
             phpExecutablePath names, that EspoCRM's files are complete, and that no extension \
             replaces {}.",
            self.settings.php.value.display(),
            Check::AUTHENTICATION,
            Check::AUTHENTICATION
        );
        let open = self.conns.iter().filter(|conn| conn.state.phase() == Phase::Open);
        for id in open.map(Connection::id).collect::<Vec<_>>() {
            self.end(id, End::SelfCheck);
        }
    }
}
