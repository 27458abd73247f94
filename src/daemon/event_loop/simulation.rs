//! The real server with scripted I/O: partial reads and writes, interrupted calls, resets, late,
//! repeated and spurious readiness events, verdicts in any order, jumps of the clock. After every
//! turn the result is compared with a model.
//!
//! A failing seed is printed. `SEED=… cargo test --lib event_loop::simulation` replays it and prints
//! each step.

mod access;
mod browser;
mod invariants;
mod oracle;
mod tab;
mod wire;
mod world;

#[path = "../../../tests/simulation/model.rs"]
#[allow(dead_code, reason = "only the categories of the engine's model are used")]
mod model;

use super::accept::Accepting;
use super::{Backend, EventSource, Ready, Server, Settings};
use crate::engine::seeds;
use crate::espocrm::EspoSettings;
use crate::settings::{Layers, Overrides};
use world::World;

/// `SEEDS` in the environment sets another number.
const SEEDS: u64 = 2_000;
const STEPS: usize = 250;

#[test]
fn each_browser_receives_exactly_its_messages_under_any_kernel_behavior() {
    let espo_settings = EspoSettings::new(serde_json::Map::new(), &serde_json::Value::Null);
    let settings =
        Settings::resolve(&Layers::of_flags(Overrides::default()), &espo_settings).unwrap();
    seeds::run(SEEDS, &EXPECTED_EVENTS, 10, |seed, verbose| {
        let mut world = World::new(seed, settings.clone(), verbose);
        world.run(STEPS);
        world.oracle.seen
    });
}

const EXPECTED_EVENTS: [&str; 35] = [
    "bad request",
    "RPC call",
    "closed by the browser",
    "delivered",
    "denied",
    "ended by the browser",
    "flooded",
    "granted",
    "unlocked",
    "locked down",
    "ping timeout",
    "malformed",
    "no user",
    "close timeout",
    "check failed",
    "over the user limit",
    "over the limit",
    "published",
    "read failed",
    "login denied",
    "reloaded",
    "requested",
    "request during a reload",
    "reload by a change",
    "reload by a retry",
    "reload failed",
    "invalid settings",
    "other PHP",
    "PHP not started",
    "slow",
    "stopped",
    "handshake timeout",
    "protocol violation",
    "welcomed",
    "write failed",
];
