//! The findings, one per step, for people or as JSON.

use std::borrow::Cow;
use std::io::Write;

use serde_json::{Map, Value};

use crate::engine::printable::{plural, printable, printable_json};
use crate::platform::exit::{Exit, Result};

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing to do.
    Ok,
    /// It works, or may work, but the administrator should check it.
    Warning,
    /// Real-time does not work because of this.
    Failure,
    /// The step could not be examined.
    Unknown,
}

/// The finding of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The name of the step in JSON.
    pub step: &'static str,
    pub state: State,
    pub found: Cow<'static, str>,
    /// What to do: zero or more lines.
    pub fix: Cow<'static, str>,
}

/// All findings. For people each is printed at once, as JSON all are printed at the end.
pub(super) struct Report {
    json: bool,
    findings: Vec<Finding>,
    /// The number of consecutive steps that were skipped, and why. People get one line for them.
    skipped: Option<(usize, String)>,
}

impl Finding {
    pub(super) fn ok(step: &'static str, found: impl Into<Cow<'static, str>>) -> Self {
        Self::new(step, State::Ok, found.into(), Cow::Borrowed(""))
    }

    pub(super) fn unknown(step: &'static str, found: impl Into<Cow<'static, str>>) -> Self {
        Self::new(step, State::Unknown, found.into(), Cow::Borrowed(""))
    }

    pub(super) fn warning(
        step: &'static str,
        found: impl Into<Cow<'static, str>>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(step, State::Warning, found.into(), fix.into())
    }

    pub(super) fn failure(
        step: &'static str,
        found: impl Into<Cow<'static, str>>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(step, State::Failure, found.into(), fix.into())
    }

    fn new(
        step: &'static str,
        state: State,
        found: Cow<'static, str>,
        fix: Cow<'static, str>,
    ) -> Self {
        Self { step, state, found, fix }
    }

    pub(super) fn is_ok(&self) -> bool {
        self.state == State::Ok
    }

    fn text(&self) -> String {
        let mut text = String::from(match self.state {
            State::Ok => "\u{2713} ",
            State::Warning => "! ",
            State::Failure => "\u{2717} ",
            State::Unknown => "\u{2013} ",
        });
        text.push_str(&printable(&self.found));
        text.push('\n');
        for line in self.fix.lines() {
            text.push_str("    ");
            text.push_str(&printable(line));
            text.push('\n');
        }
        text
    }

    fn json(&self) -> Value {
        let state = match self.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failure => "failure",
            State::Unknown => "unknown",
        };
        let fix = Some(&self.fix).filter(|fix| !fix.is_empty());
        let fix = fix.map_or(Value::Null, |fix| fix.to_string().into());
        let mut object = Map::new();
        object.insert("step".to_owned(), self.step.into());
        object.insert("state".to_owned(), state.into());
        object.insert("found".to_owned(), self.found.as_ref().into());
        object.insert("fix".to_owned(), fix);
        Value::Object(object)
    }

    fn line(&self) -> String {
        printable_json(&self.json().to_string())
    }
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json, findings: Vec::new(), skipped: None }
    }

    /// Adds a finding and prints it for people. Returns whether it is good.
    pub(super) fn add(&mut self, finding: Finding) -> bool {
        self.print_skipped();
        if !self.json {
            print(&finding.text());
        }
        let is_ok = finding.is_ok();
        self.findings.push(finding);
        is_ok
    }

    /// Adds steps that could not be examined.
    pub(super) fn skip(&mut self, steps: &[(&'static str, &str)], because: &str) {
        self.print_skipped();
        for (step, what) in steps {
            self.findings.push(Finding::unknown(step, [what, ": ", because].concat()));
        }
        self.skipped = Some((steps.len(), because.to_owned()));
    }

    /// Adds steps that depend on the steps that were skipped last.
    pub(super) fn skip_further(&mut self, steps: &[(&'static str, &str)], because: &str) {
        let before = self.skipped.take();
        self.skip(steps, because);
        if let Some((count, because)) = before {
            self.skipped = Some((count + steps.len(), because));
        }
    }

    /// Prints one line for all steps that were skipped since the last one.
    fn print_skipped(&mut self) {
        let Some(line) = self.skipped_line() else { return };
        self.skipped = None;
        if !self.json {
            print(&line);
        }
    }

    fn skipped_line(&self) -> Option<String> {
        match &self.skipped {
            None | Some((0, _)) => None,
            Some((1, _)) => self.findings.last().map(Finding::text),
            Some((count, because)) => {
                let found = format!("{count} steps were skipped: {because}");
                Some(Finding::unknown("", found).text())
            }
        }
    }

    /// Prints the rest of the report and the summary.
    ///
    /// # Errors
    /// If a step failed.
    pub(super) fn end(mut self) -> Result<()> {
        self.print_skipped();
        if self.json {
            // One line per finding keeps the output readable.
            let list: Vec<_> = self.findings.iter().map(Finding::line).collect();
            print(&["[\n", &list.join(",\n"), "\n]\n"].concat());
        }
        let summary = self.summary()?;
        if !self.json {
            print(&["\n", &summary, "\n"].concat());
        }
        Ok(())
    }

    fn summary(&self) -> Result<String> {
        let has = |state| self.findings.iter().any(|it| it.state == state);
        if has(State::Failure) {
            return Err(Exit::error(
                "At least one step failed. Fix the first \u{2717}, then run the doctor again.",
            ));
        }
        let warnings = if has(State::Warning) { " Check the warnings marked with !" } else { "" };
        Ok(["Real-time works, as far as this machine can determine.", warnings].concat())
    }
}

/// A time in whole units of `length` seconds: `2 days`.
pub(super) fn span(seconds: i64, length: i64, unit: &str) -> String {
    match u64::try_from(seconds / length) {
        Err(_) | Ok(0) => format!("less than one {unit}"),
        Ok(count) => plural(count, unit, &format!("{unit}s")),
    }
}

/// Prints to standard output. A closed output is no reason to stop.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_with_its_fix_indented_below() {
        assert_eq!(Finding::ok("a", "It runs").text(), "\u{2713} It runs\n");
        assert_eq!(Finding::unknown("a", "Not visible").text(), "\u{2013} Not visible\n");
        let odd = Finding::warning("a", "Odd\u{1b}[2J", "Run:\n  x\u{7}");
        assert_eq!(odd.text(), "! Odd\\u{1b}[2J\n    Run:\n      x\\u{7}\n");
        let line = r#"{"fix":"a\n\u202e","found":"Odd\u001b[2J","#;
        assert!(Finding::warning("a", "Odd\u{1b}[2J", "a\n\u{202e}").line().starts_with(line));
        let broken = Finding::failure("a", "Broken", "Fix it");
        assert_eq!(broken.text(), "\u{2717} Broken\n    Fix it\n");
        let json = r#"{"step":"a","state":"failure","found":"Broken","fix":"Fix it"}"#;
        assert_eq!(broken.json(), serde_json::from_str::<Value>(json).unwrap());
        assert_eq!(Finding::ok("a", "").json()["fix"], Value::Null);
    }

    #[test]
    fn only_a_failed_step_makes_the_report_fail() {
        let mut report = Report::new(true);
        assert!(report.add(Finding::ok("a", "")));
        assert!(!report.add(Finding::warning("b", "", "")));
        report.skip(&[("c", "The rest")], "b is odd");
        assert_eq!(report.findings[2].found, "The rest: b is odd");
        assert!(report.summary().unwrap().ends_with('!'));
        report.add(Finding::failure("d", "", ""));
        assert!(report.summary().is_err());
    }

    #[test]
    fn times_are_shown_in_whole_units() {
        let shown = [-1, 0, 3_599, 3_600, 7_300].map(|seconds| span(seconds, 3_600, "hour"));
        let less = "less than one hour";
        assert_eq!(shown, [less, less, less, "1 hour", "2 hours"]);
    }

    #[test]
    fn consecutive_skipped_steps_are_one_line() {
        let mut report = Report::new(true);
        assert_eq!(report.skipped_line(), None);
        report.skip(&[("a", "First")], "no EspoCRM");
        assert_eq!(report.skipped_line().unwrap(), "\u{2013} First: no EspoCRM\n");
        report.skip_further(&[("b", "Second"), ("c", "Third")], "no settings");
        assert_eq!(report.skipped_line().unwrap(), "\u{2013} 3 steps were skipped: no EspoCRM\n");
        assert_eq!(report.findings.len(), 3);
        report.skip(&[("d", "Fourth")], "no systemd");
        assert_eq!(report.skipped_line().unwrap(), "\u{2013} Fourth: no systemd\n");
        report.add(Finding::ok("e", ""));
        assert_eq!(report.skipped_line(), None);
    }
}
