//! What one connection may receive, and whether it has received it: each message once, in order.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use crate::sent_log::{Channel, Message, SentLog, Stream};

/// The subscriptions of one connection.
///
/// There is no response when a subscription is granted: it is granted once its first message has
/// arrived. Messages sent after that moment must arrive, too, and from then on no message may be
/// missing between two messages of an ordered stream.
#[derive(Default)]
pub struct Tab {
    user: String,
    watches: Vec<Watch>,
    /// The latest serial number of each ordered stream.
    serials: HashMap<Stream, u64>,
    /// The number of the last ping.
    last_ping: u32,
    pub received: u64,
}

/// Never granted.
pub const DENIED: &str = ".deny";

/// May be denied, or revoked for a moment, while clients are subscribed.
pub const VOLATILE: &str = ".flux";

struct Watch {
    topic: String,
    granted: Option<Instant>,
    /// It was unsubscribed before each of these pings: the answer confirms the unsubscription.
    leaving: VecDeque<u32>,
    /// And subscribed again after the last of them.
    again: bool,
    /// By stream, and whether the message is for one user.
    seen: HashMap<(Stream, bool), Seen>,
}

enum Seen {
    /// All from one number up to, but excluding, this one.
    Run {
        first: usize,
        end: usize,
    },
    Set(BTreeSet<usize>),
}

/// What a connection should have received since its subscriptions were granted.
#[derive(Default)]
pub struct Balance {
    pub expected: u64,
    pub received: u64,
    /// Descriptions of missing messages.
    pub missing: Vec<String>,
    /// Subscriptions without any message so far.
    pub silent: usize,
}

impl Tab {
    pub fn new(user: &str) -> Self {
        Self { user: user.to_owned(), ..Self::default() }
    }

    /// A subscription was sent.
    pub fn subscribed(&mut self, topic: &str) {
        match self.watches.iter_mut().find(|watch| watch.topic == topic) {
            Some(watch) => watch.again = !watch.leaving.is_empty(),
            None => self.watches.push(Watch::new(topic)),
        }
    }

    /// An unsubscription was sent; a ping with the returned number must follow.
    pub fn unsubscribed(&mut self, topic: &str) -> u32 {
        let ping = self.next_ping();
        if let Some(watch) = self.watches.iter_mut().find(|watch| watch.topic == topic) {
            watch.leaving.push_back(ping);
            watch.again = false;
        }
        ping
    }

    pub fn next_ping(&mut self) -> u32 {
        self.last_ping += 1;
        self.last_ping
    }

    pub fn last_ping(&self) -> u32 {
        self.last_ping
    }

    /// A ping has been answered.
    pub fn answered(&mut self, ping: u32) {
        self.watches.retain_mut(|watch| {
            if watch.leaving.front() != Some(&ping) {
                return true;
            }
            watch.leaving.pop_front();
            // Later messages belong to another subscription.
            watch.granted = None;
            watch.seen.clear();
            watch.again || !watch.leaving.is_empty()
        });
    }

    /// The topics to which it is subscribed.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        let stays = |watch: &&Watch| watch.leaving.is_empty() || watch.again;
        self.watches.iter().filter(stays).map(|watch| watch.topic.as_str())
    }

    /// Receives a message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn receive(
        &mut self,
        topic: &str,
        message: &Message,
        sent_log: &SentLog,
    ) -> Result<(), String> {
        let &Message { stream, serial, number, length, .. } = message;
        let user = message.user_id.clone();
        let directed = user.is_some();
        let what = format!("message {number} of {stream:?} for {topic}, {user:?}");
        if message.topic_id != topic || message.padding.len() != length {
            return Err(format!("{what} was changed"));
        }
        if user.as_ref().is_some_and(|user| *user != self.user) {
            return Err(format!("{what} was delivered to {}", self.user));
        }
        if topic.contains(DENIED) {
            return Err(format!("{what} was delivered, although access is denied"));
        }
        let Some(watch) = self.watches.iter_mut().find(|watch| watch.topic == topic) else {
            return Err(format!("{what} was delivered without a subscription"));
        };
        self.received += 1;
        if stream.in_order
            && let Some(before) = self.serials.insert(stream, serial)
            && before >= serial
        {
            return Err(format!("{what} arrived after serial number {before}"));
        }
        let granted = *watch.granted.get_or_insert_with(Instant::now);
        let seen = watch.seen.entry((stream, directed));
        if !stream.in_order {
            let Seen::Set(set) = seen.or_insert_with(|| Seen::Set(BTreeSet::new())) else {
                unreachable!("a stream has one kind")
            };
            return set.insert(number).then_some(()).ok_or(format!("{what} arrived twice"));
        }
        // The first one may arrive late only if the earlier ones were sent too early.
        let is_volatile = topic.contains(VOLATILE);
        let mut is_first = false;
        let seen = seen.or_insert_with(|| {
            is_first = true;
            Seen::Run { first: number, end: number }
        });
        let Seen::Run { first, end } = seen else { unreachable!("a stream has one kind") };
        if is_first && !is_volatile && number > 0 {
            let channel = Channel { topic: topic.to_owned(), user };
            if sent_log.sent(stream, &channel, number - 1).is_some_and(|before| before > granted) {
                return Err(format!("{what} arrived, but not the one before it"));
            }
        }
        let expected = std::mem::replace(end, number + 1);
        if is_volatile && number > expected {
            *first = number;
            return Ok(());
        }
        (number == expected).then_some(()).ok_or(format!("{what} arrived instead of {expected}"))
    }

    /// The number of subscriptions without any message so far.
    pub fn silent(&self) -> usize {
        let is_silent = |watch: &&Watch| watch.granted.is_none() && watch.is_reliable();
        self.watches.iter().filter(is_silent).count()
    }

    /// Compares the sent messages with the received ones, for a connection that is still open.
    pub fn balance(&self, sent_log: &SentLog) -> Balance {
        let mut balance = Balance { silent: self.silent(), ..Balance::default() };
        for watch in self.watches.iter().filter(|watch| watch.is_reliable()) {
            let Some(granted) = watch.granted else { continue };
            for user in [None, Some(self.user.clone())] {
                let directed = user.is_some();
                let channel = Channel { topic: watch.topic.clone(), user };
                for (stream, first, end) in sent_log.sent_after(&channel, granted) {
                    let has = |number: usize| match watch.seen.get(&(stream, directed)) {
                        None => false,
                        Some(Seen::Run { first, end }) => (*first..*end).contains(&number),
                        Some(Seen::Set(set)) => set.contains(&number),
                    };
                    let missing: Vec<usize> = (first..end).filter(|it| !has(*it)).collect();
                    balance.expected += (end - first) as u64;
                    balance.received += (end - first - missing.len()) as u64;
                    if let [one, ..] = missing[..] {
                        let count = missing.len();
                        balance.missing.push(format!(
                            "{count} messages of {stream:?} for {channel:?} did not arrive at {}, \
                             the first is {one} of {end}",
                            self.user
                        ));
                    }
                }
            }
        }
        balance
    }
}

impl Watch {
    fn new(topic: &str) -> Self {
        let (topic, seen) = (topic.to_owned(), HashMap::new());
        Self { topic, granted: None, leaving: VecDeque::new(), again: false, seen }
    }

    /// Whether the access stays granted until it is unsubscribed.
    fn is_reliable(&self) -> bool {
        !self.topic.contains(DENIED) && !self.topic.contains(VOLATILE) && self.leaving.is_empty()
    }
}
