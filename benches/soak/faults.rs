//! Faults that occur one after another while the daemon serves.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::site::{Site, TIME_TO_EFFECT};
use crate::support::{Process, Standin};
use crate::tally::Tally;

pub struct Faults {
    sites: Arc<Vec<Site>>,
    tally: Arc<Mutex<Tally>>,
    random: Random,
    /// A user is logged out and access to a record is denied, until then.
    revoked: Option<(usize, Instant)>,
    /// The earliest time of the next revocation.
    next_revocation: Instant,
    /// How often settings were made unreadable: each may be logged as an error.
    pub unreadable: u64,
    categories: u64,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// SIGHUP.
    Reload,
    /// EspoCRM rewrites its configuration without a change.
    Configuration,
    /// An extension is installed, changed or removed.
    Categories,
    /// EspoCRM's cache is cleared.
    Cache,
    /// A role changes, and is changed back.
    Role,
    /// A PHP process that runs a check is killed.
    Kill,
    /// EspoCRM's database cannot be reached.
    Outage,
    /// EspoCRM cannot report its settings.
    Unreadable,
    /// Each command takes long.
    Slow,
    /// The daemon is stopped for a moment.
    Stop,
    /// A proxy reloads its configuration.
    Proxy,
    /// The certificate is renewed.
    Certificate,
}

/// The relative frequency of each fault.
const ALL: [(usize, Fault); 12] = [
    (4, Fault::Reload),
    (3, Fault::Configuration),
    (3, Fault::Categories),
    (2, Fault::Cache),
    (2, Fault::Role),
    (6, Fault::Kill),
    (3, Fault::Outage),
    (1, Fault::Unreadable),
    (2, Fault::Slow),
    (4, Fault::Stop),
    (3, Fault::Proxy),
    (1, Fault::Certificate),
];

/// Time between two revocations.
const PAUSE: Duration = Duration::from_secs(60);

impl Faults {
    pub fn new(sites: &Arc<Vec<Site>>, tally: &Arc<Mutex<Tally>>, random: Random) -> Self {
        Self {
            sites: Arc::clone(sites),
            tally: Arc::clone(tally),
            random,
            revoked: None,
            next_revocation: Instant::now() + PAUSE / 4,
            unreadable: 0,
            categories: 0,
        }
    }

    /// Causes faults until `end`, and repairs everything.
    pub fn run(&mut self, end: Instant) {
        while let Some(rest) = end.checked_duration_since(Instant::now()) {
            std::thread::sleep(self.random.millis(300, 4000).min(rest));
            self.revoke_if_due(end);
            // Most faults affect the site with the most traffic.
            let site = usize::from(self.random.below(3) == 0);
            let fault = self.random.choose_weighted(&ALL);
            if self.cause(site, fault) {
                self.count(&format!("{fault:?}"));
            }
        }
        self.restore_access();
    }

    /// Returns whether the fault could be caused.
    fn cause(&mut self, index: usize, fault: Fault) -> bool {
        let sites = Arc::clone(&self.sites);
        let site = &sites[index];
        let revoked = self.revoked.is_some_and(|(other, _)| other == index);
        if revoked && matches!(fault, Fault::Kill | Fault::Outage | Fault::Slow | Fault::Stop) {
            // A recheck that fails would revoke nothing.
            return false;
        }
        match fault {
            Fault::Reload => site.daemon.signal("HUP"),
            Fault::Configuration => {
                let value = self.random.below(1000);
                site.standin.lock().unwrap().config("soak", value);
            }
            Fault::Categories => self.change_categories(site),
            Fault::Cache => {
                let cache = path(site).join("data/cache/application");
                let _ = std::fs::remove_file(cache.join("metadata.php"));
            }
            Fault::Role => {
                let user = self.random.choose(&site.temporary_users).clone();
                let standin = site.standin.lock().unwrap();
                let table = format!("data/cache/application/acl/{user}.php");
                for denied in ["nothing", "of-interest", ""] {
                    standin.set(&format!("denied-{user}"), denied);
                    let _ = std::fs::remove_file(standin.path().join(&table));
                }
            }
            Fault::Kill => return self.kill(site),
            Fault::Outage => {
                let failure = *self.random.choose(&["error", "exit255", "crash", "killed"]);
                site.active_faults.start_failing();
                self.set_temporarily(site, "failure", failure, 6000);
                site.active_faults.stop_failing();
            }
            Fault::Unreadable => {
                site.standin.lock().unwrap().set("probe-failure", "exit255");
                site.daemon.signal("HUP");
                self.unreadable += 1;
                self.set_temporarily(site, "probe-failure", "exit255", 4000);
                site.daemon.signal("HUP");
            }
            Fault::Slow => self.set_temporarily(site, "delay", "250", 4000),
            Fault::Stop => {
                site.daemon.signal("STOP");
                std::thread::sleep(self.random.millis(200, 2000));
                site.daemon.signal("CONT");
            }
            Fault::Proxy => {
                let endpoints: Vec<_> =
                    site.endpoints.iter().filter(|it| it.proxy.is_some()).collect();
                let Some(number) =
                    (!endpoints.is_empty()).then(|| self.random.below(endpoints.len()))
                else {
                    return false;
                };
                // Caddy closes its WebSockets each time.
                if endpoints[number].name == "caddy" && self.random.below(3) > 0 {
                    return false;
                }
                endpoints[number].reload();
            }
            Fault::Certificate => {
                let Some((authority, installed)) = &site.issued else { return false };
                // The daemon may check the files while only one of the two is new, which it logs as
                // an error.
                self.unreadable += 1;
                authority.issue("renewed", crate::authority::EC).replace(installed);
            }
        }
        true
    }

    /// Kills a PHP process that runs a check. Probes are not killed: that would be an error.
    fn kill(&mut self, site: &Site) -> bool {
        let start = Instant::now();
        // Plain commands live only for a moment.
        while start.elapsed() < Duration::from_millis(500) {
            let checks = site.daemon.children().into_iter().filter(|child| {
                let arguments = Process::arguments(child.pid);
                let is_worker = arguments.iter().any(|word| word == "-S");
                child.state != 'Z' && (is_worker || arguments.iter().any(|it| it == "command.php"))
            });
            let checks: Vec<Process> = checks.collect();
            if !checks.is_empty() {
                site.active_faults.start_failing();
                Process::signal(self.random.choose(&checks).pid, "KILL");
                site.active_faults.stop_failing();
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    fn set_temporarily(&mut self, site: &Site, name: &str, value: &str, most: usize) {
        site.standin.lock().unwrap().set(name, value);
        std::thread::sleep(self.random.millis(200, most));
        site.standin.lock().unwrap().unset(name);
    }

    fn change_categories(&mut self, site: &Site) {
        self.categories += 1;
        let action = ["read", "stream", ""][usize::try_from(self.categories % 3).unwrap()];
        let dir = path(site).join("custom/Espo/Custom/Resources/metadata/app");
        std::fs::create_dir_all(&dir).unwrap();
        let text = match action {
            "" => "{\"categories\":{}}".to_owned(),
            action => format!(
                "{{\"categories\":{{\"soakUpdate\":{{\"paramList\":[\"id\"],\"accessCheckCommand\":\
                 \"AclCheck --userId=:userId --scope=Account --id=:id --action={action}\"}}}}}}"
            ),
        };
        // Atomically, since the file may be read meanwhile.
        std::fs::write(dir.join("webSocket.new"), text).unwrap();
        std::fs::rename(dir.join("webSocket.new"), dir.join("webSocket.json")).unwrap();
        let _ = std::fs::remove_file(path(site).join("data/cache/application/metadata.php"));
    }

    /// Logs out a user and denies access to a record for long enough that it must have taken
    /// effect.
    fn revoke_if_due(&mut self, end: Instant) {
        let now = Instant::now();
        if let Some((_, until)) = self.revoked {
            if until <= now {
                self.restore_access();
            }
            return;
        }
        if now < self.next_revocation || end < now + TIME_TO_EFFECT + Duration::from_secs(20) {
            return;
        }
        let index = usize::from(self.random.below(4) == 0);
        let site = &self.sites[index];
        let user = self.random.choose(&site.temporary_users);
        {
            let standin = site.standin.lock().unwrap();
            standin.set("bad-tokens", &format!("tok-{user}\n"));
            standin.set("denied", "flux\n");
        }
        site.active_faults.log_out(user);
        site.active_faults.set_denied(true);
        self.revoked = Some((index, now + TIME_TO_EFFECT + Duration::from_secs(15)));
        self.count(&format!("Logout and denial, {}", site.name));
    }

    fn restore_access(&mut self) {
        let Some((index, _)) = self.revoked.take() else { return };
        let site = &self.sites[index];
        site.active_faults.set_denied(false);
        site.active_faults.log_in();
        let standin = site.standin.lock().unwrap();
        standin.unset("bad-tokens");
        standin.unset("denied");
        self.next_revocation = Instant::now() + PAUSE;
    }

    fn count(&self, what: &str) {
        self.tally.lock().unwrap().count(&format!("fault: {what}"), 1);
    }
}

fn path(site: &Site) -> std::path::PathBuf {
    let standin: &Standin = &site.standin.lock().unwrap();
    let path: &Path = standin.path();
    path.to_owned()
}
