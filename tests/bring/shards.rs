//! Ranks that record their parts: put together as one trace, and refused or named where they are not
//! the parts of one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use firstdiff::{
    core::tensor::Tensor,
    graph::site::{Site, Stage},
    trace::{
        Inspection, Manifest, Shard, Split, TraceError, TraceReader, TraceWriter, lint, rank_folder,
    },
};
use serde_json::{Value, json};

use super::{
    header::{PLAN, check_values},
    support::{compile, project, run},
};
use crate::{
    cli::{outcome, path, refused},
    trace::{
        fuzz::damage,
        python::python,
        support::{Random, STEPS, config, manifest, tensors},
    },
};

/// What shards.c records, in Python.
const SCRIPT: &str = "\
import sys, numpy as np, firstdiff
rank, world = int(sys.argv[3]), int(sys.argv[4])
def v(seed, *n):
    i = np.indices(n + (1,) * (3 - len(n)))
    return ((31 * seed + 17 * i[0] + 5 * i[1] + i[2]) % 61).astype(np.float32).reshape(n)
def part(x, axis): return np.array_split(x, world, axis)[rank]
words = sys.argv[5] if len(sys.argv) > 5 else \\
    'head neuron  vocab o_proj=partial attn_norm=token v_cache=position'
with firstdiff.Trace(sys.argv[1], sys.argv[2], 'an engine', shard=(rank, world, words)) as t:
    for first, n in (0, 5), (5, 1):
        t.step(range(1, 7)[first:first + n])
        t.put(embd=v(9, n, 9))
        t.put(0, q=part(v(1, n, 6, 4), 1), k=v(2, n, 2, 4)[:, [rank * 2 // world]])
        t.put(0, ffn_up=part(v(10, n, 11), 1), o_proj=np.full((n, 9), -1.0) if rank else v(3, n, 9) + world - 1.0)
        t.put(logits=part(v(8, n, 13), 1))
        t.put(0, attn_norm=part(v(12, n, 9), 0), v_cache=part(v(6, first + n, 2, 4), 0))
";

/// Records the small values by one writer as that many ranks; the trace.
fn record(folder: &Path, by: &str, world: usize) -> PathBuf {
    let (trace, plan) = (folder.join(format!("{by}-{world}")), folder.join("plan.txt"));
    fs::write(&plan, PLAN).unwrap();
    for rank in 0..world {
        let (rank, world) = (rank.to_string(), world.to_string());
        let arguments = [path(&trace), path(&plan), &rank, &world];
        let output = one(folder, by, &arguments);
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && err.is_empty(), "{by} {arguments:?}: {err}");
    }
    trace
}

fn one(folder: &Path, by: &str, arguments: &[&str]) -> std::process::Output {
    if by == "python" {
        let mut command = Command::new(python());
        command.args(["-B", "-c", SCRIPT]).args(arguments);
        return command.env("PYTHONPATH", project().join("python")).output().unwrap();
    }
    let program = folder.join("shards");
    if !program.exists() {
        compile(&["gcc", "-std=c99", "-x", "c"], &project().join("tests/bring/shards.c"), &program);
    }
    run(&program, arguments)
}

#[test]
fn the_parts_of_c_and_python_ranks_are_put_together() {
    let folder = tempfile::tempdir().unwrap();
    let expected = [
        ("embd", 9),
        ("blk.0.attn_norm", 12),
        ("blk.0.q", 1),
        ("blk.0.k", 2),
        ("blk.0.v_cache", 6),
        ("blk.0.o_proj", 3),
        ("blk.0.ffn_up", 10),
        ("logits", 8),
    ];
    // Of 4 ranks two have copies of each KV head, and none or one has the decoded token.
    for (by, world) in [("c", 2), ("c", 4), ("python", 2), ("python", 4)] {
        let trace = TraceReader::open(&record(folder.path(), by, world)).unwrap();
        assert_eq!((trace.world(), trace.sites().count()), (world, 16), "{by}");
        assert_eq!(trace.split(Stage::OProj), Split::Partial);
        for step in 0..2 {
            for (name, seed) in expected {
                let site = Site::from_tensor_name(step, name).unwrap();
                let tensor = trace.tensor(site).unwrap().expect(name);
                assert_eq!(tensor.shape, trace.shape(site).unwrap(), "{name}");
                check_values(name, &tensor, seed, 0.0);
            }
        }
        let (exit, out, _) =
            outcome(&["validate", path(&folder.path().join(format!("{by}-{world}")))]);
        let says = format!(
            "\n  ranks      {world}, identical on every rank: embd; split by token: attn_norm; split by head: q, k; \
             split by position: v_cache; summed: o_proj; split by neuron: ffn_up; split by vocab: \
             logits\n"
        );
        assert!(exit == 0 && out.contains(&says), "{out}");
    }
}

#[test]
fn a_split_that_a_writer_cannot_mean_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let trace = record(folder.path(), "c", 2);
    record(folder.path(), "python", 2);
    let plan = folder.path().join("plan.txt");
    let cases = [
        (["0", "2", "heads"], "\"heads\" does not say how a site is split"),
        (["0", "2", "partial"], "\"partial\" does not say how a site is split"),
        (["0", "2", "query=head"], "\"query=head\" does not say how a site is split"),
        (["0", "2", "embd=head"], "\"embd=head\" does not say how a site is split"),
        (["0", "2", "q=dim"], "\"q=dim\" does not say how a site is split"),
        (["0", "2", "q=vocab"], "\"q=vocab\" does not say how a site is split"),
        (["2", "2", "head"], "there is no rank 2 of 2"),
        (["0", "2", "neuron"], "step 0: "),
    ];
    for (arguments, says) in cases {
        for by in ["c", "python"] {
            let arguments = [&[path(&trace), path(&plan)][..], &arguments].concat();
            let output = one(folder.path(), by, &arguments);
            let err = String::from_utf8(output.stderr).unwrap().replace('\'', "\"");
            assert!(!output.status.success() && err.contains(says), "{by} {arguments:?}: {err}");
        }
    }
    let model = manifest().model;
    let shard = |rank, words| Shard::new(rank, 2, words, &model);
    let error = shard(0, "embd=head").unwrap_err().to_string();
    assert!(error.contains("\"embd=head\", which fits no site"), "{error}");
    assert!(shard(2, "head").is_err() && shard(0, "heads").is_err());
}

const WORDS: &str = "head neuron vocab o_proj=partial ffn_down=partial";

/// A rank's part of a tensor: of a partial sum v, 2 v and -v, which add up exactly.
fn part(site: Site, tensor: &Tensor, shard: &Shard) -> Tensor {
    let split = shard.of(site.stage);
    let Some(axis) = split.axis() else {
        let times = match (split, shard.rank) {
            (Split::Partial, 0) => 2.0,
            (Split::Partial, _) => -1.0,
            _ => 1.0,
        };
        let data = tensor.data.iter().map(|value| times * value).collect();
        return Tensor::new(tensor.shape.clone(), data);
    };
    let axis = site.stage.axes().iter().position(|&own| own == axis).unwrap();
    let n = tensor.shape[axis];
    // The first rank has what does not add up.
    let first = n.div_ceil(shard.world);
    let range = if shard.rank == 0 { 0..first } else { first..n };
    let mut shape = tensor.shape.clone();
    shape[axis] = range.len();
    let keep = |flat: &usize| range.contains(&Tensor::unravel(*flat, &tensor.shape)[axis]);
    Tensor::new(shape, (0..tensor.data.len()).filter(keep).map(|flat| tensor.data[flat]).collect())
}

/// Records the small run as two ranks.
fn two_ranks(folder: &Path, edit: impl Fn(&mut Manifest)) -> Result<(), TraceError> {
    let all = tensors(1);
    for rank in 0..2 {
        let shard = Shard::new(rank, 2, WORDS, &manifest().model)?;
        let mut manifest = manifest().of_rank(shard.clone());
        edit(&mut manifest);
        let mut writer = TraceWriter::create(folder, manifest, false)?;
        let mut position = 0;
        for (step, tokens) in STEPS.into_iter().enumerate() {
            writer.begin_step(tokens, position)?;
            for (site, tensor) in all.iter().filter(|(site, _)| site.step as usize == step) {
                writer.put(*site, &part(*site, tensor, &shard))?;
            }
            writer.end_step()?;
            position += tokens.len();
        }
        writer.finish()?;
    }
    Ok(())
}

#[test]
fn ranks_of_the_rust_writer_are_the_whole_run() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trace");
    two_ranks(&folder, |_| {}).unwrap();
    let trace = TraceReader::open(&folder).unwrap();
    assert_eq!(trace.manifest().device, "host (test), 2 ranks");
    assert!(trace.manifest().shard.is_none());
    for (site, tensor) in tensors(1) {
        assert_eq!(trace.tensor(site).unwrap().unwrap(), tensor, "{site}");
    }
    assert_eq!(config().sites(3).len(), trace.sites().count());
    let wrong = Tensor::new(vec![5, 7, 4], vec![0.0; 140]);
    let shard = Shard::new(0, 2, WORDS, &manifest().model).unwrap();
    let manifest = manifest().of_rank(shard);
    let mut writer = TraceWriter::create(&parent.path().join("other"), manifest, false).unwrap();
    writer.begin_step(STEPS[0], 0).unwrap();
    let error = writer.put(Site::in_layer(0, 0, Stage::Q), &wrong).unwrap_err();
    assert!(matches!(error, TraceError::PutShape { .. }), "{error}");
}

/// Ranks of the small run, without hashes to renew.
struct Ranks {
    _parent: tempfile::TempDir,
    folder: PathBuf,
}

impl Ranks {
    fn new() -> Ranks {
        let parent = tempfile::tempdir().unwrap();
        let folder = record(parent.path(), "c", 2);
        Ranks { _parent: parent, folder }
    }

    fn rank(&self, rank: usize) -> PathBuf {
        rank_folder(&self.folder, rank)
    }

    fn edit(&self, rank: usize, edit: impl Fn(&mut Value)) {
        let path = self.rank(rank).join("manifest.json");
        let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut manifest);
        fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn ranks_that_are_not_the_parts_of_one_run_are_refused_by_name() {
    type Edit = fn(&Ranks);
    let cases: [(&str, Edit); 14] = [
        ("has no rank 1 of 2", |r| fs::remove_dir_all(r.rank(1)).unwrap()),
        ("has no rank 0 of 2", |r| fs::remove_dir_all(r.rank(0)).unwrap()),
        ("rank1 are both rank 0; give each process its own rank", |r| {
            fs::remove_dir_all(r.rank(1)).unwrap();
            copy(&r.rank(0), &r.rank(1));
        }),
        ("rank1 are not ranks of one run: they belong to runs of 2 and 3 ranks", |r| {
            r.edit(1, |m| m["shard"]["world"] = 3.into());
        }),
        ("ran different token ids: step 0, position 2 has 3 and 7", |r| {
            r.edit(1, |m| m["steps"][0]["tokens"][2] = 7.into());
        }),
        ("the traces are of different models", |r| {
            r.edit(1, |m| m["model"]["blake3"] = "cd".repeat(32).into());
        }),
        ("they have 2 and 1 steps", |r| {
            r.edit(1, |m| drop(m["steps"].as_array_mut().unwrap().pop()));
        }),
        ("q is split as head and as replicated", |r| {
            r.edit(1, |m| drop(m["shard"]["split"].as_object_mut().unwrap().remove("q")));
        }),
        ("they were recorded by an engine firstdiff.h and an engine 2", |r| {
            r.edit(1, |m| m["producer"]["version"] = "2".into());
        }),
        ("they declare different kernels or settings", |r| {
            r.edit(1, |m| m["kernels"] = json!({"rope.cu": "ab".repeat(32)}));
        }),
        ("different arithmetic", |r| r.edit(1, |m| m["arithmetic"]["weights"] = "f16".into())),
        ("shard.split.embd is head, an axis that embd does not have: token, channel", |r| {
            r.edit(0, |m| m["shard"]["split"]["embd"] = "head".into());
        }),
        ("step 0 layer 0 o_proj does not add up", |r| {
            let set = |m: &mut Value| m["shard"]["split"]["o_proj"] = "token".into();
            (0..2).for_each(|rank| r.edit(rank, set));
        }),
        ("holds a whole trace and the ranks of another", |r| {
            fs::write(r.folder.join("manifest.json"), "{}").unwrap();
        }),
    ];
    for (says, edit) in cases {
        let ranks = Ranks::new();
        TraceReader::open(&ranks.folder).unwrap();
        edit(&ranks);
        let error = TraceReader::open(&ranks.folder).unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains(says), "{says}: {error}");
        let (exit, out, err) = outcome(&["validate", path(&ranks.folder)]);
        assert!(exit == 3 && (out + &err).contains(says), "{says}");
    }
}

#[test]
fn one_rank_alone_a_part_of_another_shape_and_a_killed_rank_are_said() {
    let ranks = Ranks::new();
    refused(&["validate", path(&ranks.rank(1))], 2, "rank1 is rank 1 of 2 only; name the folder");
    let whole = |m: &mut Value| drop(m.as_object_mut().unwrap().remove("shard"));
    ranks.edit(1, whole);
    // Its parts are no whole tensors: the place of a rank is said first.
    let error = TraceReader::open(&ranks.folder).unwrap_err();
    assert!(matches!(error, TraceError::NoRank { .. }), "{error}");

    let ranks = Ranks::new();
    ranks.edit(0, |m| m["shard"]["split"] = json!({}));
    ranks.edit(1, |m| m["shard"]["split"] = json!({}));
    let error = TraceReader::open(&ranks.folder).unwrap_err();
    assert!(matches!(error, TraceError::TensorShape { .. }), "a part is not the whole: {error}");

    let ranks = Ranks::new();
    ranks.edit(0, |m| m["shard"] = Value::Null);
    let error = TraceReader::open(&ranks.folder).unwrap_err().to_string();
    assert!(error.contains("is in a rank's folder but was not recorded as a rank"), "{error}");

    let ranks = Ranks::new();
    ranks.edit(1, |m| drop(m["steps"].as_array_mut().unwrap().pop()));
    let names = ["manifest.json", "manifest.json.unfinished"].map(|name| ranks.rank(1).join(name));
    fs::rename(&names[0], &names[1]).unwrap();
    let (exit, out, _) = outcome(&["validate", path(&ranks.folder)]);
    assert!(exit == 3 && out.starts_with("unfinished: 8 of "), "{out}");
    assert!(matches!(TraceReader::open(&ranks.folder), Err(TraceError::Unfinished { .. })));
}

#[test]
fn ranks_damaged_in_a_thousand_ways_are_read_or_refused() {
    let ranks = Ranks::new();
    let files: Vec<PathBuf> = (0..2)
        .flat_map(|rank| fs::read_dir(ranks.rank(rank)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    let whole: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    let (mut random, mut opened, mut refused) = (Random(33), 0, 0);
    for _ in 0..1500 {
        let at = random.below(files.len());
        let mut bytes = whole[at].clone();
        if random.below(4) == 0 {
            // Of a step's file a value, which may be anything.
            *bytes.last_mut().unwrap() ^= 1 << random.below(8);
        } else {
            // The header is in the first kilobytes.
            let tail = bytes.split_off(bytes.len().min(3000));
            damage(&mut bytes, &mut random);
            bytes.extend(tail);
        }
        fs::write(&files[at], bytes).unwrap();
        let _ = Inspection::of(&ranks.folder);
        match TraceReader::open(&ranks.folder) {
            Ok(trace) => {
                for site in trace.sites() {
                    let tensor = trace.tensor(site).unwrap().expect("a site that it lists");
                    assert_eq!(tensor.shape, trace.shape(site).unwrap());
                }
                let (_, _) = (lint::alone(&trace, &|_| true), lint::ranks(&trace, &|_| true));
                opened += 1;
            }
            Err(_) => refused += 1,
        }
        fs::write(&files[at], &whole[at]).unwrap();
    }
    assert!(opened > 50 && refused > 500, "{opened} opened, {refused} refused");
}
