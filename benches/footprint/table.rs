//! Numbers as plain text.

use std::time::Duration;

pub fn title(name: &str, columns: [&str; 4]) {
    println!();
    row(name, columns);
}

/// A name, two numbers, a ratio, and the numbers of other servers.
pub fn row(name: &str, [first, second, ratio, reference]: [&str; 4]) {
    let line = format!("{name:<46}{first:>11}{second:>11}{ratio:>7}   {reference}");
    println!("{}", line.trim_end());
}

pub fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

pub fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

pub fn micros(time: Duration) -> String {
    format!("{:.2} µs", time.as_secs_f64() * 1e6)
}

/// With commas as thousands separators.
pub fn count(number: usize) -> String {
    match number / 1_000 {
        0 => number.to_string(),
        thousands => format!("{thousands},{:03}", number % 1_000),
    }
}

pub fn median(times: impl IntoIterator<Item = Duration>) -> Duration {
    percentile(&mut times.into_iter().collect::<Vec<_>>(), 50)
}

pub fn percentile(times: &mut [Duration], rank: usize) -> Duration {
    times.sort_unstable();
    times[times.len() * rank / 100]
}
