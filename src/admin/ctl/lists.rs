//! Lists as tables, and messages as lines.

use serde_json::Value as Json;

use super::users::Names;
use super::{grouped, number, plural, printable, text};
use crate::engine::protocol::control::List;

/// Characters per cell. A topic may have 512.
const MAX_CELL: usize = 100;

/// The name of a list, in the path of the request and in the answer.
pub(super) fn name(list: List) -> &'static str {
    match list {
        List::Users => "users",
        List::Topics => "topics",
        List::Connections => "connections",
    }
}

/// The ids of the users in an answer.
pub(super) fn users(list: List, answer: &Json) -> impl Iterator<Item = &str> {
    let items = answer.get(name(list)).and_then(Json::as_array).into_iter().flatten();
    items.filter_map(|item| item.get("user")?.as_str())
}

/// Adds the field `name` to each item with a user; `null` if the name is unknown.
pub(super) fn add_names(list: List, answer: &mut Json, names: &Names) {
    let items = answer.get_mut(name(list)).and_then(Json::as_array_mut);
    for item in items.into_iter().flatten().filter_map(Json::as_object_mut) {
        let name = item.get("user").and_then(Json::as_str).and_then(|user| names.get(user));
        let name = name.filter(|name| name.is_string()).cloned().unwrap_or_default();
        item.insert("name".to_owned(), name);
    }
}

/// An answer as a table. Numbers are right-aligned; the columns with the longest cells come last.
pub(super) fn table(list: List, answer: &Json) -> String {
    let name = name(list);
    let mut head = match list {
        List::Users => vec!["CONNECTIONS", "USER"],
        List::Topics => vec!["RECEIVERS", "TOPIC"],
        List::Connections => vec!["ID", "SINCE", "TOPICS", "BUFFERED", "STAGE", "ADDRESS", "USER"],
    };
    let empty = Vec::new();
    let items = answer.get(name).and_then(Json::as_array).unwrap_or(&empty);
    let has_names = items.iter().any(|item| item.get("name").is_some_and(Json::is_string));
    if has_names {
        head.push("NAME");
    }
    let count = |item: &Json, field: &str| grouped(number(item, field));
    let mut rows: Vec<Vec<String>> = vec![head.iter().map(|&cell| cell.to_owned()).collect()];
    rows.extend(items.iter().map(|item| match list {
        List::Users => vec![count(item, "/connections"), text(item, "/user")],
        List::Topics => vec![count(item, "/receivers"), text(item, "/topic")],
        List::Connections => vec![
            number(item, "/id").to_string(),
            span(number(item, "/seconds")),
            count(item, "/subscriptions"),
            count(item, "/buffered_bytes"),
            text(item, "/stage"),
            text(item, "/address"),
            text(item, "/user"),
        ],
    }));
    if has_names {
        for (row, item) in rows.iter_mut().skip(1).zip(items) {
            row.push(text(item, "/name"));
        }
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).min(MAX_CELL)
        })
        .collect();
    let numbers = if list == List::Connections { 4 } else { 1 };
    let mut shown = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let cell: String = cell.chars().take(MAX_CELL).collect();
            let cell = if column < numbers {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            };
            line = line + &cell + "  ";
        }
        shown = shown + line.trim_end() + "\n";
    }
    let total = number(answer, "/total");
    if total > items.len() as u64 {
        shown = format!("{shown}{} of {} {name} are shown.\n", items.len(), grouped(total));
    }
    shown
}

/// A delivered or dropped message as a line.
pub(super) fn message(line: &Json) -> String {
    if let Some(lost) = line.get("lost").and_then(Json::as_u64) {
        return format!(
            "({} not shown: the output is read too slowly)",
            plural(lost, "message", "messages")
        );
    }
    // Without the date, which is today's.
    let at = text(line, "/at");
    let time = at.split(['T', 'Z']).nth(1).unwrap_or(&at);
    if let Some(reason) = line.get("rejected").and_then(Json::as_str) {
        return format!("{time}  DROPPED: {}", printable(reason));
    }
    let user = match line.get("user").and_then(Json::as_str) {
        Some(user) => format!("to user {}", printable(user)),
        None => "to all".to_owned(),
    };
    format!(
        "{time}  {}  {user}  {}  {}",
        text(line, "/topic"),
        plural(number(line, "/receivers"), "receiver", "receivers"),
        plural(number(line, "/bytes"), "byte", "bytes"),
    )
}

/// A duration in its two largest units.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_are_aligned() {
        let users = json!({"total": 3, "users": [
            {"user": "al\u{1b}ice", "connections": 1_200}, {"user": "bob", "connections": 1},
        ]});
        assert_eq!(
            table(List::Users, &users),
            "CONNECTIONS  USER\n      1,200  al\\u{1b}ice\n          1  bob\n2 of 3 users are \
             shown.\n"
        );
        let connections = json!({"total": 1, "connections": [{
            "id": 57, "user": null, "address": "192.0.2.1", "stage": "login", "seconds": 61,
            "subscriptions": 2, "buffered_bytes": 300,
        }]});
        assert_eq!(
            table(List::Connections, &connections),
            "ID      SINCE  TOPICS  BUFFERED  STAGE  ADDRESS    USER\n\
             57  1 min 1 s       2       300  login  192.0.2.1  -\n"
        );
        assert_eq!(table(List::Topics, &json!({})), "RECEIVERS  TOPIC\n");
    }

    #[test]
    fn names_are_shown_next_to_ids_if_any_is_known() {
        let mut users = json!({"total": 2, "users": [
            {"user": "6b03", "connections": 2}, {"user": "6b04", "connections": 1},
        ]});
        assert_eq!(super::users(List::Users, &users).collect::<Vec<_>>(), ["6b03", "6b04"]);
        let mut without = users.clone();
        add_names(List::Users, &mut without, &Names::new());
        assert_eq!(without["users"][0]["name"], Json::Null);
        assert_eq!(table(List::Users, &without), table(List::Users, &users));
        let names = json!({"6b03": "al\u{1b}ice\n", "6b04": 7, "6b05": "eve"});
        add_names(List::Users, &mut users, names.as_object().unwrap());
        assert_eq!(
            table(List::Users, &users),
            "CONNECTIONS  USER  NAME\n          2  6b03  al\\u{1b}ice\\n\n          1  6b04  -\n"
        );
        let mut connections = json!({"connections": [{"user": null}, {"user": "6b03"}, 7]});
        add_names(List::Connections, &mut connections, names.as_object().unwrap());
        let expected =
            json!([{"user": null, "name": null}, {"user": "6b03", "name": "al\u{1b}ice\n"}, 7]);
        assert_eq!(connections["connections"], expected);
        assert!(table(List::Connections, &connections).starts_with("ID  SINCE  TOPICS"));
    }

    #[test]
    fn a_message_is_one_line() {
        let line = json!({"at": "2026-01-31T12:59:59.999Z", "topic": "a.b\n", "user": "u",
            "receivers": 2, "bytes": 1});
        assert_eq!(message(&line), "12:59:59.999  a.b\\n  to user u  2 receivers  1 byte");
        let line = json!({"at": "2026-01-31T12:59:59.999Z", "rejected": "it is too big"});
        assert_eq!(message(&line), "12:59:59.999  DROPPED: it is too big");
        let expected = "(1 message not shown: the output is read too slowly)";
        assert_eq!(message(&json!({"lost": 1})), expected);
    }

    #[test]
    fn a_duration_is_shown_in_two_units() {
        for (seconds, text) in [
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3_661, "1 h 1 min"),
            (90_000, "1 d 1 h"),
            (8_640_000, "100 d 0 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
