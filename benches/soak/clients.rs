//! All clients, in one thread.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::client::Client;
use crate::random::Random;
use crate::site::Site;
use crate::tab::Balance;
use crate::tally::Tally;

pub struct Clients {
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

/// Number of permanent and of temporary clients at each endpoint.
const CLIENTS_PER_ENDPOINT: [(usize, usize); 4] = [(60, 100), (20, 12), (20, 12), (20, 12)];
const TLS_CLIENTS: (usize, usize) = (32, 12);

impl Clients {
    pub fn start(sites: &Arc<Vec<Site>>, tally: &Arc<Mutex<Tally>>, random: &mut Random) -> Self {
        let clients = create_clients(sites, random);
        let state = State {
            phase: AtomicU8::new(RUN),
            silent: AtomicUsize::new(usize::MAX),
            missing: AtomicUsize::new(usize::MAX),
        };
        let state = Arc::new(state);
        let (sites, tally, shared) = (Arc::clone(sites), Arc::clone(tally), Arc::clone(&state));
        let thread = std::thread::spawn(move || run(clients, &sites, &tally, &shared));
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

impl Drop for Clients {
    fn drop(&mut self) {
        self.state.phase.store(LEAVE, Ordering::Relaxed);
    }
}

fn create_clients(sites: &[Site], random: &mut Random) -> Vec<Client> {
    let now = Instant::now();
    let mut clients = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        let per_endpoint =
            if site.issued.is_some() { &[TLS_CLIENTS][..] } else { &CLIENTS_PER_ENDPOINT };
        for (endpoint, &(stay, visit)) in per_endpoint.iter().enumerate() {
            for number in 0..stay {
                let user = &site.permanent_users[number % site.permanent_users.len()];
                clients.push(Client::new(index, endpoint, user, true, now, random.fork()));
            }
            for number in 0..visit {
                let user = &site.temporary_users[number % site.temporary_users.len()];
                clients.push(Client::new(index, endpoint, user, false, now, random.fork()));
            }
        }
    }
    clients
}

fn run(
    mut clients: Vec<Client>,
    sites: &[Site],
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
            client.ready(&sites[client.site], &mut tally, &mut buffer);
        }
        if ticked.elapsed() < TICK {
            continue;
        }
        ticked = Instant::now();
        let phase = state.phase.load(Ordering::Relaxed);
        for (index, client) in clients.iter_mut().enumerate() {
            let site = &sites[client.site];
            let reconnects = phase == RUN || client.is_permanent;
            client.tick(ticked, site, &mut tally, poll.registry(), Token(index), reconnects);
        }
        drop(tally);
        if counted.elapsed() > Duration::from_secs(1) || phase == LEAVE {
            counted = Instant::now();
            let balances = balances(&clients, sites, phase != RUN);
            let silent = balances.iter().map(|it| it.silent).sum();
            let missing = balances.iter().map(|it| it.missing.len()).sum();
            state.silent.store(silent, Ordering::Relaxed);
            state.missing.store(missing, Ordering::Relaxed);
            if phase == LEAVE {
                for client in &mut clients {
                    client.close(&sites[client.site]);
                }
                return balances;
            }
        }
    }
}

/// The balances of the permanent clients. Without `all`, only whether they receive anything.
fn balances(clients: &[Client], sites: &[Site], all: bool) -> Vec<Balance> {
    let stay = clients.iter().filter(|client| client.is_permanent);
    let balance = |client: &Client| match client.is_open() {
        true if all => client.tab.balance(&sites[client.site].sent_log),
        true => Balance { silent: client.tab.silent(), ..Balance::default() },
        false => Balance { silent: 1, ..Balance::default() },
    };
    stay.map(balance).collect()
}
