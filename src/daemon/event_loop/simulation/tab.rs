//! The model of one connection: what the server may do, and what it must write.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::browser::{Browser, Request};
use super::wire::{self, Item};
use crate::daemon::script::Number;
use crate::engine::limits::{
    CLOSE_DEADLINE, HANDSHAKE_DEADLINE, MAX_OUTBOX_LASTING, MAX_UNANSWERED_PINGS,
};
use crate::engine::time::Time;

#[allow(clippy::struct_excessive_bools, reason = "any combination is possible")]
pub(super) struct Tab {
    pub number: Number,
    pub browser: Browser,
    pub stage: Stage,
    /// Start of this stage.
    pub since: Time,
    /// It has been in [`Stage::Finishing`].
    pub is_finishing: bool,
    pub accepted: Time,
    pub over_limit: bool,
    pub is_logged_in: bool,
    pub topics: BTreeMap<&'static str, Status>,
    /// Bytes that the server has read.
    pub consumed: usize,
    /// Expected output, without pings and pongs.
    pub expected: VecDeque<Expected>,
    pub pongs: VecDeque<Vec<u8>>,
    /// Bytes that the server has written.
    pub written: usize,
    /// Bytes of these that were verified.
    pub parsed: usize,
    is_websocket: bool,
    /// The server may write nothing more.
    pub is_complete: bool,
    pub last_read: Time,
    pub pinged: Time,
    pub pings: u32,
    /// Pings and a Close frame that the browser has received and may answer.
    pub unanswered: Vec<Item>,
    /// The last fragment of a message is missing.
    pub is_fragmented: bool,
    /// No message is incomplete.
    pub is_idle: bool,
    /// Arrival time of the first part of an incomplete message, since a message was complete or a
    /// ping was sent while there was none.
    pub incomplete: Option<Time>,
    /// The same of an earlier message, if a late ping may have been queued before its end.
    pub incomplete_before_ping: Option<Time>,
    /// The second that `frames` and `control_frames` belong to.
    pub second: u64,
    pub frames: u32,
    pub control_frames: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Unaccepted,
    Upgrading,
    Open,
    /// The server has sent a Close frame.
    Closing,
    /// The server has queued its last output.
    Finishing,
    /// It must be closed by the end of the turn.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It waits for the login or for the settings.
    Pending,
    /// Its check has this ticket.
    Waiting(u64),
    Granted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Response(u16),
    Welcome,
    Text(String),
    Close(Option<u16>),
}

const SECOND: Duration = Duration::from_secs(1);

impl Tab {
    pub(super) fn new(number: Number, browser: Browser) -> Self {
        Self {
            number,
            browser,
            stage: Stage::Unaccepted,
            since: Time::default(),
            is_finishing: false,
            accepted: Time::default(),
            over_limit: false,
            is_logged_in: false,
            topics: BTreeMap::new(),
            consumed: 0,
            expected: VecDeque::new(),
            pongs: VecDeque::new(),
            written: 0,
            parsed: 0,
            is_websocket: false,
            is_complete: false,
            last_read: Time::default(),
            pinged: Time::default(),
            pings: 0,
            unanswered: Vec::new(),
            is_fragmented: false,
            is_idle: true,
            incomplete: None,
            incomplete_before_ping: None,
            second: 0,
            frames: 0,
            control_frames: 0,
        }
    }

    pub(super) fn enter(&mut self, now: Time, stage: Stage) {
        (self.stage, self.since) = (stage, now);
        self.is_finishing |= stage == Stage::Finishing;
    }

    pub(super) fn user(&self) -> &'static str {
        match &self.browser.request {
            Request::Good { user, .. } => user,
            _ => panic!("the request has no user"),
        }
    }

    pub(super) fn may_see(&self, topic: &str, user: Option<&str>) -> bool {
        self.stage == Stage::Open
            && self.is_logged_in
            && self.topics.get(topic) == Some(&Status::Granted)
            && user.is_none_or(|user| user == self.user())
    }

    /// Verifies the output. Returns an error for the first unexpected item.
    pub(super) fn verify_output(&mut self, now: Time) -> Result<(), String> {
        let kernel = Rc::clone(&self.browser.kernel);
        let kernel = kernel.borrow();
        loop {
            let rest = &kernel.outgoing[self.parsed..self.written];
            if rest.is_empty() {
                return Ok(());
            }
            if self.is_complete {
                return Err(format!("bytes after the end: {rest:?}"));
            }
            let Some((item, length)) = wire::next(rest, self.is_websocket) else { return Ok(()) };
            if !self.accepts(now, &item) {
                let expected = self.expected.front();
                return Err(format!("{item:?}, not {expected:?} or pong {:?}", self.pongs.front()));
            }
            self.parsed += length;
        }
    }

    fn accepts(&mut self, now: Time, item: &Item) -> bool {
        match item {
            // A bad request may be detected before its end.
            Item::Response(status)
                if matches!(self.stage, Stage::Upgrading | Stage::Ended)
                    && (1..self.browser.request_end).contains(&self.consumed)
                    && self.browser.request == Request::Bad(*status) =>
            {
                if self.stage == Stage::Upgrading {
                    self.enter(now, Stage::Finishing);
                }
                self.is_finishing = true;
                self.is_complete = true;
                true
            }
            Item::Response(status) => {
                let matches = self.pop(&Expected::Response(*status));
                self.is_websocket = matches;
                self.is_complete = matches && *status != 101;
                matches
            }
            Item::Text(text) => {
                let front = self.expected.front();
                let matches = match front {
                    Some(Expected::Welcome) => wire::is_welcome(text),
                    Some(Expected::Text(expected)) => expected == text,
                    _ => false,
                };
                matches && self.expected.pop_front().is_some()
            }
            Item::Close(code) => {
                let matches = self.pop(&Expected::Close(*code));
                if matches {
                    self.is_complete = true;
                    self.unanswered.push(Item::Close(*code));
                }
                matches
            }
            Item::Ping => {
                self.pinged = now;
                self.pings += 1;
                let was_blocked = self.browser.kernel.borrow().was_blocked;
                if self.is_idle {
                    let before = self.incomplete.take().or(self.incomplete_before_ping);
                    self.incomplete_before_ping = before.filter(|_| was_blocked);
                }
                self.unanswered.push(Item::Ping);
                was_blocked || self.pings <= u32::from(MAX_UNANSWERED_PINGS)
            }
            Item::Pong(payload) => {
                self.pongs.front() == Some(payload) && self.pongs.pop_front().is_some()
            }
        }
    }

    fn pop(&mut self, expected: &Expected) -> bool {
        self.expected.front() == Some(expected) && self.expected.pop_front().is_some()
    }

    /// Counts the frames of one read; returns whether there are too many.
    pub(super) fn count(&mut self, now: Time, frames: u32, control_frames: u32) -> bool {
        let second = now.as_millis() / 1_000;
        if self.second != second {
            (self.second, self.frames, self.control_frames) = (second, 0, 0);
        }
        self.frames += frames;
        self.control_frames += control_frames;
        self.frames > 1_000 || self.control_frames > 100
    }

    /// Upper bound of the expected bytes that are not written.
    fn backlog(&self) -> usize {
        let length = |expected: &Expected| match expected {
            Expected::Text(text) => text.len(),
            _ => 2,
        };
        let all = self.expected.iter().map(|expected| 48 + length(expected)).sum::<usize>();
        all + self.pongs.iter().map(|pong| 50 + pong.len()).sum::<usize>()
    }

    /// A reason why the server may end it, from timeouts and the backlog.
    pub(super) fn allowed_end(&self, now: Time, ping_interval: Duration) -> Option<&'static str> {
        let age = now.since(self.since);
        let is_long = |since: Time| now.since(since) >= 2 * ping_interval;
        match self.stage {
            Stage::Upgrading if now.since(self.accepted) >= HANDSHAKE_DEADLINE => {
                Some("handshake timeout")
            }
            Stage::Closing | Stage::Finishing if age >= CLOSE_DEADLINE => Some("close timeout"),
            Stage::Open if is_long(self.last_read) => Some("ping timeout"),
            Stage::Open
                if !self.is_idle
                    && self.incomplete_before_ping.or(self.incomplete).is_some_and(is_long) =>
            {
                Some("incomplete")
            }
            Stage::Open | Stage::Closing if self.backlog() > MAX_OUTBOX_LASTING => Some("slow"),
            // The time of the answer is unknown.
            Stage::Upgrading | Stage::Finishing
                if matches!(self.browser.request, Request::Bad(_))
                    && now.since(self.accepted) >= CLOSE_DEADLINE =>
            {
                Some("close timeout")
            }
            Stage::Ended => Some("over"),
            _ => None,
        }
    }

    /// Whether it must have ended. A timer fires at the end of its second.
    pub(super) fn is_overdue(&self, now: Time) -> bool {
        let age = now.since(self.since);
        match self.stage {
            Stage::Upgrading => {
                // The answer may have been queued at the last read and not be written yet.
                let is_bad = matches!(self.browser.request, Request::Bad(_));
                let is_answered = is_bad && now.since(self.last_read) < CLOSE_DEADLINE + SECOND;
                now.since(self.accepted) >= HANDSHAKE_DEADLINE + SECOND && !is_answered
            }
            Stage::Closing | Stage::Finishing => age >= CLOSE_DEADLINE + SECOND,
            Stage::Ended => true,
            Stage::Unaccepted | Stage::Open => false,
        }
    }
}
