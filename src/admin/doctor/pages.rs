//! The parameters that EspoCRM's pages receive. PHP reads all parameters; pages do not receive
//! those that an internal configuration file defines.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Stop;
use super::php;
use super::report::Finding;
use crate::admin::doctor::public_address::PublicAddress;
use crate::espocrm::{EspoSettings, Installation};

/// A parameter that pages need, and the internal file that defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Internal {
    name: String,
    file: String,
}

const STEP: &str = "pages";

/// The parameters that internal files define, read by PHP.
///
/// # Errors
/// If PHP could not read the files.
pub(super) fn internal(espocrm: &Installation, stop: Stop<'_>) -> Result<Vec<Internal>, String> {
    let answer = php::run_task(espocrm, &json!({"task": "internal"}), stop)?;
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
                format!("The parameters that EspoCRM's pages receive are unknown: {error}"),
            );
        }
    };
    let site = espo_settings.text("siteUrl").unwrap_or_default();
    let address = |url: Option<String>| PublicAddress::of(&site, url.as_deref()).ok();
    let (wanted, used) =
        (address(espo_settings.text("webSocketUrl")), address(url(espo_settings, internal)));
    judge_addresses(internal, wanted.as_ref(), used.as_ref())
}

/// `wanted`: the address in EspoCRM's configuration. `used`: the address that pages use.
fn judge_addresses(
    internal: &[Internal],
    wanted: Option<&PublicAddress>,
    used: Option<&PublicAddress>,
) -> Finding {
    let is_used = |it: &&Internal| it.name != "webSocketUrl" || wanted.is_some();
    let internal: Vec<&Internal> = internal.iter().filter(is_used).collect();
    if internal.is_empty() {
        return Finding::ok(STEP, "EspoCRM's pages receive useWebSocket and webSocketUrl");
    }
    let list = internal.iter().map(|it| format!("{} ({})", it.name, it.file));
    let mut found = format!(
        "EspoCRM's pages do not receive {}, because only PHP reads internal files",
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
    fix += "Then reload the pages. Pages do not receive a parameter that both files define, so it \
            must not remain in the internal file.";
    let is_off = internal.iter().any(|it| it.name == "useWebSocket");
    if !is_off && wanted == used {
        return Finding::warning(STEP, found, fix);
    }
    if is_off {
        found += "; pages do not connect";
    } else if let Some(used) = used {
        found = found + "; pages connect to " + &used.to_string();
    }
    Finding::failure(STEP, found, fix)
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    fn judged(names: &[&str], url: &str) -> Finding {
        let item = |name: &&str| json!({"name": name, "file": "data/config-internal.php"});
        let list: Vec<_> = names.iter().map(item).collect();
        let internal = read(&json!({"internal": list}));
        let address = |url: Option<&str>| PublicAddress::of("https://crm", url).ok();
        judge_addresses(&internal, address(Some(url)).as_ref(), address(None).as_ref())
    }

    #[test]
    fn parameters_that_pages_need_must_not_be_internal() {
        let default = "wss://crm/wss";
        assert_eq!(judged(&[], "wss://ws/").state, State::Ok);
        let finding = judged(&["useWebSocket"], default);
        assert_eq!(finding.state, State::Failure);
        assert!(finding.found.ends_with("do not connect"), "{}", finding.found);
        let finding = judged(&["webSocketUrl"], "wss://ws/");
        assert_eq!(finding.state, State::Failure);
        assert!(finding.found.ends_with("pages connect to wss://crm/wss"), "{}", finding.found);
        assert!(finding.fix.starts_with("Remove webSocketUrl from data/config-internal.php"));
        // Without the parameter, pages connect to the same address.
        assert_eq!(judged(&["webSocketUrl"], default).state, State::Warning);
        // An empty webSocketUrl.
        assert_eq!(judged(&["webSocketUrl"], "").state, State::Ok);
        assert_eq!(read(&json!({"internal": [7, {"name": "x"}]})), []);
    }
}
