//! What EspoCRM's pages receive. PHP sees all parameters; pages do not receive those that an internal
//! configuration file defines.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Stop;
use super::php;
use super::report::Finding;
use crate::admin::doctor::public_address::Place;
use crate::espocrm::{EspoSettings, Installation};

/// A parameter that pages need, and the internal file that defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Internal {
    name: String,
    file: String,
}

const STEP: &str = "pages";

/// Asks PHP which file defines what.
///
/// # Errors
/// Why that is not known.
pub(super) fn internal(espocrm: &Installation, stop: Stop<'_>) -> Result<Vec<Internal>, String> {
    let answer = php::ask(espocrm, &json!({"task": "internal"}), stop)?;
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        return Err(error.to_owned());
    }
    Ok(read(&answer))
}

fn read(answer: &Value) -> Vec<Internal> {
    let text = |item: &Value, name: &str| Some(item.get(name)?.as_str()?.to_owned());
    let items = answer.get("internal").and_then(Value::as_array).into_iter().flatten();
    let items = items
        .filter_map(|item| Some(Internal { name: text(item, "name")?, file: text(item, "file")? }));
    items.collect()
}

/// The `webSocketUrl` that pages receive.
pub(super) fn url(espo_settings: &EspoSettings, internal: &[Internal]) -> Option<String> {
    let is_internal = internal.iter().any(|it| it.name == "webSocketUrl");
    espo_settings.text("webSocketUrl").filter(|_| !is_internal)
}

pub(super) fn judge(
    espo_settings: &EspoSettings,
    internal: &Result<Vec<Internal>, String>,
) -> Finding {
    let internal = match internal {
        Ok(internal) => internal,
        Err(error) => {
            return Finding::unknown(
                STEP,
                format!("Which parameters EspoCRM's pages receive is not known: {error}"),
            );
        }
    };
    let site = espo_settings.text("siteUrl").unwrap_or_default();
    let place = |url: Option<String>| Place::of(&site, url.as_deref()).ok();
    let (wanted, used) =
        (place(espo_settings.text("webSocketUrl")), place(url(espo_settings, internal)));
    judge_places(internal, wanted.as_ref(), used.as_ref())
}

/// `wanted`: the address that EspoCRM's configuration names. `used`: the one that pages use.
fn judge_places(internal: &[Internal], wanted: Option<&Place>, used: Option<&Place>) -> Finding {
    let is_used = |it: &&Internal| it.name != "webSocketUrl" || wanted.is_some();
    let internal: Vec<&Internal> = internal.iter().filter(is_used).collect();
    if internal.is_empty() {
        return Finding::good(STEP, "EspoCRM's pages receive useWebSocket and webSocketUrl");
    }
    let list = internal.iter().map(|it| format!("{} ({})", it.name, it.file));
    let mut found = format!(
        "EspoCRM's pages do not receive {}: internal files are for PHP only",
        list.collect::<Vec<_>>().join(" and ")
    );
    let mut fix = String::new();
    for Internal { name, file } in &internal {
        let settings = match &**name {
            "useWebSocket" => ", or set it in EspoCRM, Administration, Settings",
            _ => "",
        };
        let _ =
            writeln!(fix, "Remove {name} from {file}, and add it to data/config.php{settings}.");
    }
    fix += "Then reload the pages. It must not remain in the internal file: pages do not receive a \
            parameter that both files define.";
    let is_off = internal.iter().any(|it| it.name == "useWebSocket");
    if !is_off && wanted == used {
        return Finding::doubt(STEP, found, fix);
    }
    if is_off {
        found += ", and pages do not connect";
    } else if let Some(used) = used {
        found = found + ", and pages connect to " + &used.to_string();
    }
    Finding::bad(STEP, found, fix)
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    fn judged(names: &[&str], url: &str) -> Finding {
        let item = |name: &&str| json!({"name": name, "file": "data/config-internal.php"});
        let list: Vec<_> = names.iter().map(item).collect();
        let internal = read(&json!({"internal": list}));
        let place = |url: Option<&str>| Place::of("https://crm", url).ok();
        judge_places(&internal, place(Some(url)).as_ref(), place(None).as_ref())
    }

    #[test]
    fn pages_need_what_an_internal_file_keeps_from_them() {
        let default = "wss://crm/wss";
        assert_eq!(judged(&[], "wss://ws/").state, State::Good);
        let finding = judged(&["useWebSocket"], default);
        assert_eq!(finding.state, State::Bad);
        assert!(finding.found.ends_with("do not connect"), "{}", finding.found);
        let finding = judged(&["webSocketUrl"], "wss://ws/");
        assert_eq!(finding.state, State::Bad);
        assert!(finding.found.ends_with("pages connect to wss://crm/wss"), "{}", finding.found);
        assert!(finding.fix.starts_with("Remove webSocketUrl from data/config-internal.php"));
        // They connect to the same address all the same.
        assert_eq!(judged(&["webSocketUrl"], default).state, State::Doubt);
        // An empty one.
        assert_eq!(judged(&["webSocketUrl"], "").state, State::Good);
        assert_eq!(read(&json!({"internal": [7, {"name": "x"}]})), []);
    }
}
