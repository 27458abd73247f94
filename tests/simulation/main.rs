//! Years of the pure core in seconds: hub, access queue and timers under random load, with verdicts
//! in any order and late, closes at any moment and reloads, beside a naive model of what must come
//! of it. After each step the two are compared.
//!
//! A failing seed is printed. `SEED=… cargo test --test simulation` replays it and tells
//! each step.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test that cannot go on shall say so"
)]

mod choices;
mod model;
#[allow(dead_code, reason = "the simulation of the shell has it, too")]
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
fn nobody_sees_what_was_not_granted_and_nothing_is_left_behind() {
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
                eprintln!("Replay by: SEED={seed} cargo test --test simulation");
                resume_unwind(panic);
            }
        }
    }
    println!("{seen:?}");
    // What never happens is not tested. A few seeds do not cause every rare event.
    if seeds >= SEEDS {
        seen.expect_everything();
    }
}

#[test]
fn what_the_fuzzer_has_found_stays_right() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/hub");
    for seed in fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        println!("{}", path.display());
        World::new(Choices::bytes(fs::read(path).unwrap()), true).run(STEPS);
    }
}
