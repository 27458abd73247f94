//! The real server with everything at its ends scripted: partial reads and writes, interrupted
//! calls, resets, late, repeated and pointless reports of the kernel, verdicts in any order, jumps
//! of the clock. Every turn is compared with what must come of it.
//!
//! A failing seed is printed. `SEED=… cargo test --lib simulation` replays it and tells
//! what the server does.

mod access;
mod browser;
mod invariants;
mod oracle;
mod tab;
mod wire;
mod world;

#[path = "../../../tests/simulation/model.rs"]
#[allow(dead_code, reason = "of the core's model the categories are shared")]
mod model;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::accept::Accepting;
use super::{Backend, FIRST_CONN, FIRST_WORKER, LISTENER, Ready, Server, Settings, ZMQ};
use crate::espocrm::EspoSettings;
use crate::settings::{Layers, Overrides};
use world::World;

/// `SEEDS` in the environment sets another number.
const SEEDS: u64 = 2_000;
const STEPS: usize = 250;

#[test]
fn every_browser_gets_exactly_what_is_its_own_whatever_the_kernel_does() {
    let espo_settings = EspoSettings::new(serde_json::Map::new(), &serde_json::Value::Null);
    let settings =
        Settings::resolve(&Layers::of_flags(Overrides::default()), &espo_settings).unwrap();
    if let Ok(seed) = std::env::var("SEED") {
        return World::new(seed.parse().unwrap(), settings, true).run(STEPS);
    }
    let mut seen = BTreeMap::new();
    let seeds = std::env::var("SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    for seed in 0..seeds {
        let mut world = World::new(seed, settings.clone(), false);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run(STEPS))) {
            eprintln!("Replay by: SEED={seed} cargo test --lib simulation");
            resume_unwind(panic);
        }
        for (what, count) in world.oracle.seen {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    println!("{seen:?}");
    // What never happens is not tested. A few seeds do not cause every rare event.
    for what in EVERYTHING.into_iter().filter(|_| seeds >= SEEDS) {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count >= 10, "{what}: only {count} times");
    }
}

const EVERYTHING: [&str; 27] = [
    "bad request",
    "called",
    "closed by the browser",
    "delivered",
    "denied",
    "ended by the browser",
    "flooded",
    "granted",
    "let in again",
    "locked down",
    "lost",
    "malformed",
    "nameless",
    "never ended",
    "not checked",
    "one too many of its user",
    "over the limit",
    "published",
    "reading failed",
    "refused",
    "reloaded",
    "slow",
    "stopped",
    "too late",
    "violated",
    "welcomed",
    "writing failed",
];
