//! `make fuzz`: ten minutes of damaged traces.
#![allow(clippy::unwrap_used, reason = "a round that cannot go on panics")]

#[path = "../../tests/trace/fuzz.rs"]
mod fuzz;
#[path = "../../tests/trace/support.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod support;

use std::time::{Duration, Instant};

/// Seconds to go on for instead of 600.
const SECONDS: &str = "FIRSTDIFF_FUZZ_SECONDS";
/// The seed, to repeat a run that failed.
const SEED: &str = "FIRSTDIFF_FUZZ_SEED";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
    let seconds = number(SECONDS)?.unwrap_or(600);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let seed = number(SEED)?.unwrap_or(now);
    let (start, mut last, mut slowest) = (Instant::now(), Instant::now(), Duration::ZERO);
    println!("seed {seed}, {seconds} s");
    let tally = fuzz::fuzz(seed, &mut |_| {
        slowest = slowest.max(last.elapsed());
        last = Instant::now();
        start.elapsed() < Duration::from_secs(seconds)
    });
    let fuzz::Tally { opened, refused } = tally;
    let rounds = opened + refused;
    println!(
        "{rounds} damaged traces: {opened} read, {refused} refused, no panic; the slowest took {:.0} ms",
        slowest.as_secs_f64() * 1e3
    );
    Ok(())
}
