//! One browser, or a client that pretends to be one: what it does next, and whether what happens to
//! it is permitted.

use std::time::{Duration, Instant};

use mio::{Registry, Token};
use serde::Deserialize;

use crate::invalid_input::{FORBIDDEN, GARBAGE};
use crate::random::Random;
use crate::sent_log::Message;
use crate::site::{Endpoint, Site};
use crate::tab::{DENIED, Tab};
use crate::tally::Tally;
use crate::wire::{Item, Wire};

pub struct Client {
    pub site: usize,
    pub endpoint: usize,
    pub user: String,
    /// Stays until the end.
    pub is_permanent: bool,
    plan: Plan,
    stage: Stage,
    wire: Option<Wire>,
    pub tab: Tab,
    /// The time of its next action.
    wake: Instant,
    opened: Instant,
    /// Number of answered pings.
    answered: u32,
    /// Number of actions before it leaves.
    remaining_actions: usize,
    /// The last `Close` frame.
    closed: Option<u16>,
    /// It was rejected by HTTP: the rest is a page.
    rejected: bool,
    random: Random,
}

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plan {
    Stay,
    /// Views records, and leaves in one way or another.
    Visit(Leave),
    /// Views one record for minutes: long enough for a logout or a denial to take effect.
    Linger,
    /// Stops reading for a while.
    Stall,
    /// Sends many pings, but fewer than the limit.
    Pings,
    /// Sends far more at once, for which it may be closed, and leaves.
    Flood,
    /// Sends forbidden input; the index of its kind.
    Forbidden(usize),
    BadToken,
    /// Sends something other than a WebSocket request; the index of its kind.
    Garbage(usize),
    /// Sends its request too slowly.
    SlowRequest,
    /// Sends a message byte by byte, which is permitted.
    SlowMessage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leave {
    Close,
    Fin,
    Reset,
    HalfClose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Disconnected,
    /// Waits for the response and the welcome.
    Connecting {
        upgraded: bool,
    },
    Open,
    /// Does not read.
    Stalled,
    /// Reads again, if it is still connected.
    Recovering,
    /// Has done what must make the server close the connection, or has left.
    Ending,
}

/// The beginning of an event from the server.
#[derive(Deserialize)]
struct Event<'a>(u8, &'a str, Message);

/// EspoCRM's client reconnects after this time.
const RECONNECT_DELAY: Duration = Duration::from_secs(3);

/// Far more than any operation takes.
const DEADLINE: Duration = Duration::from_secs(60);

impl Client {
    pub fn new(
        site: usize,
        endpoint: usize,
        user: &str,
        is_permanent: bool,
        now: Instant,
        mut random: Random,
    ) -> Self {
        Self {
            site,
            endpoint,
            user: user.to_owned(),
            is_permanent,
            plan: Plan::Stay,
            stage: Stage::Disconnected,
            wire: None,
            tab: Tab::new(user),
            wake: now + random.millis(0, 3000),
            opened: now,
            answered: 0,
            remaining_actions: 0,
            closed: None,
            rejected: false,
            random,
        }
    }

    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// The connection is readable or writable.
    pub fn ready(&mut self, site: &Site, tally: &mut Tally, buffer: &mut [u8]) {
        if self.stage == Stage::Stalled {
            return;
        }
        let Some(wire) = &mut self.wire else { return };
        let mut ended = wire.fill(buffer);
        if self.rejected {
            wire.discard();
        }
        match wire.take(!matches!(self.stage, Stage::Connecting { upgraded: false })) {
            Ok(items) => {
                for item in items {
                    if let Err(why) = self.receive(item, site, tally) {
                        tally.violation(format!("{}: {why}", self.describe(site)));
                    }
                }
            }
            Err(why) => tally.violation(format!("{}: {why}", self.describe(site))),
        }
        ended |= self.flush().is_err();
        if ended && self.wire.is_some() {
            self.ended(site, tally);
        }
    }

    /// Performs actions that are due.
    pub fn tick(
        &mut self,
        now: Instant,
        site: &Site,
        tally: &mut Tally,
        registry: &Registry,
        token: Token,
        reconnects: bool,
    ) {
        if self.wire.is_some() && self.stage != Stage::Disconnected && self.flush().is_err() {
            // Input that the server sent before its end is read first.
            let mut buffer = [0; 4096];
            self.ready(site, tally, &mut buffer);
        }
        if self.wire.is_some() && site.active_faults.must_reject(&self.user) && self.is_open() {
            tally.violation(format!("{} is still open after the logout", self.describe(site)));
            self.leave(Leave::Fin, site);
            return;
        }
        if now < self.wake {
            return;
        }
        match self.stage {
            Stage::Disconnected if reconnects => self.connect(now, site, tally, registry, token),
            Stage::Disconnected => {}
            Stage::Connecting { .. } | Stage::Recovering | Stage::Ending => {
                tally
                    .violation(format!("{}: no activity before the deadline", self.describe(site)));
                self.disconnect(site, RECONNECT_DELAY);
            }
            Stage::Stalled => {
                self.stage = Stage::Recovering;
                self.wake = now + DEADLINE;
                let ping = self.tab.next_ping();
                self.ping(ping);
                self.ready(site, tally, &mut [0; 4096]);
            }
            Stage::Open => self.perform_action(now, site, tally),
        }
    }

    /// Closes the connection in any way.
    pub fn close(&mut self, site: &Site) {
        if self.wire.is_some() {
            self.disconnect(site, RECONNECT_DELAY);
        }
    }

    fn connect(
        &mut self,
        now: Instant,
        site: &Site,
        tally: &mut Tally,
        registry: &Registry,
        token: Token,
    ) {
        self.plan = if self.is_permanent { Plan::Stay } else { self.choose_plan(site) };
        let endpoint = &site.endpoints[self.endpoint];
        let small_buffers = self.plan == Plan::Stall;
        let connected = Wire::connect(endpoint.address, endpoint.tls.as_ref(), small_buffers);
        let registered = connected.and_then(|mut wire| {
            wire.register(registry, token)?;
            Ok(wire)
        });
        let Ok(mut wire) = registered else {
            tally.count("failed connects", 1);
            self.wake = now + RECONNECT_DELAY;
            return;
        };
        match self.plan {
            Plan::Garbage(kind) => {
                wire.send(GARBAGE[kind]);
                self.stage = Stage::Connecting { upgraded: false };
            }
            plan => {
                let token = match plan {
                    Plan::BadToken => "guessed".to_owned(),
                    _ => format!("tok-{}", self.user),
                };
                wire.upgrade(endpoint.path, &self.user, &token);
                self.stage = Stage::Connecting { upgraded: false };
            }
        }
        self.wire = Some(wire);
        self.tab = Tab::new(&self.user);
        (self.opened, self.wake) = (now, now + DEADLINE);
        (self.answered, self.closed, self.rejected) = (0, None, false);
        self.remaining_actions = self.random.between(1, 8);
        site.connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tally.opened(self.plan, endpoint.name);
    }

    fn choose_plan(&mut self, site: &Site) -> Plan {
        let direct = site.endpoints[self.endpoint].proxy.is_none();
        let plain = site.endpoints[self.endpoint].tls.is_none();
        let leave = *self.random.choose(&[Leave::Close, Leave::Fin, Leave::Reset]);
        // How a proxy handles a half-closed connection is not tested.
        let leave = if direct && self.random.below(5) == 0 { Leave::HalfClose } else { leave };
        let forbidden = self.random.below(FORBIDDEN.len());
        let garbage = self.random.below(GARBAGE.len());
        self.random.choose_weighted(&[
            (60, Plan::Visit(leave)),
            (12, Plan::Linger),
            (6, Plan::Stall),
            (5, Plan::Pings),
            (2, Plan::Flood),
            (6, Plan::Forbidden(forbidden)),
            (5, Plan::BadToken),
            (if plain && direct { 5 } else { 0 }, Plan::Garbage(garbage)),
            (if plain && direct { 3 } else { 0 }, Plan::SlowRequest),
            (5, Plan::SlowMessage),
        ])
    }

    fn receive(&mut self, item: Item, site: &Site, tally: &mut Tally) -> Result<(), String> {
        match item {
            Item::Response(101) => self.stage = Stage::Connecting { upgraded: true },
            Item::Response(status) => {
                tally.count(&format!("HTTP responses {status}"), 1);
                let endpoint = &site.endpoints[self.endpoint];
                let expected = matches!(self.plan, Plan::Garbage(_) | Plan::SlowRequest)
                    || (endpoint.proxy.is_some() && endpoint.may_have_ended(self.opened));
                (self.stage, self.rejected) = (Stage::Ending, true);
                if !expected {
                    return Err(format!("unexpected HTTP status {status}"));
                }
            }
            Item::Frame(9, payload) => {
                if let Some(wire) = &mut self.wire {
                    wire.send_frame(0x8a, &payload);
                }
            }
            Item::Frame(10, payload) => self.pong(&payload)?,
            Item::Frame(8, payload) => {
                let code =
                    payload.get(..2).map_or(0, |it| u16::from(it[0]) << 8 | u16::from(it[1]));
                self.closed = Some(code);
                let needs_answer =
                    self.stage != Stage::Ending || matches!(self.plan, Plan::Forbidden(_));
                if let Some(wire) = &mut self.wire
                    && needs_answer
                {
                    wire.send_frame(0x88, &payload[..2.min(payload.len())]);
                }
            }
            Item::Frame(1, payload) => {
                if let Ok(Event(8, topic, message)) = serde_json::from_slice(&payload) {
                    tally.delivered += 1;
                    tally.bytes += payload.len() as u64;
                    self.tab.receive(topic, &message, &site.sent_log)?;
                    let sent = || {
                        let user = message.user_id.clone();
                        let channel = crate::sent_log::Channel { topic: topic.to_owned(), user };
                        site.sent_log.sent(message.stream, &channel, message.number)
                    };
                    if topic == "recordUpdate.Account.flux"
                        && sent().is_some_and(|sent| site.active_faults.must_not_deliver(sent))
                    {
                        return Err(format!(
                            "{topic} was delivered, although access has been denied"
                        ));
                    }
                } else if payload.starts_with(b"[0,") {
                    return self.welcome(site);
                } else if !payload.starts_with(b"[4,") {
                    let text = String::from_utf8_lossy(&payload);
                    return Err(format!(
                        "unexpected message {}",
                        text.chars().take(200).collect::<String>()
                    ));
                }
            }
            Item::Frame(opcode, _) => return Err(format!("unexpected frame with opcode {opcode}")),
        }
        Ok(())
    }

    fn welcome(&mut self, site: &Site) -> Result<(), String> {
        if !matches!(self.stage, Stage::Connecting { upgraded: true }) {
            return Err("unexpected welcome".to_owned());
        }
        self.stage = Stage::Open;
        let number = self.user.bytes().map(usize::from).sum::<usize>();
        if self.plan == Plan::Stay {
            let first = number % site.records;
            for topic in [
                "newNotification".to_owned(),
                "calendarUpdate".to_owned(),
                "appParamsUpdate".to_owned(),
                format!("recordUpdate.Account.r{first}"),
                format!("streamUpdate.Account.r{}", (first + 1) % site.records),
                format!("recordUpdate.Account{DENIED}1"),
            ] {
                self.subscribe(&topic);
            }
            return Ok(());
        }
        for topic in ["newNotification", "recordUpdate.Account.flux", "soakUpdate.flux"] {
            self.subscribe(topic);
        }
        self.subscribe(&format!("recordUpdate.Account{DENIED}2"));
        if self.plan == Plan::Stall {
            self.subscribe("streamUpdate.Account.bulk");
        }
        self.wake = Instant::now() + self.random.millis(100, 3000);
        if matches!(self.plan, Plan::BadToken | Plan::SlowRequest | Plan::Garbage(_)) {
            return Err("welcomed without access".to_owned());
        }
        Ok(())
    }

    fn pong(&mut self, payload: &[u8]) -> Result<(), String> {
        let number = std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
        if number != Some(self.answered + 1) {
            return Err(format!("the pong after {} is {payload:?}", self.answered));
        }
        self.answered += 1;
        self.tab.answered(self.answered);
        if self.stage == Stage::Recovering && self.answered == self.tab.last_ping() {
            self.stage = Stage::Open;
            self.wake = Instant::now();
        }
        Ok(())
    }

    fn perform_action(&mut self, now: Instant, site: &Site, tally: &mut Tally) {
        self.wake = now + self.random.millis(200, 6000);
        match self.plan {
            Plan::Stay => {
                // EspoCRM's keep-alive.
                self.text("[7,\"\",\"\"]");
                self.wake = now + Duration::from_secs(60);
            }
            Plan::Stall => {
                if self.remaining_actions > 1 {
                    self.remaining_actions = 1;
                    self.stage = Stage::Stalled;
                    self.wake = now + self.random.millis(1000, 25_000);
                }
            }
            Plan::Pings => {
                self.pings(30);
                self.wake = now + self.random.millis(1500, 6000);
            }
            Plan::Flood => {
                self.remaining_actions = 1;
                self.pings(2000);
            }
            Plan::Forbidden(kind) => {
                let (first, payload) = FORBIDDEN[kind];
                if let Some(wire) = &mut self.wire {
                    wire.send_frame(first, payload);
                }
                self.stage = Stage::Ending;
                self.wake = now + DEADLINE;
                return;
            }
            Plan::Linger => {
                self.remaining_actions = self.remaining_actions.min(3);
                self.text("[7,\"\",\"\"]");
                self.wake = now + self.random.millis(20_000, 50_000);
            }
            _ => self.browse(site),
        }
        if self.is_permanent || self.stage == Stage::Stalled {
            return;
        }
        self.remaining_actions -= 1;
        if self.remaining_actions == 0 {
            let leave = match self.plan {
                Plan::Visit(leave) => leave,
                _ => Leave::Close,
            };
            tally.count(&format!("left by {leave:?}"), 1);
            self.leave(leave, site);
        }
    }

    /// Changes from one record to another.
    fn browse(&mut self, site: &Site) {
        let known: Vec<String> = self.tab.topics().map(str::to_owned).collect();
        let record = format!("Account.r{}", self.random.below(site.records));
        let kind = *self.random.choose(&["recordUpdate", "streamUpdate"]);
        let topic = format!("{kind}.{record}");
        match self.random.below(8) {
            0 => self.text("[7,\"\",\"\"]"),
            1 => {
                let ping = self.tab.next_ping();
                self.ping(ping);
            }
            // A repeated subscription has no effect.
            2 => {
                let again = self.random.choose(&known).clone();
                self.subscribe(&again);
            }
            3 => {
                let old = self.random.choose(&known).clone();
                self.unsubscribe(&old);
                self.subscribe(&old);
            }
            4 => self.text("[1,\"p\",\"recordUpdate.Account\"]"),
            5 => self.subscribe("soakUpdate.flux"),
            _ => {
                let leaves = known.iter().filter(|it| it.contains(".r")).take(2);
                for old in leaves.cloned().collect::<Vec<_>>() {
                    self.unsubscribe(&old);
                }
                self.subscribe(&topic);
            }
        }
    }

    fn leave(&mut self, leave: Leave, site: &Site) {
        self.stage = Stage::Ending;
        self.wake = Instant::now() + DEADLINE;
        let Some(wire) = &mut self.wire else { return };
        match leave {
            Leave::Close => wire.send_frame(0x88, &1000_u16.to_be_bytes()),
            Leave::HalfClose => {
                let _ = wire.flush(usize::MAX);
                wire.half_close();
            }
            Leave::Reset => {
                wire.reset();
                self.disconnect(site, RECONNECT_DELAY);
            }
            Leave::Fin => self.disconnect(site, RECONNECT_DELAY),
        }
    }

    /// The server, or a proxy, has closed the connection.
    fn ended(&mut self, site: &Site, tally: &mut Tally) {
        let endpoint = &site.endpoints[self.endpoint];
        let active_faults = &site.active_faults;
        let by_proxy = endpoint.may_have_ended(self.opened);
        let was_open = matches!(self.stage, Stage::Open | Stage::Recovering);
        let is_permitted = match (self.plan, self.closed) {
            _ if by_proxy => true,
            // Its own Close frame is answered with one.
            _ if self.stage == Stage::Ending => true,
            (Plan::BadToken, Some(code)) => code == 1008,
            (Plan::Garbage(_) | Plan::SlowRequest, None) => true,
            (_, Some(code)) => code == 1008 && active_faults.may_reject(&self.user, self.opened),
            // Also before and after the stall: a burst can exceed its buffers.
            (Plan::Stall, None) if !matches!(self.stage, Stage::Connecting { .. }) => true,
            (_, None) => !was_open && active_faults.may_have_failed(self.opened),
        };
        let how = match (self.stage, self.closed) {
            (Stage::Ending, _) => "expected",
            (Stage::Recovering | Stage::Open, None) if self.plan == Plan::Stall => "too slow",
            (Stage::Connecting { .. }, Some(_)) => "rejected with a Close frame",
            (Stage::Connecting { .. }, None) => "disconnected before the welcome",
            (_, Some(_)) if by_proxy => "closed by a proxy",
            (_, Some(_)) => "logged out",
            (_, None) if by_proxy => "dropped by a proxy",
            _ => "dropped",
        };
        tally.count(&format!("ended: {how}"), 1);
        if !is_permitted {
            tally.violation(format!(
                "{} was disconnected without a permitted reason ({how}, {:?})",
                self.describe(site),
                self.closed
            ));
        }
        self.disconnect(site, RECONNECT_DELAY);
    }

    fn disconnect(&mut self, site: &Site, back: Duration) {
        if self.wire.take().is_some() {
            site.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        self.stage = Stage::Disconnected;
        self.wake = Instant::now() + back.mul_f64(self.random.between(70, 130) as f64 / 100.0);
    }

    fn subscribe(&mut self, topic: &str) {
        self.text(&format!("[5,{topic:?}]"));
        self.tab.subscribed(topic);
    }

    fn unsubscribe(&mut self, topic: &str) {
        self.text(&format!("[6,{topic:?}]"));
        let ping = self.tab.unsubscribed(topic);
        self.ping(ping);
    }

    fn pings(&mut self, count: usize) {
        for _ in 0..count {
            let ping = self.tab.next_ping();
            self.ping(ping);
        }
    }

    fn ping(&mut self, number: u32) {
        if let Some(wire) = &mut self.wire {
            wire.send_frame(0x89, number.to_string().as_bytes());
        }
    }

    fn text(&mut self, text: &str) {
        if let Some(wire) = &mut self.wire {
            wire.send_text(text);
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        let connecting = matches!(self.stage, Stage::Connecting { .. });
        match self.plan {
            Plan::SlowRequest if connecting => wire.flush(1),
            Plan::SlowMessage if !connecting => wire.flush(3),
            _ => wire.flush(usize::MAX),
        }
    }

    fn describe(&self, site: &Site) -> String {
        let Endpoint { name, .. } = site.endpoints[self.endpoint];
        let age = self.opened.elapsed().as_secs();
        format!(
            "{} ({}, {name}, {:?}, {:?}, {age} s old)",
            self.user, site.name, self.plan, self.stage
        )
    }
}
