//! Code of the site that tries to use the terminal of the administrator who started the daemon.

use std::process::{Command, Stdio};

use crate::support::{Daemon, Standin, command, eventually};

/// Records what the code could do, and leaves traces on the terminal if possible: as output and as
/// input.
const HOSTILE: &str = r#"
(function () {
    $terminal = @fopen('/dev/tty', 'r+');
    $line = PHP_SAPI . ($terminal ? " has a terminal\n" : " has none\n");
    file_put_contents(__DIR__ . '/data/standin/terminal', $line, FILE_APPEND);
    if ($terminal) {
        fwrite($terminal, "HOSTILE-OUTPUT\n");
    }
    $insert = 'open(T, "+<", "/dev/tty") or exit; ioctl(T, 0x5412, $_) for split(//, "HOSTILE-INPUT\n");';
    shell_exec('perl -e ' . escapeshellarg($insert) . ' > /dev/null 2>&1');
})();
"#;

fn standin() -> Standin {
    let standin = Standin::new();
    let file = standin.path().join("bootstrap.php");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + HOSTILE).unwrap();
    standin
}

fn traces(standin: &Standin) -> Vec<String> {
    let text = std::fs::read_to_string(standin.path().join("data/standin/terminal"));
    text.unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A command that runs in its own terminal and outputs what appears there.
fn in_terminal(standin: &Standin, arguments: &str) -> Command {
    let program = command().get_program().to_str().unwrap().to_owned();
    let root = standin.path().display();
    let mut script = Command::new("script");
    // Injected input is echoed; line ends are the same as elsewhere.
    let line = format!("stty -onlcr; exec {program} {arguments} --espocrm {root}");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]);
    script.env("TMPDIR", standin.path());
    script
}

#[test]
fn php_has_no_terminal_when_settings_are_read() {
    let standin = standin();
    let mut script = in_terminal(&standin, "config --config /dev/null");
    let output = script.stdin(Stdio::null()).stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("max_connections"), "{text}");
    assert!(!text.contains("HOSTILE"), "{text}");
    assert_eq!(traces(&standin), ["cli has none"]);
}

#[test]
fn php_has_no_terminal_when_access_is_checked() {
    for (flag, check) in [("--worker", "cli-server has none"), ("--no-worker", "cli has none")] {
        let standin = standin();
        let arguments =
            "run --config /dev/null --debug --control off --listen 127.0.0.1 --print-addresses";
        let flag = if flag == "--worker" { "" } else { flag };
        let mut script = in_terminal(&standin, &format!("{arguments} {flag}"));
        let mut process = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let terminal = process.stdout.take().unwrap();
        let daemon = Daemon::watch(process, terminal);
        let mut tab = daemon.connect("alice");
        tab.subscribe("recordUpdate.Account.1");
        eventually("it is granted", || daemon.count("add topic recordUpdate.Account.1") == 1);
        assert_eq!(daemon.count("HOSTILE"), 0, "{:?}", daemon.log());
        let traces = traces(&standin);
        assert_eq!(traces.last().map(String::as_str), Some(check), "{traces:?}");
        assert!(traces.iter().all(|line| line.ends_with("has none")), "{traces:?}");
    }
}
