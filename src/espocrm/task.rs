//! Tasks for PHP: a script of ours, run in EspoCRM's root by EspoCRM's user, prints its answer in one
//! line of JSON.

use std::time::Duration;

use serde_json::Value;

use super::Installation;
use crate::engine::checks::verdict::ProcessExit;
use crate::espocrm::process::Children;

/// A script that does tasks.
#[derive(Debug)]
pub struct Script {
    /// Its source.
    pub text: &'static str,
    /// The environment variable that contains the task as JSON.
    pub variable: &'static str,
    /// The line of its output that contains the answer begins with this.
    pub mark: &'static str,
    /// It is killed after this time.
    pub timeout: Duration,
}

impl Script {
    /// Has the script do a task, and returns its answer.
    ///
    /// # Errors
    /// Why there is none.
    pub fn run(
        &self,
        espocrm: &Installation,
        task: &Value,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Value, String> {
        let mut command = espocrm.script(self.text).map_err(|error| error.to_string())?;
        command.env(self.variable, task.to_string());
        let finished = Children::run(command, self.timeout, stop)
            .map_err(|error| espocrm.php_not_started(&error).to_string())?;
        let complaint = finished.first_line();
        let detail = if complaint.is_empty() { String::new() } else { format!(": {complaint}") };
        let how = match &finished.exit {
            Ok(ProcessExit::Status(0)) => match self.read(&finished.stdout) {
                Some(answer) => return Ok(answer),
                None => "PHP printed something unexpected".to_owned(),
            },
            Ok(ProcessExit::Status(status)) => format!("PHP ended with status {status}"),
            Ok(ProcessExit::Signal(signal)) => format!("PHP was ended by signal {signal}"),
            Err(failure) => failure.to_string(),
        };
        Err(how + &detail)
    }

    fn read(&self, output: &[u8]) -> Option<Value> {
        let lines = output.split(|byte| *byte == b'\n');
        let mut answers = lines.filter_map(|line| line.strip_prefix(self.mark.as_bytes()));
        serde_json::from_slice(answers.next_back()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_scripts_line_is_found_among_others() {
        let script =
            Script { text: "", variable: "", mark: "our-mark:", timeout: Duration::default() };
        let output = b"Warning: x\nour-mark:{\"ms\":7}\n";
        assert_eq!(script.read(output), Some(json!({"ms": 7})));
        for output in [&b""[..], b"our-mark:", b"our-mark:{\xff", b" our-mark:{}"] {
            assert_eq!(script.read(output), None);
        }
    }
}
