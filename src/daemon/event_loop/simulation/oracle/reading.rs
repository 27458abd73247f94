//! The specified effects of the bytes that the server has read.

use super::super::browser::{Effect, Request, Unit};
use super::super::tab::{Expected, Stage};
use super::Oracle;
use crate::daemon::script::Number;

impl Oracle {
    pub(super) fn read(&mut self, number: Number, count: usize) {
        let now = self.now;
        let tab = self.tab(number);
        (tab.last_read, tab.pings) = (now, 0);
        tab.consumed += count;
        match tab.stage {
            Stage::Upgrading if tab.consumed >= tab.browser.request_end => self.upgrade(number),
            Stage::Open | Stage::Closing => {}
            Stage::Upgrading | Stage::Finishing => return,
            Stage::Unaccepted | Stage::Ended => panic!("{number} was read at the wrong time"),
        }
        self.read_frames(number);
    }

    fn upgrade(&mut self, number: Number) {
        let now = self.now;
        let tab = self.tab(number);
        tab.enter(now, Stage::Open);
        tab.pinged = now;
        let request = tab.browser.request.clone();
        let over_limit = tab.over_limit;
        let is_locked_down = self.self_check.is_locked_down();
        let status = match &request {
            Request::Bad(status) => *status,
            _ if over_limit || is_locked_down => 503,
            Request::Good { user, .. } if self.logged_in(user) >= self.max_per_user => 503,
            _ => 101,
        };
        self.tab(number).expected.push_back(Expected::Response(status));
        match request {
            _ if status != 101 => {
                self.tab(number).enter(now, Stage::Finishing);
                self.seen(if status == 503 { "over the limit" } else { "bad request" });
            }
            Request::Good { user, token } => {
                self.checks.request(number, None, format!("AuthTokenCheck {token} {user}"));
                self.seen("upgraded");
            }
            _ => self.close(number, 1008, "no user"),
        }
    }

    /// Processes the complete frames.
    fn read_frames(&mut self, number: Number) {
        let now = self.now;
        let tab = self.tab(number);
        if tab.stage == Stage::Finishing {
            return;
        }
        let was_closing = tab.stage == Stage::Closing;
        let complete = tab.browser.units.iter().take_while(|unit| unit.end <= tab.consumed);
        let count = complete.count();
        let units: Vec<Unit> = tab.browser.units.drain(..count).collect();
        let control = units.iter().filter(|unit| unit.is_control).count() as u32;
        if tab.count(now, units.len() as u32 - control, control) {
            if tab.stage == Stage::Open {
                self.close(number, 1008, "flooded");
            }
            return;
        }
        let mut pongs = Vec::new();
        let end = units.last().map_or(0, |unit| unit.end);
        for Unit { is_control, effect, .. } in units {
            let tab = self.tab(number);
            if !is_control {
                tab.is_fragmented = effect == Effect::Nothing;
            }
            match effect {
                _ if tab.stage == Stage::Ended => return,
                Effect::Ping(payload) => pongs.push(payload),
                Effect::Close(code) => {
                    self.pong(number, std::mem::take(&mut pongs));
                    self.closed(number, code);
                }
                Effect::Violation(_) if was_closing => self.finish(number),
                Effect::Violation(code) => {
                    self.pong(number, std::mem::take(&mut pongs));
                    if self.tab(number).stage == Stage::Open {
                        self.close(number, code, "protocol violation");
                    }
                    self.finish(number);
                }
                Effect::Nothing => {}
                _ if was_closing => {}
                message => {
                    (tab.incomplete, tab.incomplete_before_ping) = (None, None);
                    if tab.stage == Stage::Open {
                        self.pong(number, std::mem::take(&mut pongs));
                        self.message(number, &message);
                    }
                    self.carry_out();
                }
            }
        }
        self.pong(number, pongs);
        let tab = self.tab(number);
        tab.is_idle = tab.consumed == end.max(tab.browser.request_end) && !tab.is_fragmented;
        if !tab.is_idle {
            tab.incomplete.get_or_insert(now);
        }
    }

    fn pong(&mut self, number: Number, pongs: Vec<Vec<u8>>) {
        let tab = self.tab(number);
        if tab.stage == Stage::Open {
            tab.pongs.extend(pongs);
        }
    }

    fn message(&mut self, number: Number, message: &Effect) {
        match message {
            Effect::Subscribe(topic) => {
                self.expect_file_check();
                self.subscribe(number, topic);
            }
            Effect::Unsubscribe(topic) => {
                self.tab(number).topics.remove(topic);
                self.checks.cancel(|it| it.tab == number && it.topic == Some(topic));
            }
            Effect::Call => {
                let error = "[4,\"id\",\"proc\",\"You are not allowed to make calls\"]".to_owned();
                self.tab(number).expected.push_back(Expected::Text(error));
                self.close(number, 1008, "RPC call");
            }
            Effect::Publish => self.close(number, 1008, "published"),
            Effect::Malformed => self.close(number, 1007, "malformed"),
            _ => {}
        }
    }

    /// The browser has sent a Close frame.
    fn closed(&mut self, number: Number, code: Option<u16>) {
        let tab = self.tab(number);
        if tab.stage == Stage::Open {
            tab.expected.push_back(Expected::Close(code));
            self.seen("closed by the browser");
        }
        self.finish(number);
    }
}
