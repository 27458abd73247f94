//! One browser, or a client that pretends to be one: what it does next, and whether what happens to
//! it is permitted.

use std::time::{Duration, Instant};

use mio::{Registry, Token};
use serde::Deserialize;

use crate::books::Message;
use crate::house::{Door, House};
use crate::random::Random;
use crate::tab::{DENIED, Tab};
use crate::tally::Tally;
use crate::wire::{Item, Wire};

pub struct Client {
    pub house: usize,
    pub door: usize,
    pub user: String,
    /// Stays until the end.
    pub stays: bool,
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
    acts: usize,
    /// The last `Close` frame.
    closed: Option<u16>,
    /// It was rejected by HTTP: the rest is a page.
    refused: bool,
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
    Drip,
    /// Sends a message byte by byte, which is permitted.
    Slow,
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
    Away,
    /// Waits for the response and the welcome.
    Coming {
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
const BACK: Duration = Duration::from_secs(3);

/// Far more than any operation takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Forbidden after the welcome: first byte and payload of a frame.
const FORBIDDEN: [(u8, &[u8]); 9] = [
    (0x81, b"[7,\"newNotification\",1]"),
    (0x81, b"[2,\"call\",\"procedure\"]"),
    (0x81, b"{\"no\":\"list\"}"),
    (0x81, b"not JSON"),
    (0x81, b"\xff\xfe"),
    (0xc1, b"[5,\"newNotification\"]"),
    (0x80, b"goes on with nothing"),
    (0x89, &[b'x'; 126]),
    (0x83, b"unknown"),
];

const GARBAGE: [&[u8]; 5] = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /wss HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\0\r\n\r\n",
    b"GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\n",
];

impl Client {
    pub fn new(
        house: usize,
        door: usize,
        user: &str,
        stays: bool,
        now: Instant,
        mut random: Random,
    ) -> Self {
        Self {
            house,
            door,
            user: user.to_owned(),
            stays,
            plan: Plan::Stay,
            stage: Stage::Away,
            wire: None,
            tab: Tab::new(user),
            wake: now + random.millis(0, 3000),
            opened: now,
            answered: 0,
            acts: 0,
            closed: None,
            refused: false,
            random,
        }
    }

    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// The connection is readable or writable.
    pub fn ready(&mut self, house: &House, tally: &mut Tally, buffer: &mut [u8]) {
        if self.stage == Stage::Stalled {
            return;
        }
        let Some(wire) = &mut self.wire else { return };
        let mut ended = wire.fill(buffer);
        if self.refused {
            wire.discard();
        }
        match wire.take(!matches!(self.stage, Stage::Coming { upgraded: false })) {
            Ok(items) => {
                for item in items {
                    if let Err(why) = self.receive(item, house, tally) {
                        tally.violation(format!("{}: {why}", self.describe(house)));
                    }
                }
            }
            Err(why) => tally.violation(format!("{}: {why}", self.describe(house))),
        }
        ended |= self.flush().is_err();
        if ended && self.wire.is_some() {
            self.ended(house, tally);
        }
    }

    /// Performs actions that are due.
    pub fn tick(
        &mut self,
        now: Instant,
        house: &House,
        tally: &mut Tally,
        registry: &Registry,
        token: Token,
        comes_back: bool,
    ) {
        if self.wire.is_some() && self.stage != Stage::Away && self.flush().is_err() {
            // Input that the server sent before its end is read first.
            let mut buffer = [0; 4096];
            self.ready(house, tally, &mut buffer);
        }
        if self.wire.is_some() && house.weather.must_refuse(&self.user) && self.is_open() {
            tally.violation(format!("{} is still open, though logged out", self.describe(house)));
            self.leave(Leave::Fin, house);
            return;
        }
        if now < self.wake {
            return;
        }
        match self.stage {
            Stage::Away if comes_back => self.come(now, house, tally, registry, token),
            Stage::Away => {}
            Stage::Coming { .. } | Stage::Recovering | Stage::Ending => {
                tally.violation(format!("{}: nothing happened for long", self.describe(house)));
                self.away(house, BACK);
            }
            Stage::Stalled => {
                self.stage = Stage::Recovering;
                self.wake = now + DEADLINE;
                let ping = self.tab.next_ping();
                self.ping(ping);
                self.ready(house, tally, &mut [0; 4096]);
            }
            Stage::Open => self.act(now, house, tally),
        }
    }

    /// Closes the connection in any way.
    pub fn leave_for_good(&mut self, house: &House) {
        if self.wire.is_some() {
            self.away(house, BACK);
        }
    }

    fn come(
        &mut self,
        now: Instant,
        house: &House,
        tally: &mut Tally,
        registry: &Registry,
        token: Token,
    ) {
        self.plan = if self.stays { Plan::Stay } else { self.choose_plan(house) };
        let door = &house.doors[self.door];
        let little_room = self.plan == Plan::Stall;
        let connected = Wire::connect(door.address, door.tls.as_ref(), little_room);
        let registered = connected.and_then(|mut wire| {
            wire.register(registry, token)?;
            Ok(wire)
        });
        let Ok(mut wire) = registered else {
            tally.count("connects that failed", 1);
            self.wake = now + BACK;
            return;
        };
        match self.plan {
            Plan::Garbage(kind) => {
                wire.send(GARBAGE[kind]);
                self.stage = Stage::Coming { upgraded: false };
            }
            plan => {
                let token = match plan {
                    Plan::BadToken => "guessed".to_owned(),
                    _ => format!("tok-{}", self.user),
                };
                wire.upgrade(door.path, &self.user, &token);
                self.stage = Stage::Coming { upgraded: false };
            }
        }
        self.wire = Some(wire);
        self.tab = Tab::new(&self.user);
        (self.opened, self.wake) = (now, now + DEADLINE);
        (self.answered, self.closed, self.refused) = (0, None, false);
        self.acts = self.random.between(1, 8);
        house.connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tally.opened(self.plan, door.name);
    }

    fn choose_plan(&mut self, house: &House) -> Plan {
        let direct = house.doors[self.door].proxy.is_none();
        let plain = house.doors[self.door].tls.is_none();
        let leave = *self.random.choose(&[Leave::Close, Leave::Fin, Leave::Reset]);
        // How a proxy handles a half-closed connection is not tested.
        let leave = if direct && self.random.below(5) == 0 { Leave::HalfClose } else { leave };
        let forbidden = self.random.below(FORBIDDEN.len());
        let garbage = self.random.below(GARBAGE.len());
        self.random.update_buffered(&[
            (60, Plan::Visit(leave)),
            (12, Plan::Linger),
            (6, Plan::Stall),
            (5, Plan::Pings),
            (2, Plan::Flood),
            (6, Plan::Forbidden(forbidden)),
            (5, Plan::BadToken),
            (if plain && direct { 5 } else { 0 }, Plan::Garbage(garbage)),
            (if plain && direct { 3 } else { 0 }, Plan::Drip),
            (5, Plan::Slow),
        ])
    }

    fn receive(&mut self, item: Item, house: &House, tally: &mut Tally) -> Result<(), String> {
        match item {
            Item::Response(101) => self.stage = Stage::Coming { upgraded: true },
            Item::Response(status) => {
                tally.count(&format!("HTTP responses {status}"), 1);
                let door = &house.doors[self.door];
                let expected = matches!(self.plan, Plan::Garbage(_) | Plan::Drip)
                    || (door.proxy.is_some() && door.may_have_ended(self.opened));
                (self.stage, self.refused) = (Stage::Ending, true);
                if !expected {
                    return Err(format!("it got the status {status}"));
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
                let is_asked =
                    self.stage != Stage::Ending || matches!(self.plan, Plan::Forbidden(_));
                if let Some(wire) = &mut self.wire
                    && is_asked
                {
                    wire.send_frame(0x88, &payload[..2.min(payload.len())]);
                }
            }
            Item::Frame(1, payload) => {
                if let Ok(Event(8, topic, message)) = serde_json::from_slice(&payload) {
                    tally.delivered += 1;
                    tally.bytes += payload.len() as u64;
                    self.tab.receive(topic, &message, &house.books)?;
                    let sent = || {
                        let user = message.user_id.clone();
                        let channel = crate::books::Channel { topic: topic.to_owned(), user };
                        house.books.sent(message.stream, &channel, message.number)
                    };
                    if topic == "recordUpdate.Account.flux"
                        && sent().is_some_and(|sent| house.weather.must_withhold(sent))
                    {
                        return Err(format!("{topic} was delivered, though it is denied by now"));
                    }
                } else if payload.starts_with(b"[0,") {
                    return self.welcome(house);
                } else if !payload.starts_with(b"[4,") {
                    let text = String::from_utf8_lossy(&payload);
                    return Err(format!("it got {}", text.chars().take(200).collect::<String>()));
                }
            }
            Item::Frame(opcode, _) => return Err(format!("it got a frame of type {opcode}")),
        }
        Ok(())
    }

    fn welcome(&mut self, house: &House) -> Result<(), String> {
        if !matches!(self.stage, Stage::Coming { upgraded: true }) {
            return Err("it was welcomed at the wrong time".to_owned());
        }
        self.stage = Stage::Open;
        let number = self.user.bytes().map(usize::from).sum::<usize>();
        if self.plan == Plan::Stay {
            let first = number % house.records;
            for topic in [
                "newNotification".to_owned(),
                "calendarUpdate".to_owned(),
                "appParamsUpdate".to_owned(),
                format!("recordUpdate.Account.r{first}"),
                format!("streamUpdate.Account.r{}", (first + 1) % house.records),
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
        if matches!(self.plan, Plan::BadToken | Plan::Drip | Plan::Garbage(_)) {
            return Err("it was welcomed".to_owned());
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

    fn act(&mut self, now: Instant, house: &House, tally: &mut Tally) {
        self.wake = now + self.random.millis(200, 6000);
        match self.plan {
            Plan::Stay => {
                // EspoCRM's keep-alive.
                self.text("[7,\"\",\"\"]");
                self.wake = now + Duration::from_secs(60);
            }
            Plan::Stall => {
                if self.acts > 1 {
                    self.acts = 1;
                    self.stage = Stage::Stalled;
                    self.wake = now + self.random.millis(1000, 25_000);
                }
            }
            Plan::Pings => {
                self.pings(30);
                self.wake = now + self.random.millis(1500, 6000);
            }
            Plan::Flood => {
                self.acts = 1;
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
                self.acts = self.acts.min(3);
                self.text("[7,\"\",\"\"]");
                self.wake = now + self.random.millis(20_000, 50_000);
            }
            _ => self.look_around(house),
        }
        if self.stays || self.stage == Stage::Stalled {
            return;
        }
        self.acts -= 1;
        if self.acts == 0 {
            let leave = match self.plan {
                Plan::Visit(leave) => leave,
                _ => Leave::Close,
            };
            tally.count(&format!("left by {leave:?}"), 1);
            self.leave(leave, house);
        }
    }

    /// Changes from one record to another.
    fn look_around(&mut self, house: &House) {
        let known: Vec<String> = self.tab.topics().map(str::to_owned).collect();
        let record = format!("Account.r{}", self.random.below(house.records));
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

    fn leave(&mut self, leave: Leave, house: &House) {
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
                self.away(house, BACK);
            }
            Leave::Fin => self.away(house, BACK),
        }
    }

    /// The server, or a proxy, has closed the connection.
    fn ended(&mut self, house: &House, tally: &mut Tally) {
        let door = &house.doors[self.door];
        let weather = &house.weather;
        let by_proxy = door.may_have_ended(self.opened);
        let was_in = matches!(self.stage, Stage::Open | Stage::Recovering);
        let is_fine = match (self.plan, self.closed) {
            _ if by_proxy => true,
            // Its own Close frame is answered with one.
            _ if self.stage == Stage::Ending => true,
            (Plan::BadToken, Some(code)) => code == 1008,
            (Plan::Garbage(_) | Plan::Drip, None) => true,
            (_, Some(code)) => code == 1008 && weather.may_refuse(&self.user, self.opened),
            // Also before and after the stall: a burst can exceed its buffers.
            (Plan::Stall, None) if !matches!(self.stage, Stage::Coming { .. }) => true,
            (_, None) => !was_in && weather.may_have_failed(self.opened),
        };
        let how = match (self.stage, self.closed) {
            (Stage::Ending, _) => "as it had to be",
            (Stage::Recovering | Stage::Open, None) if self.plan == Plan::Stall => "too slow",
            (Stage::Coming { .. }, Some(_)) => "refused by a Close frame",
            (Stage::Coming { .. }, None) => "sent away before the welcome",
            (_, Some(_)) if by_proxy => "closed by a proxy",
            (_, Some(_)) => "logged out",
            (_, None) if by_proxy => "dropped by a proxy",
            _ => "dropped",
        };
        tally.count(&format!("ended: {how}"), 1);
        if !is_fine {
            tally.violation(format!(
                "{} was ended, which it should not have been ({how}, {:?})",
                self.describe(house),
                self.closed
            ));
        }
        self.away(house, BACK);
    }

    fn away(&mut self, house: &House, back: Duration) {
        if self.wire.take().is_some() {
            house.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        self.stage = Stage::Away;
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
        let coming = matches!(self.stage, Stage::Coming { .. });
        match self.plan {
            Plan::Drip if coming => wire.flush(1),
            Plan::Slow if !coming => wire.flush(3),
            _ => wire.flush(usize::MAX),
        }
    }

    fn describe(&self, house: &House) -> String {
        let Door { name, .. } = house.doors[self.door];
        let age = self.opened.elapsed().as_secs();
        format!(
            "{} ({}, {name}, {:?}, {:?}, {age} s old)",
            self.user, house.name, self.plan, self.stage
        )
    }
}
