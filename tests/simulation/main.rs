//! Simulates years of the engine in seconds: hub, check queue and timers under random load, with
//! verdicts that arrive in any order and late, connections that close at any time, and reloads.
//! After each step the engine is compared with a naive model.
//!
//! The seed of a failure is printed. `SEED=… cargo test --test simulation` replays it and prints
//! each step.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test that cannot continue must fail"
)]

mod choices;
mod model;
#[allow(dead_code, reason = "also used by the simulation of the daemon")]
mod random;
#[allow(dead_code, reason = "also used by the simulations in src")]
mod seeds;
mod seen;
mod world;

use std::fs;
use std::path::Path;

use choices::Choices;
use world::World;

/// `SEEDS` in the environment sets another number.
const SEEDS: u64 = 200;
const STEPS: usize = 1_500;

#[test]
fn only_granted_topics_are_delivered_and_no_state_is_left() {
    seeds::run(SEEDS, &EXPECTED_EVENTS, 51, |seed, verbose| {
        World::new(Choices::seed(seed), verbose).run(STEPS).counts
    });
}

const EXPECTED_EVENTS: [&str; 27] = [
    "answered",
    "delayed",
    "no room for a login",
    "no room for a recheck",
    "resumed",
    "no longer granted",
    "rechecked",
    "revoked",
    "still granted",
    "still logged in",
    "token not rechecked",
    "topic not rechecked",
    "requested",
    "closed",
    "delivered",
    "login denied",
    "login failed",
    "denied",
    "granted",
    "misbehaved",
    "no receivers",
    "pinged",
    "reloaded",
    "stale verdict",
    "subscription failed",
    "unknown topic",
    "welcomed",
];

#[test]
fn inputs_found_by_the_fuzzer_pass() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/hub");
    for seed in fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        println!("{}", path.display());
        World::new(Choices::bytes(fs::read(path).unwrap()), true).run(STEPS);
    }
}
