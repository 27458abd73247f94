//! Runs a simulation with many seeds, and counts what occurs.

use std::fmt::{Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const TARGET: &str = match env!("CARGO_CRATE_NAME").as_bytes() {
    b"simulation" => "--test simulation",
    _ => "--lib",
};

/// Runs the seeds below `default`, or below `SEEDS` in the environment; with `SEED` only that one,
/// and has it print each step. `simulate(seed, verbose)` returns how often each event has occurred.
///
/// An event that never occurs is not tested, so each `expected` one must occur `least` times. A few
/// seeds do not cause every rare event.
pub fn run<E, I>(default: u64, expected: &[E], least: u64, mut simulate: impl FnMut(u64, bool) -> I)
where
    E: Copy + Debug + PartialEq,
    I: IntoIterator<Item = (E, u64)>,
{
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    if let Some(seed) = number("SEED") {
        simulate(seed, true);
        return;
    }
    let mut counts: Vec<(E, u64)> = Vec::new();
    let seeds = number("SEEDS").unwrap_or(default);
    for seed in 0..seeds {
        let events = catch_unwind(AssertUnwindSafe(|| simulate(seed, false)));
        let events = events.unwrap_or_else(|panic| {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or_default();
            eprintln!("To replay: SEED={seed} cargo test {TARGET} {test}");
            resume_unwind(panic);
        });
        for (event, count) in events {
            match counts.iter_mut().find(|(counted, _)| *counted == event) {
                Some((_, sum)) => *sum += count,
                None => counts.push((event, count)),
            }
        }
    }
    println!("{counts:?}");
    for event in expected.iter().filter(|_| seeds >= default) {
        let count = counts.iter().find(|(counted, _)| counted == event).map_or(0, |(_, sum)| *sum);
        assert!(count >= least, "{event:?}: only {count} times");
    }
}

/// Prints a step if a seed is replayed. The engine's simulations must not print by themselves.
pub fn print_step(verbose: bool, millis: u64, step: impl Display) {
    if verbose {
        println!("{millis:>9} {step}");
    }
}
