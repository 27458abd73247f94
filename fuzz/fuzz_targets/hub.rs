//! Operations on hub, access queue and timers, chosen byte by byte, beside the model of
//! `tests/simulation`, which tells after each of them what must have come of it.
#![no_main]

#[path = "../../tests/simulation/choices.rs"]
#[allow(dead_code, reason = "here no choice is by chance")]
mod choices;
#[path = "../../tests/simulation/model.rs"]
mod model;
#[path = "../../tests/simulation/random.rs"]
#[allow(dead_code, reason = "here no choice is by chance")]
mod random;
#[path = "../../tests/simulation/seen.rs"]
#[allow(dead_code, reason = "what has been seen is counted over all seeds only there")]
mod seen;
#[path = "../../tests/simulation/world/mod.rs"]
mod world;

use choices::Choices;
use libfuzzer_sys::fuzz_target;
use world::World;

fuzz_target!(|bytes: &[u8]| {
    // Longer ones find no more, and take longer.
    let bytes = bytes.get(..1024).unwrap_or(bytes);
    // A step takes a byte at least.
    World::new(Choices::bytes(bytes.to_vec()), false).run(bytes.len());
});
