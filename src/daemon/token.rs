//! The tokens of the event loop's poll.

use mio::Token;

/// What the events of a token belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventSource {
    /// The listening socket for browsers.
    Listener,
    /// Messages from ZeroMQ.
    Zmq,
    Signals,
    /// ZeroMQ senders connect, disconnect or send.
    ZmqSenders,
    /// A listener or a client of the control socket or the metrics port.
    Control(usize),
    /// A pipe of a child process.
    Child(usize),
    /// A pipe or the connection of a PHP worker.
    Worker(usize),
    /// A browser's connection, by its slot.
    Connection(usize),
}

const LISTENER: usize = 0;
const ZMQ: usize = 1;
const SIGNALS: usize = 2;
const ZMQ_SENDERS: usize = 3;
const FIRST_CONTROL: usize = 32;
/// The range of child processes exceeds twice their maximum number, as does that of workers.
const FIRST_CHILD: usize = 64;
const FIRST_WORKER: usize = 1 << 20;
/// The last range, since connections are the most numerous.
const FIRST_CONNECTION: usize = 1 << 24;

impl EventSource {
    pub(crate) fn token(self) -> Token {
        let token = Token(match self {
            Self::Listener => LISTENER,
            Self::Zmq => ZMQ,
            Self::Signals => SIGNALS,
            Self::ZmqSenders => ZMQ_SENDERS,
            Self::Control(number) => FIRST_CONTROL + number,
            Self::Child(number) => FIRST_CHILD + number,
            Self::Worker(number) => FIRST_WORKER + number,
            Self::Connection(slot) => FIRST_CONNECTION + slot,
        });
        debug_assert_eq!(Self::of(token), Some(self), "outside its range");
        token
    }

    /// The source of this token; `None` if it is not in use.
    #[inline]
    pub(crate) fn of(Token(token): Token) -> Option<Self> {
        Some(match token {
            FIRST_CONNECTION.. => Self::Connection(token - FIRST_CONNECTION),
            FIRST_WORKER.. => Self::Worker(token - FIRST_WORKER),
            FIRST_CHILD.. => Self::Child(token - FIRST_CHILD),
            FIRST_CONTROL.. => Self::Control(token - FIRST_CONTROL),
            LISTENER => Self::Listener,
            ZMQ => Self::Zmq,
            SIGNALS => Self::Signals,
            ZMQ_SENDERS => Self::ZmqSenders,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_own_token() {
        let ranges = [
            (EventSource::Control as fn(usize) -> EventSource, FIRST_CHILD - FIRST_CONTROL),
            (EventSource::Child, FIRST_WORKER - FIRST_CHILD),
            (EventSource::Worker, FIRST_CONNECTION - FIRST_WORKER),
            (EventSource::Connection, usize::MAX - FIRST_CONNECTION),
        ];
        let ends = ranges.into_iter().flat_map(|(source, length)| {
            [0, 1, length / 2, length - 1].map(|number| (source(number), source))
        });
        let sources = ends.map(|(source, _)| source).chain([
            EventSource::Listener,
            EventSource::Zmq,
            EventSource::Signals,
            EventSource::ZmqSenders,
        ]);
        let mut tokens = std::collections::BTreeSet::new();
        for source in sources {
            let token = source.token();
            assert!(tokens.insert(token), "{source:?} shares its token");
            assert_eq!(EventSource::of(token), Some(source));
        }
        assert_eq!(tokens.len(), 4 * ranges.len() + 4);
    }

    #[test]
    fn unused_tokens_have_no_source() {
        for token in ZMQ_SENDERS + 1..FIRST_CONTROL {
            assert_eq!(EventSource::of(Token(token)), None);
        }
    }

    #[test]
    #[should_panic(expected = "outside its range")]
    fn a_number_beyond_the_range_of_its_source_is_detected() {
        EventSource::Control(FIRST_CHILD - FIRST_CONTROL).token();
    }
}
