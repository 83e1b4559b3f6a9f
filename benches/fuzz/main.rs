//! `make fuzz`: ten minutes of damaged inputs for every reader, in this process: a panic, a crash or a hang ends it.
#![allow(clippy::unwrap_used, reason = "a round that cannot go on panics")]

#[path = "../../tests/attack/damaged.rs"]
mod damaged;
#[path = "../../tests/trace/fuzz.rs"]
mod fuzz;
mod readers;
#[path = "../../tests/trace/support.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod support;
#[path = "../attack/whole.rs"]
mod whole;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Seconds to go on for instead of 600.
const SECONDS: &str = "FIRSTDIFF_FUZZ_SECONDS";
/// The seed, to repeat a run that failed.
const SEED: &str = "FIRSTDIFF_FUZZ_SEED";
/// No input of a few bytes may take longer.
const LIMIT: Duration = Duration::from_secs(20);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
    let seconds = number(SECONDS)?.unwrap_or(600);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let seed = number(SEED)?.unwrap_or(now);
    println!("seed {seed}, {seconds} s");
    // A half for all readers, a half for traces, of which most must be right to get further.
    let half = Duration::from_secs(seconds / 2);
    all_readers(seed, half)?;
    let (start, mut last, mut slowest) = (Instant::now(), Instant::now(), Duration::ZERO);
    let tally = fuzz::fuzz(seed, &mut |_| {
        slowest = slowest.max(last.elapsed());
        last = Instant::now();
        start.elapsed() < half
    });
    let fuzz::Tally { opened, refused } = tally;
    let rounds = opened + refused;
    println!(
        "{rounds} damaged traces: {opened} read, {refused} refused, no panic; the slowest took {:.0} ms",
        slowest.as_secs_f64() * 1e3
    );
    Ok(())
}

/// What came of the inputs of one kind.
#[derive(Default)]
struct Tally {
    taken: u64,
    refused: u64,
    slowest: Duration,
}

fn all_readers(seed: u64, time: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let readers = readers::Readers::new()?;
    let (start, mut tallies) = (Instant::now(), BTreeMap::<&str, Tally>::new());
    let mut round = 0;
    while start.elapsed() < time {
        let own = seed.wrapping_add(round);
        let (begin, said) = (Instant::now(), Said(own));
        let (name, is_taken) = readers.round(&mut damaged::Random(own))?;
        std::mem::forget(said);
        let tally = tallies.entry(name).or_default();
        *(if is_taken { &mut tally.taken } else { &mut tally.refused }) += 1;
        tally.slowest = tally.slowest.max(begin.elapsed());
        assert!(begin.elapsed() < LIMIT, "{name}: seed {own} took {:?}", begin.elapsed());
        round += 1;
    }
    for (name, Tally { taken, refused, slowest }) in tallies {
        let slowest = slowest.as_secs_f64() * 1e3;
        println!("{name}: {taken} read, {refused} refused; the slowest took {slowest:.0} ms");
    }
    Ok(())
}

/// Says the seed of the round in which a panic was.
struct Said(u64);

impl Drop for Said {
    fn drop(&mut self) {
        eprintln!("fuzz: FIRSTDIFF_FUZZ_SEED={} begins with what failed", self.0);
    }
}
