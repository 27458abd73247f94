//! Settings: from EspoCRM, in the format of the probe, and from the daemon's configuration file.
//! The first byte chooses.
#![no_main]

use std::sync::Once;

use espocrm_websocket::engine::espocrm::category::Rule;
use espocrm_websocket::espocrm::EspoSettings;
use espocrm_websocket::settings::{Layers, Overrides, Settings};
use libfuzzer_sys::fuzz_target;
use log::{LevelFilter, Log, Metadata, Record};
use serde_json::{Value, json};

/// Replaces the passphrase; must never appear in any output.
const SECRET: &str = "correct horse battery staple";

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    match kind % 3 {
        0 => {
            let _ = EspoSettings::from_output(bytes);
        }
        1 => probe(bytes),
        _ => file(bytes),
    }
});

/// The probe's JSON output.
fn probe(bytes: &[u8]) {
    let Ok(mut json) = serde_json::from_slice::<Value>(bytes) else { return };
    if json.to_string().contains(SECRET) {
        return;
    }
    if let Some(Value::Object(parameters)) = json.get_mut("parameters") {
        parameters.insert("webSocketSslCertificatePassphrase".to_owned(), SECRET.into());
    }
    let output = format!("Warning: whatever\n\nespocrm-websocket-probe:{json}\nmore");
    let Some(espo_settings) = EspoSettings::from_output(output.as_bytes()) else {
        assert!(!json["parameters"].is_object());
        return;
    };
    expect_no_secret(&format!("{espo_settings:?}"));
    resolve(&Overrides::default(), &espo_settings);
    let own = "origins = ['same-site', 'https://x.example']\nlisten = '[::1]:1'\nworker = true";
    resolve(&Overrides::from_toml(own).unwrap(), &espo_settings);
    for (name, category) in espo_settings.categories.iter() {
        let topic = name.to_owned() + &".x".repeat(category.parameters.len());
        if let Ok(Rule::Check(template, parameters)) = espo_settings.categories.rule(&topic) {
            let arguments = template.arguments("user", &parameters);
            assert!(arguments.first().is_some_and(|it| !it.is_empty() && !it.starts_with('-')));
        }
    }
}

/// The daemon's configuration file.
fn file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Overrides::from_toml(text) {
        Ok(own) => resolve(&own, &EspoSettings::new(Default::default(), &json!({"open": []}))),
        Err(error) => {
            // One line for each mistake.
            for line in error.split('\n') {
                let number = line.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
                let number: usize = number.unwrap().0.parse().unwrap();
                assert!((1..=text.split('\n').count()).contains(&number), "{error}");
                expect_plain(line);
            }
        }
    }
}

fn resolve(own: &Overrides, espo_settings: &EspoSettings) {
    let settings = match Settings::resolve(&Layers::of_flags(own.clone()), espo_settings) {
        Ok(settings) => settings,
        Err(error) => {
            let error = error.to_string();
            expect_no_secret(&error);
            return expect_plain(&error);
        }
    };
    expect_no_secret(&format!("{settings:?}"));
    let shown = settings.to_string();
    expect_no_secret(&shown);
    shown.split('\n').for_each(expect_plain);
    let default =
        Settings::resolve(&Layers::default(), &EspoSettings::new(Default::default(), &json!({})));
    let tls =
        settings.tls.value.as_ref().map_or(0, |tls| {
            usize::from(tls.key.is_some()) + usize::from(tls.passphrase.is_some())
        });
    let expected = default.unwrap().to_string().lines().count() + tls;
    assert_eq!(shown.lines().count(), expected + settings.categories.iter().count(), "{shown}");
    capture_log();
    settings.log_doubts();
    settings.log_mode();
    assert!(settings.workers() <= settings.max_checks.value);
    assert!(settings.max_connections.value > 0 && settings.max_checks.value > 0);
    assert!(!settings.ping_interval.value.is_zero() && !settings.check_timeout.value.is_zero());
}

/// The line must not contain line feeds or control a terminal.
fn expect_plain(line: &str) {
    assert!(!line.contains(char::is_control), "{line:?}");
}

fn expect_no_secret(text: &str) {
    assert!(!text.contains(SECRET), "{text}");
}

fn capture_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(LevelFilter::Info);
    });
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // The daemon's logger escapes unprintable characters.
        expect_no_secret(&record.args().to_string());
    }

    fn flush(&self) {}
}
