//! Steps of several sequences: what a reader shows of each, and tables that are refused.

use std::{collections::BTreeSet, fs};

use firstdiff::{
    core::tensor::Tensor,
    graph::{
        ListedSite, SiteList, Size,
        site::{Axis, Site, Stage},
    },
    trace::{
        Array, Batch, BatchedSequence, Elements, MANIFEST_FILE, Manifest, ModelId, TraceReader,
        TraceWriter, recording::Recorded as _,
    },
};
use serde_json::{Value, json};

use super::support::{Random, Recorded, manifest};

const SLOTS: usize = 12;
const KEYS: usize = 4;

fn part(sequence: u32, first_position: usize, rows: &[usize], blocks: &[usize]) -> BatchedSequence {
    let (rows, blocks) = (rows.to_vec(), blocks.to_vec());
    BatchedSequence {
        sequence,
        first_position,
        prefix: Vec::new(),
        removed: None,
        rows,
        blocks,
        keys: None,
    }
}

/// Two steps: sequences 0 and 7 with a row of padding between them, then each a token; pages of two slots.
fn batches() -> [(Vec<i32>, Batch); 2] {
    let batch = |sequences| Batch { slots: SLOTS, block_size: 2, keys: Some(KEYS), sequences };
    let first = [part(0, 0, &[0, 1, 2], &[4, 1]), part(7, 0, &[5, 4], &[0])];
    let second = [part(7, 2, &[0], &[0, 5]), part(0, 3, &[1], &[4, 1])];
    let mut second = batch(second.to_vec());
    second.sequences[1].keys = Some(vec![3, 2, 1, 0]);
    [(vec![1, 2, 3, 0, 4, 5], batch(first.to_vec())), (vec![6, 7], second)]
}

/// Row r of a tensor is r everywhere, its last axis counting in hundredths.
fn tensor(shape: &[usize]) -> Tensor {
    let (row, last) = (shape[1..].iter().product::<usize>(), shape[shape.len() - 1]);
    let value = |at: usize| (at / row) as f32 + (at % last) as f32 / 100.0;
    Tensor::new(shape.to_vec(), (0..row * shape[0]).map(value).collect())
}

/// A trace with q of those rows of the first step only, or of all.
fn written(chosen: Option<&[usize]>) -> Recorded {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let mut writer = TraceWriter::create(&folder, manifest(), false).unwrap();
    for (step, (tokens, batch)) in (0..).zip(batches()) {
        writer.begin_batch(&tokens, batch).unwrap();
        let rows = tokens.len();
        let site = |stage| Site::in_layer(step, 0, stage);
        match chosen.filter(|_| step == 0) {
            None => writer.put(site(Stage::Q), &tensor(&[rows, 6, 4])).unwrap(),
            Some(chosen) => {
                let some = tensor(&[chosen.len(), 6, 4]);
                let array = Array::new(Elements::F32(&some.data), &some.shape).of_tokens(chosen);
                writer.put_array(site(Stage::Q), &array).unwrap();
            }
        }
        writer.put(site(Stage::KCache), &tensor(&[SLOTS, 2, 4])).unwrap();
        writer.put(site(Stage::Scores), &tensor(&[rows, 6, KEYS])).unwrap();
        writer.end_step().unwrap();
    }
    writer.finish().unwrap();
    Recorded { parent, folder }
}

/// The first number of each row, and of the last axis the hundredths.
fn rows(trace: &TraceReader, step: u32, stage: Stage) -> (Vec<f32>, Vec<usize>) {
    let tensor = trace.tensor(Site::in_layer(step, 0, stage)).unwrap().unwrap();
    let (row, last) = (tensor.data.len() / tensor.shape[0], tensor.shape[tensor.shape.len() - 1]);
    let firsts = tensor.data.chunks(row).map(|row| row[0].floor()).collect();
    let hundredths = tensor.data[..last].iter().map(|x| (x.fract() * 100.0).round() as usize);
    (firsts, hundredths.collect())
}

#[test]
fn a_sequence_has_its_rows_its_slots_and_its_keys_in_the_order_of_its_positions() {
    let recorded = written(None);
    let batch = TraceReader::open(&recorded.folder).unwrap();
    assert_eq!(batch.sequences(), [0, 7]);
    let seven = batch.clone().sequence(Some(7)).unwrap();
    let steps: Vec<_> =
        seven.manifest().steps.iter().map(|s| (s.tokens.clone(), s.first_position)).collect();
    assert_eq!(steps, [(vec![5, 4], 0), (vec![6], 2)]);
    assert_eq!(rows(&seven, 0, Stage::Q).0, [5.0, 4.0]);
    assert_eq!(rows(&seven, 0, Stage::KCache).0, [0.0, 1.0]);
    assert_eq!(rows(&seven, 1, Stage::KCache).0, [0.0, 1.0, 10.0]);
    assert_eq!(rows(&seven, 0, Stage::Scores), (vec![5.0, 4.0], vec![0, 1]));
    assert_eq!(seven.padding(0), 1);
    let zero = batch.sequence(Some(0)).unwrap();
    assert_eq!(rows(&zero, 1, Stage::Q).0, [1.0]);
    assert_eq!(rows(&zero, 0, Stage::KCache).0, [8.0, 9.0, 2.0]);
    assert_eq!(rows(&zero, 1, Stage::KCache).0, [8.0, 9.0, 2.0, 3.0]);
    assert_eq!(rows(&zero, 1, Stage::Scores), (vec![1.0], vec![3, 2, 1, 0]));
    assert_eq!(zero.padding(0), 0);
    // Of the neighbour, every row up to the step, and none of padding.
    let found = zero.neighbours(Site::in_layer(1, 0, Stage::Q)).unwrap();
    let found: Vec<_> = found.iter().map(|n| (n.sequence, n.position, n.values[0])).collect();
    assert_eq!(found, [(7, 0, 5.0), (7, 1, 4.0), (7, 2, 0.0)]);
}

#[test]
fn rows_of_some_tokens_are_those_of_the_sequences_that_have_them() {
    let recorded = written(Some(&[1, 2, 4]));
    let batch = TraceReader::open(&recorded.folder).unwrap();
    let site = Site::in_layer(0, 0, Stage::Q);
    let zero = batch.clone().sequence(Some(0)).unwrap();
    assert_eq!(zero.rows(site), Some(&[1, 2][..]));
    assert_eq!(rows(&zero, 0, Stage::Q).0, [0.0, 1.0]);
    let seven = batch.sequence(Some(7)).unwrap();
    assert_eq!(seven.rows(site), Some(&[1][..]));
    assert_eq!(rows(&seven, 0, Stage::Q).0, [2.0]);
    let recorded = written(Some(&[1, 2]));
    let seven = TraceReader::open(&recorded.folder).unwrap().sequence(Some(7)).unwrap();
    assert!(!seven.has(site));
}

#[test]
fn each_malformed_batch_and_table_is_refused_by_name() {
    let edits: [(&str, Value, &str); 30] = [
        ("/0/batch/sequences", json!([]), "steps[0].batch.sequences is empty"),
        ("/0/batch/block_size", json!(0), "steps[0].batch.block_size is 0"),
        ("/0/batch/sequences/1/sequence", json!(0), "sequences[1].sequence is 0 a second time"),
        ("/0/batch/sequences/1/rows", json!([]), "sequences[1].rows is empty"),
        ("/0/batch/sequences/1/rows", json!([5, 6]), "sequences[1].rows has row 6 of a step of 6"),
        (
            "/0/batch/sequences/1/rows",
            json!([2, 4]),
            "sequences[1].rows has row 2, which also belongs to sequence 0",
        ),
        ("/0/batch/sequences/0/rows", json!([0, 1, 1]), "which also belongs to sequence 0"),
        ("/0/batch/sequences/0/blocks", json!([4]), "blocks has 1 blocks; 3 positions in a cache"),
        ("/0/batch/sequences/0/blocks", json!([4, 1, 2]), "blocks has 3 blocks; 3 positions in a"),
        ("/0/batch/sequences/0/blocks", json!([4, 6]), "blocks has block 6, but the cache has 6"),
        ("/0/batch/sequences/0/blocks", json!([4, 4]), "sequences[0].blocks has block 4 twice"),
        (
            "/0/batch/keys",
            json!(2),
            "sequences[0].keys are not given: 3 positions have more than 2",
        ),
        ("/1/batch/sequences/1/keys", json!([0, 1, 2]), "sequences[1].keys has 3 keys of 4"),
        ("/1/batch/sequences/1/keys", json!([0, 1, 2, 4]), "sequences[1].keys has key 4 of 4"),
        ("/1/batch/sequences/1/keys", json!([0, 1, 2, 1]), "sequences[1].keys has key 1 twice"),
        (
            "/1/batch/sequences/0/first_position",
            json!(3),
            "sequences[0].first_position is 3, but the sequence continues at position 2",
        ),
        (
            "/0/batch/sequences/0/prefix",
            json!([1]),
            "sequences[0].prefix has 1 ids for 0 positions",
        ),
        (
            "/1/batch/sequences/0/prefix",
            json!([1, 2]),
            "sequences[0].prefix is present after the sequence's first step",
        ),
        ("/0/batch/sequences/0/prefix", json!([-1]), "sequences[].prefix has id -1, n_vocab is"),
        ("/0/prefix", json!([1]), "steps[0].prefix has 1 ids for 0 positions"),
        (
            "/0/batch/sequences/0/removed",
            json!({"first": 0, "count": 1}),
            "sequences[0].removed is present, but no step ran the sequence before",
        ),
        (
            "/1/batch/sequences/0/removed",
            json!({"first": 1, "count": 2}),
            "sequences[0].removed is 2 positions from 1 on, and the cache has 2",
        ),
        (
            "/1/batch/sequences/0/removed",
            json!({"first": 1, "count": 0}),
            "sequences[0].removed has a count of 0",
        ),
        (
            "/1/batch/sequences/0/removed",
            json!({"first": 1, "count": 1}),
            "sequences[0].first_position is 2, but the sequence continues at position 1",
        ),
        ("/1/batch/sequences/0/removed", json!({"first": 1}), "missing field `count`"),
        (
            "/1/removed",
            json!({"first": 0, "count": 1}),
            "steps[1].removed is present beside a batch; state it for each sequence",
        ),
        (
            "/0/removed",
            json!({"first": 0, "count": 1}),
            "steps[0].removed is present in the first step, before which nothing ran",
        ),
        ("/1/batch", Value::Null, "steps[1].batch is missing, but step 0 has one"),
        ("/0/batch", Value::Null, "steps[1].batch is present, but step 0 has none"),
        ("/0/tokens/3", json!(13), "steps[0].tokens has id 13, n_vocab is 13"),
    ];
    for (pointer, value, says) in edits {
        let recorded = written(None);
        recorded.edit_manifest(|manifest| {
            // The last part may not be there yet.
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let parent = manifest["steps"].pointer_mut(parent).unwrap();
            match parent {
                Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
                object => object[name] = value,
            }
        });
        let error = recorded.refusal().to_string();
        assert!(error.contains(says), "{pointer}: {error}");
    }
}

#[test]
fn a_cache_without_slots_and_lengths_beyond_all_limits_are_refused() {
    for (pointer, value, says) in [
        ("/slots", json!(u64::MAX), "the limit is"),
        ("/keys", json!(u64::MAX), "the limit is"),
        ("/sequences/0/first_position", json!(u64::MAX), "the limit is"),
        ("/slots", json!(14), "[12, 2, 4]"),
        ("/keys", json!(5), "[6, 6, 5]"),
    ] {
        let recorded = written(None);
        recorded.edit_manifest(|manifest| {
            *manifest["steps"][0]["batch"].pointer_mut(pointer).unwrap() = value;
        });
        let error = recorded.refusal().to_string();
        assert!(error.contains(says), "{pointer}: {error}");
    }
    let recorded = written(None);
    recorded.edit_manifest(|manifest| {
        let batch = manifest["steps"][0]["batch"].as_object_mut().unwrap();
        batch.remove("slots");
        for part in batch["sequences"].as_array_mut().unwrap() {
            part.as_object_mut().unwrap().remove("blocks");
        }
    });
    let error = recorded.refusal().to_string();
    assert!(
        error.contains("blk.0.k_cache is recorded, but the step's batch has no slots"),
        "{error}"
    );
}

#[test]
fn a_state_is_each_sequences_own_and_what_cannot_be_divided_is_refused() {
    let state = Site::from_tensor_name(0, "blk.0.state").unwrap();
    let padded = Site::from_tensor_name(0, "blk.0.padded").unwrap();
    let listed = |site: Site, first: Size| ListedSite {
        layer: site.layer,
        stage: site.stage,
        axes: vec![Axis::Element, Axis::Channel],
        sizes: vec![first, Size::fixed(4)],
    };
    let longer = Size { per_token: 1, ..Size::fixed(3) };
    let list = SiteList::new(vec![listed(state, Size::fixed(3)), listed(padded, longer)]);
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    let model = ModelId::new("small", "ab".repeat(32), "any", 13, &list);
    let mut writer = TraceWriter::create(&folder, Manifest { model, ..manifest() }, false).unwrap();
    let [(tokens, batch), _] = batches();
    writer.begin_batch(&tokens, batch).unwrap();
    writer.put(state, &tensor(&[6, 4])).unwrap();
    writer.end_step().unwrap();
    writer.finish().unwrap();
    let seven = TraceReader::open(&folder).unwrap().sequence(Some(7)).unwrap();
    let own = seven.tensor(state).unwrap().unwrap();
    assert_eq!((own.shape, own.data[0].floor()), (vec![3, 4], 3.0));

    let other = parent.path().join("other");
    let model = ModelId::new("small", "ab".repeat(32), "any", 13, &list);
    let mut writer = TraceWriter::create(&other, Manifest { model, ..manifest() }, false).unwrap();
    let [(tokens, batch), _] = batches();
    writer.begin_batch(&tokens, batch).unwrap();
    let error = writer.put(padded, &tensor(&[9, 4])).unwrap_err().to_string();
    assert!(error.contains("blk.0.padded cannot be divided into the sequences"), "{error}");
}

/// The numbers that say whose the rows are, and which positions leave a cache, by their places in the manifest.
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_string()),
        Value::Array(list) => {
            (0..)
                .zip(list)
                .for_each(|(i, value): (usize, _)| numbers(value, &format!("{at}/{i}"), found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| numbers(value, &format!("{at}/{name}"), found));
        }
        _ => {}
    }
}

/// Reads all of a batch, and holds its tables to what they promise, however they were made.
fn read_whole(reader: &TraceReader) {
    for number in reader.sequences() {
        let one = reader.clone().sequence(Some(number)).unwrap();
        let mut end = None;
        for step in &one.manifest().steps {
            let removed = step.removed.map_or(0, |removed| removed.count);
            assert!(end.is_none_or(|end: usize| end - removed == step.first_position));
            end = Some(step.positions());
        }
        for site in one.sites() {
            let tensor = one.tensor(site).unwrap().expect("a site that it lists");
            assert_eq!(tensor.shape.iter().product::<usize>(), tensor.data.len());
            assert!(one.neighbours(site).is_ok() && one.outside(site).is_ok());
        }
        one.settled().unwrap();
    }
    for step in &reader.manifest().steps {
        let rows = step.batch.iter().flat_map(|batch| &batch.sequences).flat_map(|own| &own.rows);
        let mut seen = BTreeSet::new();
        assert!(rows.into_iter().all(|&row| row < step.tokens.len() && seen.insert(row)));
    }
}

#[test]
fn a_batch_of_random_numbers_is_read_whole_or_refused() {
    let recorded = written(None);
    recorded.edit_manifest(|manifest| {
        let parts = manifest["steps"][1]["batch"]["sequences"].as_array_mut().unwrap();
        parts[0]["removed"] = json!({"first": 1, "count": 1});
        parts[0]["first_position"] = json!(1);
        parts[0]["blocks"] = json!([0]);
    });
    let path = recorded.folder.join(MANIFEST_FILE);
    let whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    read_whole(&TraceReader::open(&recorded.folder).unwrap());
    let mut places = Vec::new();
    for step in 0..2 {
        numbers(&whole["steps"][step]["batch"], &format!("/steps/{step}/batch"), &mut places);
    }
    let mut random = Random(18);
    let (mut opened, mut refused) = (0, 0);
    for round in 0..2000 {
        let mut manifest = whole.clone();
        for _ in 0..=random.below(2) {
            let place = &places[random.below(places.len())];
            let number = match random.below(8) {
                0 => random.next() >> random.below(64),
                _ => random.below(8) as u64,
            };
            *manifest.pointer_mut(place).unwrap() = number.into();
        }
        fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
        recorded.seal();
        match TraceReader::open(&recorded.folder) {
            Ok(reader) => {
                read_whole(&reader);
                opened += 1;
            }
            Err(error) => {
                assert!(error.is_refusal(), "round {round}: {error}");
                refused += 1;
            }
        }
    }
    assert!(opened > 100 && refused > 500, "{opened} {refused}");
}
