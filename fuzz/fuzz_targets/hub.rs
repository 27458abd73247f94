//! Operations on hub, check queue and timers, chosen byte by byte. After each operation the result
//! is compared with the model of `tests/simulation`.
#![no_main]

#[path = "../../tests/simulation/choices.rs"]
#[allow(dead_code, reason = "no choice is random here")]
mod choices;
#[path = "../../tests/simulation/model.rs"]
mod model;
#[path = "../../tests/simulation/random.rs"]
#[allow(dead_code, reason = "no choice is random here")]
mod random;
#[path = "../../tests/simulation/seen.rs"]
#[allow(dead_code, reason = "only the simulation adds up events")]
mod seen;
#[path = "../../tests/simulation/world/mod.rs"]
mod world;

use choices::Choices;
use libfuzzer_sys::fuzz_target;
use world::World;

fuzz_target!(|bytes: &[u8]| {
    // Longer inputs find no more and take longer.
    let bytes = bytes.get(..1024).unwrap_or(bytes);
    // A step uses at least one byte.
    World::new(Choices::bytes(bytes.to_vec()), false).run(bytes.len());
});
