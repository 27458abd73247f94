//! Which messages were sent, when, and by which sender; and what a message states about itself.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use serde::Deserialize;

/// The receivers of a message in one site: a topic, and a user unless it is for everyone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel {
    pub topic: String,
    pub user: Option<String>,
}

/// Identifies a sender in its site. Messages over one connection arrive in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct Stream {
    pub number: u16,
    /// One connection for all messages, not one for each.
    pub in_order: bool,
}

/// The records of one site: when each message was about to be sent, by its number in stream and
/// channel.
#[derive(Default)]
pub struct SentLog(Mutex<HashMap<(Stream, Channel), Vec<Instant>>>);

/// A message as it arrives.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    pub topic_id: String,
    pub user_id: Option<String>,
    pub stream: Stream,
    /// Number in its stream.
    pub serial: u64,
    /// Number in its stream and channel.
    pub number: usize,
    /// Expected length of `padding`.
    pub length: usize,
    pub padding: String,
}

impl SentLog {
    /// Records a message that is about to be sent, and returns its number in its stream and
    /// channel.
    pub fn record(&self, stream: Stream, channel: &Channel) -> usize {
        let mut sent_log = self.0.lock().unwrap();
        let times = sent_log.entry((stream, channel.clone())).or_default();
        times.push(Instant::now());
        times.len() - 1
    }

    /// When a message was about to be sent.
    pub fn sent(&self, stream: Stream, channel: &Channel, number: usize) -> Option<Instant> {
        let sent_log = self.0.lock().unwrap();
        sent_log.get(&(stream, channel.clone()))?.get(number).copied()
    }

    /// The messages sent to a channel after a moment: for each stream, the first number and the
    /// number after the last.
    pub fn sent_after(&self, channel: &Channel, moment: Instant) -> Vec<(Stream, usize, usize)> {
        let sent_log = self.0.lock().unwrap();
        let streams = sent_log.iter().filter(|((_, other), _)| other == channel);
        let after = streams.map(|((stream, _), times)| {
            (*stream, times.partition_point(|time| *time <= moment), times.len())
        });
        after.filter(|(_, first, end)| first < end).collect()
    }

    /// The number of messages sent.
    pub fn total(&self) -> usize {
        self.0.lock().unwrap().values().map(Vec::len).sum()
    }
}

/// A message as EspoCRM would send it, with the data that the soak test needs.
pub fn message(
    channel: &Channel,
    stream: Stream,
    serial: u64,
    number: usize,
    length: usize,
) -> String {
    let user = channel.user.as_ref().map_or("null".to_owned(), |user| format!("{user:?}"));
    format!(
        "{{\"topicId\":{:?},\"userId\":{user},\"stream\":{{\"number\":{},\"in_order\":{}}},\
         \"serial\":{serial},\"number\":{number},\"length\":{length},\"padding\":\"{}\"}}",
        channel.topic,
        stream.number,
        stream.in_order,
        "x".repeat(length)
    )
}
