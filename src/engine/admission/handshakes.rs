//! Handshakes in progress, by client address: which one makes room if there are too many.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use crate::engine::id::ConnId;
use crate::engine::limits::HANDSHAKE_GRACE;
use crate::engine::protocol::client_address::ClientKey;
use crate::engine::time::Time;

/// The handshakes in progress. Each operation takes time logarithmic in their number; each handshake
/// costs at most 300 B.
#[derive(Debug)]
pub struct Handshakes {
    /// How many there may be.
    limit: usize,
    /// How many there may be while the one to be ended began a moment ago.
    limit_of_new: usize,
    /// How many there have been.
    serial: u64,
    members: HashMap<ConnId, (ClientKey, Age, Time)>,
    /// All of them with the moment at which they began, for each address the oldest first.
    queue: BTreeMap<(ClientKey, Age), (ConnId, Time)>,
    counts: HashMap<ClientKey, usize>,
    /// The addresses by the number of their handshakes. Of several with the same number, the one with
    /// the oldest handshake comes last.
    largest: BTreeMap<(usize, Reverse<Age>), ClientKey>,
}

/// The handshake to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    /// Its connection.
    pub id: ConnId,
    /// Its address.
    pub client: ClientKey,
    /// How many handshakes that address has, this one included.
    pub count: usize,
}

/// The serial number of a handshake: the oldest has the lowest.
type Age = u64;

impl Handshakes {
    /// No handshake yet, and up to `limit` of them at a time. Up to `limit_of_new` are allowed while
    /// they have not had their time: [`HANDSHAKE_GRACE`].
    #[must_use]
    pub fn new(limit: usize, limit_of_new: usize) -> Self {
        Self {
            limit,
            limit_of_new,
            serial: 0,
            members: HashMap::new(),
            queue: BTreeMap::new(),
            counts: HashMap::new(),
            largest: BTreeMap::new(),
        }
    }

    /// A connection was accepted. It counts for `client`: the client's address, or while that is not
    /// known, the address of the proxy that it came from.
    pub fn begin(&mut self, id: ConnId, client: ClientKey, now: Time) {
        self.end(id);
        self.insert(id, client, self.serial, now);
        self.serial += 1;
    }

    /// The client of a connection became known. Its age stays.
    pub fn assign(&mut self, id: ConnId, client: ClientKey) {
        if let Some((age, since)) = self.remove(id) {
            self.insert(id, client, age, since);
        }
    }

    /// A handshake is complete, or its connection has ended. It may have been removed before.
    pub fn end(&mut self, id: ConnId) {
        self.remove(id);
        // After a rush its memory is given back.
        if self.members.is_empty() && self.members.capacity() > 0 {
            self.members = HashMap::new();
            self.counts = HashMap::new();
        }
    }

    /// Changes how many there may be that began a moment ago.
    pub fn set_limit_of_new(&mut self, limit_of_new: usize) {
        self.limit_of_new = limit_of_new;
    }

    /// If there are too many, the one to be ended: the oldest of the address that has the most. Of
    /// several such addresses, the one with the oldest handshake counts. To be called until `None`.
    #[must_use]
    pub fn surplus(&self, now: Time) -> Option<Surplus> {
        let (surplus, since) = self.candidate()?;
        let is_due = since.after(HANDSHAKE_GRACE) <= now;
        (is_due || self.members.len() > self.limit_of_new).then_some(surplus)
    }

    /// When there will be one, if no handshake begins or ends before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.candidate().map(|(_, since)| since.after(HANDSHAKE_GRACE))
    }

    /// The one to be ended first, and when it began.
    fn candidate(&self) -> Option<(Surplus, Time)> {
        if self.members.len() <= self.limit {
            return None;
        }
        let ((count, Reverse(age)), client) = self.largest.last_key_value()?;
        let (id, since) = self.queue.get(&(*client, *age))?;
        Some((Surplus { id: *id, client: *client, count: *count }, *since))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether this connection's handshake is in progress.
    #[must_use]
    pub fn contains(&self, id: ConnId) -> bool {
        self.members.contains_key(&id)
    }

    /// Checks that the indexes agree. For tests.
    ///
    /// # Panics
    /// If they do not.
    pub fn check_invariants(&self) {
        assert_eq!(self.members.len(), self.queue.len());
        assert_eq!(self.counts.len(), self.largest.len());
        let mut counts: HashMap<ClientKey, usize> = HashMap::new();
        for (id, (client, age, since)) in &self.members {
            assert_eq!(self.queue.get(&(*client, *age)), Some(&(*id, *since)));
            assert!(*age < self.serial);
            *counts.entry(*client).or_default() += 1;
        }
        assert_eq!(counts, self.counts);
        for client in counts.keys() {
            let ranked = self.place(*client).and_then(|place| self.largest.get(&place));
            assert_eq!(ranked, Some(client));
        }
    }

    fn insert(&mut self, id: ConnId, client: ClientKey, age: Age, since: Time) {
        self.unrank(client);
        self.members.insert(id, (client, age, since));
        self.queue.insert((client, age), (id, since));
        *self.counts.entry(client).or_default() += 1;
        self.rank(client);
    }

    fn remove(&mut self, id: ConnId) -> Option<(Age, Time)> {
        let (client, age, since) = self.members.remove(&id)?;
        self.unrank(client);
        self.queue.remove(&(client, age));
        if let Some(count) = self.counts.get_mut(&client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&client);
            }
        }
        self.rank(client);
        Some((age, since))
    }

    /// Before what an address has changes.
    fn unrank(&mut self, client: ClientKey) {
        if let Some(place) = self.place(client) {
            self.largest.remove(&place);
        }
    }

    /// After it has changed.
    fn rank(&mut self, client: ClientKey) {
        if let Some(place) = self.place(client) {
            self.largest.insert(place, client);
        }
    }

    fn place(&self, client: ClientKey) -> Option<(usize, Reverse<Age>)> {
        let count = self.counts.get(&client)?;
        let (&(_, oldest), _) = self.queue.range((client, 0)..=(client, Age::MAX)).next()?;
        Some((*count, Reverse(oldest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000);

    /// When all of them have had their time.
    const LATER: Time = Time::from_millis(5_000);

    fn id(number: u32) -> ConnId {
        ConnId::new(number, number)
    }

    fn client(number: u32) -> ClientKey {
        ClientKey::of(std::net::Ipv4Addr::from_bits(number).into())
    }

    fn surplus(handshakes: &Handshakes) -> Option<(u32, ClientKey, usize)> {
        handshakes.surplus(LATER).map(|it| (it.id.serial(), it.client, it.count))
    }

    #[test]
    fn the_oldest_of_the_address_that_has_the_most_makes_room() {
        let mut handshakes = Handshakes::new(4, 10_000);
        handshakes.begin(id(0), client(7), NOW);
        for number in 1..4 {
            handshakes.begin(id(number), client(1), NOW);
        }
        assert_eq!(surplus(&handshakes), None);
        // A flood from one address costs only that address.
        for number in 4..1_000 {
            handshakes.begin(id(number), client(1), NOW);
            let surplus = handshakes.surplus(LATER).unwrap();
            assert_eq!(surplus, Surplus { id: id(number - 3), client: client(1), count: 4 });
            handshakes.end(surplus.id);
        }
        assert!(handshakes.contains(id(0)) && handshakes.len() == 4);
        for number in [0, 997, 998, 999, 999] {
            handshakes.end(id(number));
        }
        assert!(handshakes.is_empty() && handshakes.largest.is_empty());
        assert!(handshakes.queue.is_empty() && handshakes.counts.is_empty());
    }

    #[test]
    fn those_that_began_a_moment_ago_have_their_time_up_to_a_limit() {
        let mut handshakes = Handshakes::new(2, 5);
        let soon = NOW.after(HANDSHAKE_GRACE / 2);
        for number in 0..2 {
            handshakes.begin(id(number), client(1), NOW);
        }
        assert_eq!(handshakes.next_deadline(), None);
        for number in 2..5 {
            handshakes.begin(id(number), client(1), soon);
        }
        assert_eq!((handshakes.surplus(soon), handshakes.next_deadline()), (None, Some(LATER)));
        // Too many, whatever their age.
        handshakes.begin(id(5), client(1), soon);
        assert_eq!(handshakes.surplus(soon).map(|it| it.id), Some(id(0)));
        handshakes.end(id(0));
        assert_eq!(handshakes.surplus(soon), None);
        // The first one has had its time, the others have not.
        assert_eq!(handshakes.surplus(LATER).map(|it| it.id), Some(id(1)));
        handshakes.end(id(1));
        assert_eq!(handshakes.surplus(LATER), None);
        let last = soon.after(HANDSHAKE_GRACE);
        assert_eq!(handshakes.next_deadline(), Some(last));
        for number in [2, 3] {
            assert_eq!(handshakes.surplus(last).map(|it| it.id), Some(id(number)));
            handshakes.end(id(number));
        }
        assert_eq!((handshakes.surplus(last), handshakes.next_deadline()), (None, None));
        // One that is assigned keeps its age.
        handshakes.assign(id(4), client(2));
        for number in 6..8 {
            handshakes.begin(id(number), client(2), last);
        }
        handshakes.set_limit_of_new(2);
        assert_eq!(handshakes.surplus(soon).map(|it| it.id), Some(id(4)));
    }

    #[test]
    fn of_addresses_with_the_same_number_the_one_with_the_oldest_makes_room() {
        let mut handshakes = Handshakes::new(2, 10_000);
        for (number, address) in [(1, 9), (2, 5), (3, 7)] {
            handshakes.begin(id(number), client(address), NOW);
        }
        assert_eq!(surplus(&handshakes), Some((1, client(9), 1)));
        handshakes.end(id(1));
        handshakes.begin(id(4), client(9), NOW);
        assert_eq!(surplus(&handshakes), Some((2, client(5), 1)));
    }

    #[test]
    fn a_handshake_keeps_its_age_when_its_client_becomes_known() {
        let mut handshakes = Handshakes::new(3, 10_000);
        for number in 0..4 {
            handshakes.begin(id(number), client(100), NOW);
        }
        assert_eq!(surplus(&handshakes), Some((0, client(100), 4)));
        // In another order than they came.
        for number in [2, 0, 1] {
            handshakes.assign(id(number), client(1));
        }
        assert_eq!(surplus(&handshakes), Some((0, client(1), 3)));
        handshakes.assign(id(0), client(2));
        assert_eq!(surplus(&handshakes), Some((1, client(1), 2)));
        // One that is over is not counted for anybody.
        handshakes.end(id(1));
        handshakes.assign(id(1), client(3));
        assert_eq!(handshakes.len(), 3);
    }

    #[test]
    fn it_agrees_with_a_naive_list() {
        let mut handshakes = Handshakes::new(20, 10_000);
        let mut list: Vec<(u32, ClientKey)> = Vec::new();
        let mut random = 1_u64;
        let mut below = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u32::try_from((random >> 33) % limit).unwrap()
        };
        let mut evicted = 0;
        for number in 0..20_000 {
            let client = client(below(6) * below(6));
            match below(10) {
                0..6 => {
                    handshakes.begin(id(number), client, NOW);
                    list.push((number, client));
                }
                kind if !list.is_empty() => {
                    let place = usize::try_from(below(list.len() as u64)).unwrap();
                    if kind < 8 {
                        handshakes.assign(id(list[place].0), client);
                        list[place].1 = client;
                    } else {
                        handshakes.end(id(list.remove(place).0));
                    }
                }
                _ => {}
            }
            let count = |client| list.iter().filter(|(_, other)| *other == client).count();
            let most = list.iter().map(|(_, client)| count(*client)).max();
            let expected = list.iter().find(|(_, client)| Some(count(*client)) == most);
            let expected = expected.filter(|_| list.len() > 20).copied();
            let found = handshakes.surplus(LATER);
            assert_eq!(found.map(|it| (it.id.serial(), it.client)), expected);
            if let Some(surplus) = found {
                assert_eq!(Some(surplus.count), most);
                handshakes.end(surplus.id);
                list.retain(|(number, _)| *number != surplus.id.serial());
                evicted += 1;
            }
            assert_eq!(handshakes.len(), list.len());
            assert_eq!(handshakes.queue.len(), list.len());
            assert_eq!(handshakes.counts.len(), handshakes.largest.len());
        }
        assert!(evicted > 1_000, "{evicted}");
    }
}
