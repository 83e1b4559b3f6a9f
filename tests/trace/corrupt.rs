//! Random damage: found by the hashes, and without them never a panic.

use std::fs;

use firstdiff::trace::{MANIFEST_FILE, TraceReader};

use super::{
    fuzz::{damage, exercise},
    support::{Random, Recorded},
};

#[test]
fn a_flipped_bit_in_any_file_is_refused() {
    let recorded = Recorded::new();
    let mut random = Random(11);
    for path in recorded.files() {
        let whole = fs::read(&path).unwrap();
        for _ in 0..40 {
            let mut bytes = whole.clone();
            bytes[random.below(whole.len())] ^= 1 << random.below(8);
            fs::write(&path, bytes).unwrap();
            let text = recorded.refusal().to_string();
            let file = path.file_name().unwrap().to_str().unwrap();
            // A wrong hash of the manifest is told of the manifest.
            assert!(text.contains(file) || text.contains(MANIFEST_FILE), "{text}");
        }
        fs::write(&path, whole).unwrap();
    }
    TraceReader::open(&recorded.folder).expect("every file is whole again");
}

#[test]
fn a_damaged_manifest_with_a_fitting_hash_never_panics() {
    let recorded = Recorded::new();
    let path = recorded.folder.join(MANIFEST_FILE);
    let whole = fs::read(&path).unwrap();
    let mut random = Random(12);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        damage(&mut bytes, &mut random);
        fs::write(&path, bytes).unwrap();
        recorded.seal();
        exercise(&recorded);
    }
}

#[test]
fn a_damaged_header_with_fitting_hashes_never_panics() {
    let recorded = Recorded::new();
    let whole = fs::read(recorded.step(1)).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
    // Without the padding, most of the damage meets the JSON.
    let header = header.trim_end();
    let mut random = Random(13);
    for round in 0..300 {
        let mut bytes = header.as_bytes().to_vec();
        damage(&mut bytes, &mut random);
        let mut stated = bytes.len() as u64;
        if round % 10 == 0 {
            stated = random.next() >> random.below(64);
        }
        let file = [&stated.to_le_bytes()[..], &bytes, &whole[8 + length..]].concat();
        recorded.replace_step(1, &file);
        exercise(&recorded);
    }
}

/// Without hashes nothing but the parsers stands between the damage and the tensors.
#[test]
fn a_damaged_trace_without_hashes_never_panics_and_never_reads_beyond_its_files() {
    let recorded = Recorded::unhashed();
    let mut random = Random(14);
    let mut opened = 0;
    for path in [recorded.folder.join(MANIFEST_FILE), recorded.step(0), recorded.step(1)] {
        let whole = fs::read(&path).unwrap();
        for _ in 0..200 {
            // Headers are shorter than that; values may be anything.
            let (head, rest) = whole.split_at(whole.len().min(4000));
            let mut head = head.to_vec();
            damage(&mut head, &mut random);
            fs::write(&path, [&head, rest].concat()).unwrap();
            exercise(&recorded);
            opened += usize::from(TraceReader::open(&recorded.folder).is_ok());
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(opened < 300, "{opened} of 600 damaged traces were opened");
    TraceReader::open(&recorded.folder).expect("every file is whole again");
}
