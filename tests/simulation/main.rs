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
mod seen;
mod world;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use choices::Choices;
use seen::Seen;
use world::World;

/// `SEEDS` in the environment sets another number.
const SEEDS: u64 = 200;
const STEPS: usize = 1_500;

#[test]
fn only_granted_topics_are_delivered_and_no_state_is_left() {
    if let Ok(seed) = std::env::var("SEED") {
        World::new(Choices::seed(seed.parse().expect("a number")), true).run(STEPS);
        return;
    }
    let mut seen = Seen::default();
    let seeds = std::env::var("SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    for seed in 0..seeds {
        match catch_unwind(AssertUnwindSafe(|| World::new(Choices::seed(seed), false).run(STEPS))) {
            Ok(these) => seen.add(&these),
            Err(panic) => {
                eprintln!("Replay with: SEED={seed} cargo test --test simulation");
                resume_unwind(panic);
            }
        }
    }
    println!("{seen:?}");
    // An event that never occurs is not tested. A few seeds do not cause every rare event.
    if seeds >= SEEDS {
        seen.expect_everything();
    }
}

#[test]
fn inputs_found_by_the_fuzzer_pass() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/hub");
    for seed in fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        println!("{}", path.display());
        World::new(Choices::bytes(fs::read(path).unwrap()), true).run(STEPS);
    }
}
