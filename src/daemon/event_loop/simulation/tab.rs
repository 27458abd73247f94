//! One connection as it must be: what the server may do with it, and what it must write.

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

#[allow(clippy::struct_excessive_bools, reason = "each comes with any other")]
pub(super) struct Tab {
    pub number: Number,
    pub browser: Browser,
    pub stage: Stage,
    /// Since it is in this stage.
    pub since: Time,
    /// The server had nothing more to say, before it was over.
    pub is_finishing: bool,
    pub accepted: Time,
    pub over_limit: bool,
    pub is_logged_in: bool,
    pub topics: BTreeMap<&'static str, Status>,
    /// Bytes that the server has read.
    pub consumed: usize,
    /// What it must write next, pings and pongs aside.
    pub expected: VecDeque<Expected>,
    pub pongs: VecDeque<Vec<u8>>,
    /// Bytes that the server has written, and how many of them have been looked at.
    pub written: usize,
    pub parsed: usize,
    is_websocket: bool,
    /// Nothing may be written after that.
    pub is_complete: bool,
    pub heard: Time,
    pub pinged: Time,
    pub pings: u32,
    /// Pings and a Close frame that the browser has got and may answer.
    pub unanswered: Vec<Item>,
    /// A message has begun whose last fragment has not come.
    pub is_fragmented: bool,
    /// Since when a part of a message is there.
    pub incomplete: Option<Time>,
    /// Frames of either kind in this second.
    pub second: u64,
    pub frames: u32,
    pub control_frames: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// It waits to be accepted.
    Knocking,
    Upgrading,
    Open,
    /// The server has sent a Close frame.
    Closing,
    /// The server has nothing more to say.
    Finishing,
    /// It must be closed by the end of the turn.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It waits for the login or for the settings.
    Held,
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
            stage: Stage::Knocking,
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
            heard: Time::default(),
            pinged: Time::default(),
            pings: 0,
            unanswered: Vec::new(),
            is_fragmented: false,
            incomplete: None,
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
            _ => panic!("it has no user"),
        }
    }

    pub(super) fn may_see(&self, topic: &str, user: Option<&str>) -> bool {
        self.stage == Stage::Open
            && self.is_logged_in
            && self.topics.get(topic) == Some(&Status::Granted)
            && user.is_none_or(|user| user == self.user())
    }

    /// Looks at what was written. The first thing that was not to be written, if there is one.
    pub(super) fn look(&mut self, now: Time) -> Result<(), String> {
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
            // What is wrong with a request may be seen before its end.
            Item::Response(status)
                if matches!(self.stage, Stage::Upgrading | Stage::Over)
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
                let is_it = self.pop(&Expected::Response(*status));
                self.is_websocket = is_it;
                self.is_complete = is_it && *status != 101;
                is_it
            }
            Item::Text(text) => {
                let front = self.expected.front();
                let is_it = match front {
                    Some(Expected::Welcome) => wire::is_welcome(text),
                    Some(Expected::Text(expected)) => expected == text,
                    _ => false,
                };
                is_it && self.expected.pop_front().is_some()
            }
            Item::Close(code) => {
                let is_it = self.pop(&Expected::Close(*code));
                if is_it {
                    self.is_complete = true;
                    self.unanswered.push(Item::Close(*code));
                }
                is_it
            }
            Item::Ping => {
                self.pinged = now;
                self.pings += 1;
                self.unanswered.push(Item::Ping);
                self.browser.kernel.borrow().was_blocked
                    || self.pings <= u32::from(MAX_UNANSWERED_PINGS)
            }
            Item::Pong(payload) => {
                self.pongs.front() == Some(payload) && self.pongs.pop_front().is_some()
            }
        }
    }

    fn pop(&mut self, expected: &Expected) -> bool {
        self.expected.front() == Some(expected) && self.expected.pop_front().is_some()
    }

    /// Counts the frames of one read; whether they are too many.
    pub(super) fn count(&mut self, now: Time, frames: u32, control_frames: u32) -> bool {
        let second = now.as_millis() / 1_000;
        if self.second != second {
            (self.second, self.frames, self.control_frames) = (second, 0, 0);
        }
        self.frames += frames;
        self.control_frames += control_frames;
        self.frames > 1_000 || self.control_frames > 100
    }

    /// Bytes that were to be written and are not: not fewer than those.
    fn backlog(&self) -> usize {
        let length = |expected: &Expected| match expected {
            Expected::Text(text) => text.len(),
            _ => 2,
        };
        let all = self.expected.iter().map(|expected| 48 + length(expected)).sum::<usize>();
        all + self.pongs.iter().map(|pong| 50 + pong.len()).sum::<usize>()
    }

    /// Why the server may have ended it, of all that it does by the clock or by what waits.
    pub(super) fn excuse(&self, now: Time, ping_interval: Duration) -> Option<&'static str> {
        let age = now.since(self.since);
        let is_long = |since: Time| now.since(since) >= 2 * ping_interval;
        match self.stage {
            Stage::Upgrading if now.since(self.accepted) >= HANDSHAKE_DEADLINE => Some("too late"),
            Stage::Closing | Stage::Finishing if age >= CLOSE_DEADLINE => Some("never ended"),
            Stage::Open if is_long(self.heard) => Some("lost"),
            Stage::Open if self.incomplete.is_some_and(is_long) => Some("incomplete"),
            Stage::Open | Stage::Closing if self.backlog() > MAX_OUTBOX_LASTING => Some("slow"),
            // When it was answered is not known.
            Stage::Upgrading | Stage::Finishing
                if matches!(self.browser.request, Request::Bad(_))
                    && now.since(self.accepted) >= CLOSE_DEADLINE =>
            {
                Some("never ended")
            }
            Stage::Over => Some("over"),
            _ => None,
        }
    }

    /// Whether it must be gone by now. A timer fires at the end of its second.
    pub(super) fn is_overdue(&self, now: Time) -> bool {
        let age = now.since(self.since);
        match self.stage {
            Stage::Upgrading => {
                // It may have been answered when it was heard last, and that not be written.
                let is_bad = matches!(self.browser.request, Request::Bad(_));
                let is_answered = is_bad && now.since(self.heard) < CLOSE_DEADLINE + SECOND;
                now.since(self.accepted) >= HANDSHAKE_DEADLINE + SECOND && !is_answered
            }
            Stage::Closing | Stage::Finishing => age >= CLOSE_DEADLINE + SECOND,
            Stage::Over => true,
            Stage::Knocking | Stage::Open => false,
        }
    }
}
