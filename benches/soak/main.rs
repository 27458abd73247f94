//! Soak test with everything at once: browsers of all kinds, PHP senders, reloads, killed PHP,
//! proxies, outages. `make soak`
//!
//! Two daemons run as shipped (except for shorter intervals of pings and rechecks), each with a
//! stand-in for EspoCRM: one with PHP workers, direct and behind nginx, Apache and Caddy; one with
//! its own TLS and a PHP process for each check. The test shows that
//! - each message is delivered once, and in the order of its sender, to every connection that was
//!   subscribed throughout; no connection receives messages without granted access;
//! - no client is disconnected without a reason, and none by a Close frame without a violation;
//! - memory, descriptors, processes and threads do not grow from the first third to the last;
//! - the log has no errors except those that the injected faults cause, and the daemons exit
//!   cleanly.
//!
//! Parameters: `SOAK_SECONDS` (default 1800), `SEED` (default random; it repeats the choices, not
//! the timing), `SOAK_BINARY=path` for another build. The results are kept in `target/soak`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a failing soak test panics, and its numbers are small"
)]

#[allow(dead_code, reason = "also used by the tests")]
#[path = "../../tests/e2e/tls/authority.rs"]
mod authority;
mod client;
mod clients;
mod faults;
mod invalid_input;
mod random;
mod report;
mod sampler;
mod sender;
mod sent_log;
mod site;
#[allow(dead_code, unused_imports, reason = "also used by the tests")]
#[path = "../../tests/e2e/support/mod.rs"]
mod support;
mod tab;
mod tally;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clients::Clients;
use faults::Faults;
use random::Random;
use report::Report;
use sampler::{Sample, Sampler};
use sender::Sender;
use sent_log::Stream;
use site::Site;
use support::DEADLINE;
use tally::Tally;

/// The senders of each site: whether each keeps one connection.
const SENDERS: [&[bool]; 2] = [&[true, true, true, false], &[true, false]];

/// Far more than it takes until every client has received a message for each subscription, even
/// after an outage.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    // `cargo test --all-targets` also runs this, but without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let seconds = number("SOAK_SECONDS").unwrap_or(1800);
    let seed = number("SEED").unwrap_or_else(|| u64::from(std::process::id()) ^ nanoseconds());
    let dir = results();
    println!("Soak of {seconds} s, SEED={seed}");
    let sites = vec![Site::with_workers(), Site::with_tls()];
    let tally = Arc::new(Mutex::new(Tally::new()));
    let report = soak(seconds, seed, sites, &tally, &dir);
    std::fs::write(dir.join("report.txt"), &report.text).unwrap();
    println!("{}", report.text);
    if tally.lock().unwrap().violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("The end of the logs is in {}.", dir.display());
        ExitCode::FAILURE
    }
}

fn soak(
    seconds: u64,
    seed: u64,
    sites: Vec<Site>,
    tally: &Arc<Mutex<Tally>>,
    dir: &Path,
) -> Report {
    let mut sites = Arc::new(sites);
    let mut random = Random::new(seed);
    let mut report = Report::new(seconds, seed);
    let alone: Vec<_> = sites.iter().map(|site| sample(site).descriptors).collect();

    let senders: Vec<Sender> = SENDERS
        .iter()
        .enumerate()
        .flat_map(|(site, kinds)| kinds.iter().map(move |kind| (site, *kind)))
        .zip(0..)
        .map(|((site, in_order), number)| {
            Sender::start(&sites, site, Stream { number, in_order }, tally, &mut random)
        })
        .collect();
    let clients = Clients::start(&sites, tally, &mut random);
    wait(tally, "all clients are subscribed", PATIENCE, || clients.is_settled());
    println!("All clients are subscribed.");
    // The effect of the first minute of traffic on the heap does not count as growth.
    let warm_up = Duration::from_secs(seconds / 20).max(Duration::from_secs(10));
    std::thread::sleep(warm_up);

    let sampler = Sampler::start(&sites, tally);
    let mut faults = Faults::new(&sites, tally, random.fork());
    faults.run(Instant::now() + Duration::from_secs(seconds));
    let permitted_errors = faults.unreadable;
    drop(faults);
    let taken = sampler.end();

    clients.settle();
    wait(tally, "all clients are subscribed again", PATIENCE, || clients.is_settled());
    senders.iter().for_each(Sender::end);
    wait(tally, "PHP has sent everything", PATIENCE, || senders.iter().all(Sender::has_ended));
    drop(senders);
    // Missing messages are then reported one by one.
    let start = Instant::now();
    while !clients.is_complete() && start.elapsed() < DEADLINE {
        std::thread::sleep(Duration::from_millis(100));
    }
    let balances = clients.leave();

    for (site, alone) in sites.iter().zip(alone) {
        // The two outputs of a worker stay open.
        let is_alone = || {
            let workers = 2 * site.daemon.workers().len() as u64;
            let sample = Sample::take(site, Duration::ZERO);
            sample.is_some_and(|it| it.descriptors <= alone + workers)
        };
        wait(tally, "descriptors of connections are closed", DEADLINE, is_alone);
        wait(tally, "only workers are left", DEADLINE, || {
            site.daemon.children().len() == site.daemon.workers().len()
        });
    }

    let mut tally = tally.lock().unwrap();
    report.traffic(&mut tally, &sites, &balances);
    let sites = Arc::get_mut(&mut sites).expect("all threads have ended");
    for (site, samples) in sites.iter_mut().zip(&taken) {
        report.resources(&mut tally, site, samples);
        let children = site.daemon.children();
        stop(site, &mut tally);
        if let Some(child) = children.iter().find(|it| support::Process::is_running(it.pid)) {
            tally.violation(format!("child {} of {} still runs", child.pid, site.name));
        }
        let log = site.daemon.log();
        report.log(&mut tally, site, &log, permitted_errors);
        report::keep(dir, site.name, samples, &log);
    }
    report.verdict(&tally);
    report
}

/// Stops a daemon, which must exit cleanly.
fn stop(site: &mut Site, tally: &mut Tally) {
    site.daemon.signal("TERM");
    let status = site.daemon.wait();
    if !status.success() {
        tally.violation(format!("{} exited with {status}", site.name));
    }
    site.daemon.wait_for("Stopped by ");
}

fn wait(tally: &Mutex<Tally>, what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > patience {
            return tally.lock().unwrap().violation(format!("timed out: {what}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn sample(site: &Site) -> Sample {
    Sample::take(site, Duration::ZERO).expect("the daemon has just started")
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

fn nanoseconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::from(now.unwrap().subsec_nanos()) << 16
}

/// The directory of the results.
fn results() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("soak");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
