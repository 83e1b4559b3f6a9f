//! A trace is damaged at random, round after round, and read by everything that reads one: each
//! round ends with values or a refusal. `make fuzz` does the same for ten minutes.

use std::{fs, path::PathBuf};

use firstdiff::trace::{Inspection, MANIFEST_FILE, TraceReader, comparable, lint};

use super::support::{Random, Recorded};

/// How the rounds ended.
#[derive(Debug, Default)]
pub struct Tally {
    pub opened: u64,
    pub refused: u64,
}

/// Damages and reads while `goes_on`, which is given the number of the round. A panic names the
/// seed and the round.
pub fn fuzz(seed: u64, goes_on: &mut dyn FnMut(u64) -> bool) -> Tally {
    let mut random = Random(seed);
    let traces = [Recorded::new(), Recorded::unhashed()];
    let whole: Vec<Vec<(PathBuf, Vec<u8>)>> = traces.iter().map(files).collect();
    let mut round = Round { seed, number: 0 };
    let mut tally = Tally::default();
    while goes_on(round.number) {
        let of = random.below(2);
        let (trace, whole) = (&traces[of], &whole[of]);
        for _ in 0..=random.below(2) {
            damage_file(trace, whole, of == 0, &mut random);
        }
        if exercise(trace) {
            tally.opened += 1;
        } else {
            tally.refused += 1;
        }
        for (path, bytes) in whole {
            fs::write(path, bytes).unwrap();
        }
        round.number += 1;
    }
    tally
}

/// Says where a panic was, as it goes by.
struct Round {
    seed: u64,
    number: u64,
}

impl Drop for Round {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("fuzz: seed {} round {}", self.seed, self.number);
        }
    }
}

fn files(trace: &Recorded) -> Vec<(PathBuf, Vec<u8>)> {
    let there = trace.files().into_iter().filter(|path| path.exists());
    there.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Damages one file; where the trace has hashes, mostly so that they fit.
fn damage_file(trace: &Recorded, whole: &[(PathBuf, Vec<u8>)], hashed: bool, random: &mut Random) {
    let (path, _) = &whole[random.below(whole.len())];
    let mut bytes = fs::read(path).unwrap();
    let step = trace.files().iter().skip(2).position(|file| file == path);
    match (random.below(8), step) {
        // A file of another step in its place.
        (0, Some(step)) => bytes = fs::read(trace.step((step + 1) % 3)).unwrap(),
        (1, _) => bytes.truncate(random.below(bytes.len() + 1)),
        (2, Some(_)) => damage_length(&mut bytes, random),
        (3, Some(_)) => damage(&mut bytes, random),
        // The header is in the first kilobytes; the rest are values, which may be anything.
        (_, Some(_)) => {
            let tail = bytes.split_off(bytes.len().min(4000));
            damage(&mut bytes, random);
            bytes.extend(tail);
        }
        (_, None) => damage(&mut bytes, random),
    }
    match step.filter(|_| hashed && random.below(4) > 0) {
        // Only a manifest that is still JSON can be made to fit.
        Some(step) if is_json(trace) => trace.replace_step(step, &bytes),
        _ => fs::write(path, bytes).unwrap(),
    }
    if hashed && random.below(4) > 0 {
        trace.seal();
    }
}

fn is_json(trace: &Recorded) -> bool {
    let manifest = fs::read(trace.folder.join(MANIFEST_FILE)).unwrap();
    let manifest: Result<serde_json::Value, _> = serde_json::from_slice(&manifest);
    manifest.is_ok_and(|manifest| (0..3).all(|step| manifest["steps"][step].is_object()))
}

/// States another length of the header.
fn damage_length(bytes: &mut [u8], random: &mut Random) {
    if bytes.len() >= 8 {
        let stated = random.next() >> random.below(64);
        bytes[..8].copy_from_slice(&stated.to_le_bytes());
    }
}

/// Changes a few bytes: flipped bits, random bytes, bytes cut out or doubled.
pub fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(8)).min(bytes.len());
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            // Digits keep the JSON valid, so that wrong numbers get deeper in.
            2 | 3 => {
                let digit = (at..bytes.len()).find(|&at| bytes[at].is_ascii_digit());
                bytes[digit.unwrap_or(at)] = b'0' + random.below(10) as u8;
            }
            _ if random.below(2) == 0 => drop(bytes.drain(at..end)),
            _ => {
                let doubled = bytes[at..end].to_vec();
                bytes.splice(at..at, doubled);
            }
        }
    }
}

/// Reads all of the trace that can be read; whether it was opened. A panic fails the test.
pub fn exercise(recorded: &Recorded) -> bool {
    if let Ok(found) = Inspection::of(&recorded.folder) {
        assert!(found.sites.iter().all(|site| found.model_sites().contains(site)));
    }
    let Ok(reader) = TraceReader::open(&recorded.folder) else { return false };
    for site in reader.sites() {
        let tensor = reader.tensor(site).unwrap().expect("a site that it lists");
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.data.len());
    }
    let _ = lint::alone(&reader, &|_| true);
    comparable(reader.manifest(), reader.manifest()).unwrap();
    true
}

/// Half a minute of the same rounds each time, as far as that goes.
#[test]
fn a_trace_damaged_in_thousands_of_ways_is_read_or_refused() {
    let start = std::time::Instant::now();
    let tally = fuzz(15, &mut |round| round < 4000 || start.elapsed().as_secs() < 30);
    // Damage to values is no damage to the format; most other is.
    assert!(tally.opened > 100 && tally.refused > 2000, "{tally:?}");
}
