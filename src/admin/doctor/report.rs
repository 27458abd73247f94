//! What was found, step by step.

use std::borrow::Cow;
use std::io::Write;

use serde_json::{Map, Value};

use crate::engine::printable::{plural, printable, printable_json};
use crate::platform::exit::{Exit, Result};

/// How a step looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// As it should.
    Good,
    /// It works, or may do so, but somebody should look at it.
    Doubt,
    /// Real-time does not work because of it.
    Bad,
    /// It could not be looked at.
    Unknown,
}

/// One step, and what was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Its name, for machines.
    pub step: &'static str,
    pub state: State,
    pub found: Cow<'static, str>,
    /// What to do, in lines.
    pub fix: Cow<'static, str>,
}

/// All findings, told as they come.
pub(super) struct Report {
    json: bool,
    findings: Vec<Finding>,
    /// Steps that were skipped one after the other, and why: one line for people.
    skipped: Option<(usize, String)>,
}

impl Finding {
    pub(super) fn good(step: &'static str, found: impl Into<Cow<'static, str>>) -> Self {
        Self::new(step, State::Good, found.into(), Cow::Borrowed(""))
    }

    pub(super) fn unknown(step: &'static str, found: impl Into<Cow<'static, str>>) -> Self {
        Self::new(step, State::Unknown, found.into(), Cow::Borrowed(""))
    }

    pub(super) fn doubt(
        step: &'static str,
        found: impl Into<Cow<'static, str>>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(step, State::Doubt, found.into(), fix.into())
    }

    pub(super) fn bad(
        step: &'static str,
        found: impl Into<Cow<'static, str>>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(step, State::Bad, found.into(), fix.into())
    }

    fn new(
        step: &'static str,
        state: State,
        found: Cow<'static, str>,
        fix: Cow<'static, str>,
    ) -> Self {
        Self { step, state, found, fix }
    }

    pub(super) fn is_good(&self) -> bool {
        self.state == State::Good
    }

    fn text(&self) -> String {
        let mut text = String::from(match self.state {
            State::Good => "\u{2713} ",
            State::Doubt => "! ",
            State::Bad => "\u{2717} ",
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
            State::Good => "ok",
            State::Doubt => "warning",
            State::Bad => "failure",
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

    /// Adds a step, and tells it unless all are told together. Whether it is good.
    pub(super) fn add(&mut self, finding: Finding) -> bool {
        self.tell_skipped();
        if !self.json {
            say(&finding.text());
        }
        let is_good = finding.is_good();
        self.findings.push(finding);
        is_good
    }

    /// Adds steps that cannot be examined.
    pub(super) fn skip(&mut self, steps: &[(&'static str, &str)], because: &str) {
        self.tell_skipped();
        for (step, what) in steps {
            self.findings.push(Finding::unknown(step, [what, ": ", because].concat()));
        }
        self.skipped = Some((steps.len(), because.to_owned()));
    }

    /// Adds steps that depend on those skipped last.
    pub(super) fn skip_further(&mut self, steps: &[(&'static str, &str)], because: &str) {
        let before = self.skipped.take();
        self.skip(steps, because);
        if let Some((count, because)) = before {
            self.skipped = Some((count + steps.len(), because));
        }
    }

    /// Prints one line for all steps that were skipped since the last one.
    fn tell_skipped(&mut self) {
        let Some(line) = self.skipped_line() else { return };
        self.skipped = None;
        if !self.json {
            say(&line);
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

    /// Tells what has not been told yet.
    ///
    /// # Errors
    /// If real-time does not work.
    pub(super) fn end(mut self) -> Result<()> {
        self.tell_skipped();
        if self.json {
            // A line for each, for those who read it after all.
            let list: Vec<_> = self.findings.iter().map(Finding::line).collect();
            say(&["[\n", &list.join(",\n"), "\n]\n"].concat());
        }
        let summary = self.summary()?;
        if !self.json {
            say(&["\n", &summary, "\n"].concat());
        }
        Ok(())
    }

    fn summary(&self) -> Result<String> {
        let has = |state| self.findings.iter().any(|it| it.state == state);
        if has(State::Bad) {
            return Err(Exit::error(
                "Something fails. Mend the first \u{2717} first, and try again.",
            ));
        }
        let doubts = if has(State::Doubt) { " But have a look at what is marked by !" } else { "" };
        Ok(["Real-time works, as far as can be seen from here.", doubts].concat())
    }
}

/// A time in whole units of so many seconds: `2 days`.
pub(super) fn span(seconds: i64, length: i64, unit: &str) -> String {
    match u64::try_from(seconds / length) {
        Err(_) | Ok(0) => format!("less than one {unit}"),
        Ok(count) => plural(count, unit, &format!("{unit}s")),
    }
}

/// That nobody listens is no reason to stop.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_its_fix_is_indented_beneath_it() {
        assert_eq!(Finding::good("a", "It runs").text(), "\u{2713} It runs\n");
        assert_eq!(Finding::unknown("a", "Not seen").text(), "\u{2013} Not seen\n");
        let doubt = Finding::doubt("a", "Odd\u{1b}[2J", "Do this:\n  so\u{7}");
        assert_eq!(doubt.text(), "! Odd\\u{1b}[2J\n    Do this:\n      so\\u{7}\n");
        let line = r#"{"fix":"a\n\u202e","found":"Odd\u001b[2J","#;
        assert!(Finding::doubt("a", "Odd\u{1b}[2J", "a\n\u{202e}").line().starts_with(line));
        let bad = Finding::bad("a", "Broken", "Mend it");
        assert_eq!(bad.text(), "\u{2717} Broken\n    Mend it\n");
        let json = r#"{"step":"a","state":"failure","found":"Broken","fix":"Mend it"}"#;
        assert_eq!(bad.json(), serde_json::from_str::<Value>(json).unwrap());
        assert_eq!(Finding::good("a", "").json()["fix"], Value::Null);
    }

    #[test]
    fn only_a_fault_is_a_failure() {
        let mut report = Report::new(true);
        assert!(report.add(Finding::good("a", "")));
        assert!(!report.add(Finding::doubt("b", "", "")));
        report.skip(&[("c", "The rest")], "b is odd");
        assert_eq!(report.findings[2].found, "The rest: b is odd");
        assert!(report.summary().unwrap().ends_with('!'));
        report.add(Finding::bad("d", "", ""));
        assert!(report.summary().is_err());
    }

    #[test]
    fn times_are_whole_units() {
        let shown = [-1, 0, 3_599, 3_600, 7_300].map(|seconds| span(seconds, 3_600, "hour"));
        let less = "less than one hour";
        assert_eq!(shown, [less, less, less, "1 hour", "2 hours"]);
    }

    #[test]
    fn steps_that_are_skipped_together_are_one_line() {
        let mut report = Report::new(true);
        assert_eq!(report.skipped_line(), None);
        report.skip(&[("a", "First")], "no EspoCRM");
        assert_eq!(report.skipped_line().unwrap(), "\u{2013} First: no EspoCRM\n");
        report.skip_further(&[("b", "Second"), ("c", "Third")], "no settings");
        assert_eq!(report.skipped_line().unwrap(), "\u{2013} 3 steps were skipped: no EspoCRM\n");
        assert_eq!(report.findings.len(), 3);
        report.skip(&[("d", "Fourth")], "no systemd");
        assert_eq!(report.skipped_line().unwrap(), "\u{2013} Fourth: no systemd\n");
        report.add(Finding::good("e", ""));
        assert_eq!(report.skipped_line(), None);
    }
}
