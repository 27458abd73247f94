//! `espocrm-websocket doctor` reports what is in order and names each cause of a failure.

mod delivery;
mod espocrm;
mod host;
mod php;
mod ports;
mod public_url;
mod side_effects;
mod site;

use site::Site;

/// A site at localhost is not reachable for other machines; only this is reported here.
#[test]
fn every_step_is_good_for_a_healthy_site() {
    let site = Site::healthy();
    let diagnosis = site.examine();
    let odd: Vec<_> = diagnosis.steps.iter().filter(|step| step.state != "ok").collect();
    assert_eq!(odd.len(), 1, "{odd:#?}");
    assert_eq!((&*odd[0].name, &*odd[0].state), ("address", "warning"));
    assert_eq!(diagnosis.status, 0);
    diagnosis.good("public-url", "through nginx");
    diagnosis.good("message", "arrives at the daemon");
    diagnosis.good("worker", "once it is warm");
    diagnosis.good("idle-timeout", "after 60 s (proxy_read_timeout)");
}

#[test]
fn text_output_has_a_line_per_step_with_the_fix_below() {
    let site = Site::healthy();
    let text = site.text_output(&[]);
    assert!(text.contains("\u{2713} useWebSocket is on\n"), "{text}");
    assert!(text.contains("! Browsers connect to wss://localhost:"), "{text}");
    assert!(text.contains("\n    Only browsers on this machine can reach this address."), "{text}");
    assert!(text.contains("\nReal-time works, as far as this machine can determine."), "{text}");
    let steps = site.examine().steps.len();
    let marks = ["\u{2713} ", "! ", "\u{2717} ", "\u{2013} "];
    let lines = text.lines().filter(|line| marks.iter().any(|mark| line.starts_with(mark)));
    assert_eq!(lines.count(), steps);
}

#[test]
fn unknown_arguments_are_reported() {
    let site = Site::healthy();
    let output = site.run(&["--port", "1"]);
    assert_eq!(output.status.code(), Some(2));
    let output = site.run(&["--root", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
}
