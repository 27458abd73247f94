//! One Docker Compose project.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{Client, Port, Standin, TempDir, eventually, notification};

/// The name of the service in the recipe.
const SERVICE: &str = "espocrm-websocket";

/// A project started from the recipe.
pub struct Project {
    dir: TempDir,
    port: Port,
}

/// The parts that every EspoCRM in Docker has besides the recipe: the web server's service, which
/// sends messages, and the volume.
const ESPOCRM: &str = "
  espocrm:
    image: espocrm/espocrm
    user: www-data
    command: [sleep, infinity]
    volumes:
      - espocrm:/var/www/html
      - TESTS:/tests:ro
volumes:
  espocrm:
    driver_opts:
      type: none
      o: bind
      device: ROOT
";

impl Project {
    /// Starts the recipe for this EspoCRM.
    pub fn up(standin: &Standin) -> Self {
        let project = Self { dir: TempDir::new("compose"), port: Port::reserve() };
        let mut text = recipe() + ESPOCRM;
        for (from, to) in [
            ("8081:8080", format!("{}:8080", project.port.address())),
            ("interval: 60s", "interval: 1s".to_owned()),
            ("start_period: 60s", "start_period: 1s".to_owned()),
            ("TESTS", concat!(env!("CARGO_MANIFEST_DIR"), "/tests").to_owned()),
            ("ROOT", standin.path().display().to_string()),
        ] {
            assert!(text.contains(from), "{from}: {text}");
            text = text.replace(from, &to);
        }
        std::fs::write(project.path().join("docker-compose.yml"), text).unwrap();
        let binary = env!("CARGO_BIN_EXE_espocrm-websocket");
        std::fs::copy(binary, project.path().join("espocrm-websocket")).unwrap();
        project.compose(&["up", "-d"]);
        project
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn restart(&self) {
        self.compose(&["restart", SERVICE]);
    }

    pub fn stop(&self) {
        self.compose(&["stop", SERVICE]);
    }

    /// Runs `docker-compose` and returns its output.
    fn compose(&self, arguments: &[&str]) -> String {
        self.compose_with_input(arguments, "")
    }

    fn compose_with_input(&self, arguments: &[&str], input: &str) -> String {
        let mut command = Command::new("docker-compose");
        command.current_dir(self.path()).args(arguments);
        printed(command, input)
    }

    /// What `docker inspect` reports about the daemon's container.
    pub fn inspect(&self, format: &str) -> String {
        let mut command = Command::new("docker");
        command.args(["inspect", "--format", format, &self.id()]);
        printed(command, "").trim().to_owned()
    }

    fn id(&self) -> String {
        self.compose(&["ps", "-q", "-a", SERVICE]).trim().to_owned()
    }

    pub fn health(&self) -> String {
        self.inspect("{{.State.Health.Status}}")
    }

    /// The complete log of the daemon. Docker Compose may add escape sequences.
    pub fn log(&self) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", "docker logs \"$1\" 2>&1", "sh", &self.id()]);
        printed(command, "")
    }

    /// Sends a signal to the daemon, not to the first process of its container, which is Docker's
    /// init.
    pub fn signal(&self, name: &str) {
        let init = self.inspect("{{.State.Pid}}");
        let mut pgrep = Command::new("pgrep");
        pgrep.args(["-P", &init]);
        let mut kill = Command::new("kill");
        kill.args(["-s", name, printed(pgrep, "").trim()]);
        printed(kill, "");
    }

    /// A tab of alice, which retries until it receives its welcome.
    pub fn connect(&self) -> Client {
        let mut tab = None;
        eventually("a tab is welcome", || {
            tab = Client::attempt(self.port.address());
            tab.is_some()
        });
        tab.unwrap()
    }

    /// Expects that the tab receives what EspoCRM sends to the name of the daemon's service.
    pub fn expect_event(&self, tab: &mut Client, number: usize) {
        tab.subscribe("newNotification");
        tab.expect_silence();
        let message = notification(number);
        let dsn = "tcp://espocrm-websocket:7777";
        let send = ["exec", "-T", "espocrm", "php", "/tests/send.php", dsn];
        self.compose_with_input(&send, &format!("{message}\n"));
        tab.expect_event(&message);
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let mut command = Command::new("docker-compose");
        command.current_dir(self.path()).args(["down", "--volumes", "--timeout", "1"]);
        if std::thread::panicking() {
            eprintln!("{}", self.log());
            let _ = command.output();
        } else {
            printed(command, "");
        }
    }
}

/// The recipe in docs/install.md.
fn recipe() -> String {
    let document = include_str!("../../docs/install.md");
    let (_, rest) = document.split_once("```yaml\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

fn printed(mut command: Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = process.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {complaint}");
    String::from_utf8(stdout).unwrap()
}
