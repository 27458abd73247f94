//! The naive model that the engine is compared with.

use std::collections::BTreeMap;

use espocrm_websocket::engine::checks::check::Ticket;
use espocrm_websocket::engine::id::ConnId;
use espocrm_websocket::engine::time::Time;

/// All open connections.
#[derive(Default)]
pub(super) struct Model {
    pub conns: BTreeMap<ConnId, Connection>,
}

pub(super) struct Connection {
    pub user: String,
    pub token: String,
    pub authenticated: bool,
    /// The ticket of the running recheck of its token.
    pub recheck: Option<Ticket>,
    /// When the last recheck of its token was requested.
    pub requested: Option<Time>,
    /// When the last check of its token ended, with or without a verdict.
    pub rechecked: Time,
    pub subscriptions: BTreeMap<String, Status>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Waits for the login, or for the settings.
    Pending,
    /// Waits for room in the check queue.
    Delayed,
    /// Waits for the verdict of this ticket.
    Waiting(Ticket),
    Granted,
    /// As `Granted`, while this ticket's check is in progress.
    Rechecking(Ticket),
}

impl Status {
    pub(super) fn is_granted(self) -> bool {
        matches!(self, Self::Granted | Self::Rechecking(_))
    }

    /// The ticket that it waits for.
    pub(super) fn ticket(self) -> Option<Ticket> {
        match self {
            Self::Waiting(ticket) | Self::Rechecking(ticket) => Some(ticket),
            Self::Pending | Self::Delayed | Self::Granted => None,
        }
    }
}

impl Connection {
    /// Whether it waits for the verdict of this ticket.
    pub(super) fn waits_for(&self, ticket: Ticket) -> bool {
        let login = ticket.serial == Ticket::AUTHENTICATION && !self.authenticated;
        let mut topics = self.subscriptions.values();
        login || self.recheck == Some(ticket) || topics.any(|it| it.ticket() == Some(ticket))
    }
}

/// The rules of the simulated EspoCRM, for an edition that a reload changes.
///
/// `open` never needs a check; `maybe` needs one in odd editions; `late` exists in editions that
/// are divisible by three; the command of `record` changes with every edition that is divisible by
/// four.
pub(super) fn rule(edition: u32, topic: &str) -> Rule {
    let (category, record) = topic.split_once('.').unwrap_or((topic, ""));
    let is_record = !record.is_empty() && !record.contains(['.', ' ']);
    match category {
        "maybe" if edition % 2 == 1 => Rule::Check(format!("Maybe {{user}} {edition}")),
        "open" | "maybe" => Rule::Open,
        "late" if edition.is_multiple_of(3) => Rule::Check("Late {user}".to_owned()),
        "record" if is_record => Rule::Check(format!("Record{} {{user}} {record}", edition / 4)),
        "record" => Rule::Bad,
        _ => Rule::Unknown,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Open,
    /// A check with this command, in which `{user}` is replaced.
    Check(String),
    /// A topic of a category, but malformed.
    Bad,
    Unknown,
}

/// The same categories in the format of EspoCRM's metadata.
pub(super) fn categories(edition: u32) -> serde_json::Value {
    let mut categories = serde_json::json!({
        "open": [],
        "maybe": {},
        "record": {
            "paramList": ["id"],
            "accessCheckCommand": format!("Record{} :userId :id", edition / 4),
        },
    });
    if edition % 2 == 1 {
        categories["maybe"] =
            serde_json::json!({"accessCheckCommand": format!("Maybe :userId {edition}")});
    }
    if edition.is_multiple_of(3) {
        categories["late"] = serde_json::json!({"accessCheckCommand": "Late :userId"});
    }
    categories
}

impl Model {
    /// The receivers of a message, in order.
    pub(super) fn receivers(&self, topic: &str, user: Option<&str>) -> Vec<ConnId> {
        let may_see = |conn: &Connection| {
            conn.authenticated
                && conn.subscriptions.get(topic).is_some_and(|status| status.is_granted())
                && user.is_none_or(|user| user == conn.user)
        };
        self.conns.iter().filter(|(_, conn)| may_see(conn)).map(|(id, _)| *id).collect()
    }

    /// Number of tickets that wait for a verdict.
    pub(super) fn waiting(&self) -> usize {
        let waits = |conn: &Connection| {
            let statuses = conn.subscriptions.values();
            let topics = statuses.filter(|status| status.ticket().is_some()).count();
            topics + usize::from(!conn.authenticated) + usize::from(conn.recheck.is_some())
        };
        self.conns.values().map(waits).sum()
    }
}
