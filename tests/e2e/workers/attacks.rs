//! Attacks on a worker by other local users, and by processes that EspoCRM's own code leaves
//! behind.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::secrets::{address, listeners};
use super::{WORKERS_DISABLED, worker};
use crate::support::{Client, Daemon, Process, Standin, eventually};

/// More than PHP's web server can accept.
const IDLE: usize = 1_300;

/// An EspoCRM with a topic `inspect` that an extension's command checks.
fn standin_with(command: &str) -> Standin {
    let standin = Standin::new();
    std::fs::create_dir_all(standin.path().join("custom/commands")).unwrap();
    std::fs::write(standin.path().join("custom/commands/Inspect.php"), command).unwrap();
    standin
        .custom_categories(&json!({"inspect": {"accessCheckCommand": "Inspect --user=:userId"}}));
    standin
}

/// The processes that the command of [`standin_with`] has recorded.
fn left(standin: &Standin) -> Vec<u32> {
    let text = std::fs::read_to_string(standin.path().join("data/standin/left"));
    text.unwrap_or_default().lines().map(|line| line.parse().unwrap()).collect()
}

/// Opens connections to each worker's port and keeps them open.
fn hold_connections(daemon: u32, stop: &AtomicBool) {
    let mut attacked: Vec<String> = Vec::new();
    let mut open: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for child in Process::children_of(daemon) {
            if !Process::arguments(child.pid).iter().any(|word| word == "-S") {
                continue;
            }
            for listener in listeners(child.pid) {
                let port = listener.split_once(':').map(|(_, port)| u16::from_str_radix(port, 16));
                let Some(Ok(port)) = port else { continue };
                if attacked.contains(&listener) {
                    continue;
                }
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok();
                open.extend((0..IDLE).map_while(connect));
                attacked.push(listener);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn idle_connections_to_a_worker_block_no_check() {
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    daemon.connect("alice");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| hold_connections(daemon.pid(), &stop));
        eventually("workers are disabled", || {
            // Each login succeeds sooner or later.
            daemon.connect("alice");
            Client::open(daemon.address, "alice", "guessed").expect_close(1008);
            daemon.count(WORKERS_DISABLED) == 1 || attacker.is_finished()
        });
        for _ in 0..3 {
            daemon.connect("alice");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(daemon.count(WORKERS_DISABLED), 1);
    assert_eq!(daemon.count("The access check of a"), 0);
    assert!(standin.modes().ends_with(&["plain".to_owned(), "plain".to_owned()]));
}

#[test]
fn a_huge_request_ends_the_worker_before_it_uses_much_memory() {
    const SIZE: usize = 300_000_000;
    let standin = Standin::new();
    let daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    daemon.connect("alice");
    for _ in 0..3 {
        let worker = worker(&daemon);
        let mut tcp = TcpStream::connect(address(worker)).unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {SIZE}\r\n\r\n");
        tcp.write_all(head.as_bytes()).unwrap();
        let piece = vec![b'x'; 1_000_000];
        // Everything except the end, after which the memory would be freed.
        for _ in 1..SIZE / piece.len() {
            if tcp.write_all(&piece).is_err() {
                break;
            }
        }
        let resident = peak(worker);
        assert!(resident < 280_000_000, "{resident}");
        eventually("it has ended", || Process::find(worker).is_none());
        daemon.connect("alice");
    }
    assert_eq!((daemon.count("The access check of a"), daemon.count(WORKERS_DISABLED)), (0, 0));
}

/// The peak memory of a process; 0 if it has ended.
fn peak(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.map_or(0, |it| it.trim().trim_end_matches(" kB").parse().unwrap());
    kilobytes * 1024
}

#[test]
fn a_worker_that_floods_its_error_output_blocks_nothing() {
    let standin = standin_with(
        "<?php
        if (PHP_SAPI === 'cli-server') {
            $flood = 'yes espocrm 1>&2 & echo $! >> data/standin/left';
            shell_exec(\"($flood; $flood; $flood; $flood) > /dev/null\");
        }
        return 0;
        ",
    );
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    daemon.subscribe(&mut tab, "alice", "inspect");
    for _ in 0..5 {
        daemon.connect("bob");
    }
    // The worker may be killed before it has started all four.
    assert!(!left(&standin).is_empty());
    for flood in left(&standin) {
        eventually("the flooding process is killed", || !Process::is_running(flood));
    }
    assert_eq!(daemon.count("The access check of a"), 0);
}

#[test]
fn child_processes_of_a_worker_end_with_it() {
    let standin = standin_with(
        "<?php
        shell_exec('sleep 600 > /dev/null 2>&1 & echo $! >> data/standin/left');
        return 0;
        ",
    );
    let mut daemon = Daemon::with_workers(&standin, &["--check-cache", "0"]);
    let mut tab = daemon.connect("alice");
    daemon.subscribe(&mut tab, "alice", "inspect");
    let [sleeper] = left(&standin)[..] else { panic!("{:?}", left(&standin)) };
    assert!(Process::is_running(sleeper));
    Process::signal(worker(&daemon), "KILL");
    eventually("it is killed, too", || !Process::is_running(sleeper));
    daemon.connect("bob");
}
