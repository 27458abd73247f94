//! All clients, in one thread.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::client::Client;
use crate::house::House;
use crate::random::Random;
use crate::tab::Balance;
use crate::tally::Tally;

pub struct Crowd {
    state: Arc<State>,
    thread: Option<JoinHandle<Vec<Balance>>>,
}

struct State {
    phase: AtomicU8,
    /// For the permanent clients: the number of subscriptions without any message and of missing
    /// messages; a huge number if a client is not even connected.
    silent: AtomicUsize,
    missing: AtomicUsize,
}

/// Temporary clients come and go; no new clients connect, and permanent clients are counted; all
/// clients leave.
const RUN: u8 = 0;
const SETTLE: u8 = 1;
const LEAVE: u8 = 2;

const TICK: Duration = Duration::from_millis(50);

/// Number of permanent and of temporary clients at each entrance.
const AT_DOOR: [(usize, usize); 4] = [(60, 100), (20, 12), (20, 12), (20, 12)];
const AT_TLS: (usize, usize) = (32, 12);

impl Crowd {
    pub fn start(houses: &Arc<Vec<House>>, tally: &Arc<Mutex<Tally>>, random: &mut Random) -> Self {
        let clients = invite(houses, random);
        let state = State {
            phase: AtomicU8::new(RUN),
            silent: AtomicUsize::new(usize::MAX),
            missing: AtomicUsize::new(usize::MAX),
        };
        let state = Arc::new(state);
        let (houses, tally, shared) = (Arc::clone(houses), Arc::clone(tally), Arc::clone(&state));
        let thread = std::thread::spawn(move || run(clients, &houses, &tally, &shared));
        Self { state, thread: Some(thread) }
    }

    /// Whether all permanent clients have received a message for each subscription.
    pub fn is_settled(&self) -> bool {
        self.state.silent.load(Ordering::Relaxed) == 0
    }

    /// Whether they have received everything that was sent.
    pub fn is_complete(&self) -> bool {
        self.is_settled() && self.state.missing.load(Ordering::Relaxed) == 0
    }

    /// Closes temporary clients and opens no new ones.
    pub fn settle(&self) {
        self.state.phase.store(SETTLE, Ordering::Relaxed);
    }

    /// Closes all clients; returns what each permanent one has received.
    pub fn leave(mut self) -> Vec<Balance> {
        self.state.phase.store(LEAVE, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.state.phase.store(LEAVE, Ordering::Relaxed);
    }
}

fn invite(houses: &[House], random: &mut Random) -> Vec<Client> {
    let now = Instant::now();
    let mut clients = Vec::new();
    for (index, house) in houses.iter().enumerate() {
        let at_doors = if house.issued.is_some() { &[AT_TLS][..] } else { &AT_DOOR };
        for (door, &(stay, visit)) in at_doors.iter().enumerate() {
            for number in 0..stay {
                let user = &house.stayers[number % house.stayers.len()];
                clients.push(Client::new(index, door, user, true, now, random.fork()));
            }
            for number in 0..visit {
                let user = &house.guests[number % house.guests.len()];
                clients.push(Client::new(index, door, user, false, now, random.fork()));
            }
        }
    }
    clients
}

fn run(
    mut clients: Vec<Client>,
    houses: &[House],
    tally: &Mutex<Tally>,
    state: &State,
) -> Vec<Balance> {
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(1_024);
    let mut buffer = vec![0; 64 * 1024];
    let (mut ticked, mut counted) = (Instant::now(), Instant::now());
    loop {
        match poll.poll(&mut events, Some(TICK)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.unwrap(),
        }
        let mut tally = tally.lock().unwrap();
        for event in &events {
            let client = &mut clients[event.token().0];
            client.ready(&houses[client.house], &mut tally, &mut buffer);
        }
        if ticked.elapsed() < TICK {
            continue;
        }
        ticked = Instant::now();
        let phase = state.phase.load(Ordering::Relaxed);
        for (index, client) in clients.iter_mut().enumerate() {
            let house = &houses[client.house];
            let comes_back = phase == RUN || client.stays;
            client.tick(ticked, house, &mut tally, poll.registry(), Token(index), comes_back);
        }
        drop(tally);
        if counted.elapsed() > Duration::from_secs(1) || phase == LEAVE {
            counted = Instant::now();
            let balances = balances(&clients, houses, phase != RUN);
            let silent = balances.iter().map(|it| it.silent).sum();
            let missing = balances.iter().map(|it| it.missing.len()).sum();
            state.silent.store(silent, Ordering::Relaxed);
            state.missing.store(missing, Ordering::Relaxed);
            if phase == LEAVE {
                for client in &mut clients {
                    client.leave_for_good(&houses[client.house]);
                }
                return balances;
            }
        }
    }
}

/// The balances of the permanent clients. Without `all`, only whether they receive anything.
fn balances(clients: &[Client], houses: &[House], all: bool) -> Vec<Balance> {
    let stay = clients.iter().filter(|client| client.stays);
    let balance = |client: &Client| match client.is_open() {
        true if all => client.tab.balance(&houses[client.house].books),
        true => Balance { silent: client.tab.silent(), ..Balance::default() },
        false => Balance { silent: 1, ..Balance::default() },
    };
    stay.map(balance).collect()
}
