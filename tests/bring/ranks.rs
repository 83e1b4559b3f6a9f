//! Tensor parallelism: examples/numpy_engine as several processes, right and with each mistake.

use std::{fs, path::Path};

use firstdiff::{
    graph::site::{Site, Stage},
    trace::{Manifest, Shard, TraceReader, TraceWriter},
};
use serde_json::Value;

use super::engines::{FIXTURE, LLAMA, NUMPY, QWEN3, Recorded};
use crate::cli::{outcome, path};

const TWO: [&str; 2] = ["--ranks", "2"];

/// What `explain` says: its exit code and its text.
fn explain(of: &Recorded, trace: &str, more: &[&str]) -> (i32, String) {
    let explain = ["explain", trace, "-m", path(&of.model)];
    let (exit, out, err) = outcome(&[&explain[..], more].concat());
    assert_eq!(err, "");
    (exit, out)
}

/// Exit code and findings, each with its operations and cause.
fn findings(of: &Recorded, trace: &str) -> (i32, Vec<Value>) {
    let (exit, out) = explain(of, trace, &["--json", "-"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let findings = report["diagnosis"]["findings"].as_array().unwrap().iter();
    let of = |finding: &Value| {
        let cause = &finding["cause"];
        serde_json::json!([finding["operations"], cause["key"], cause["text"], cause["certainty"]])
    };
    (exit, findings.map(of).collect())
}

#[test]
fn ranks_that_divide_the_work_are_equal_to_llama_cpp_as_one_is() {
    // 4 ranks share 2 KV heads, and 5 neurons do not divide.
    let shape = ["--heads", "8", "--kv-heads", "2", "--ffn", "161"];
    let shared = Recorded::synth_with("tiny-llama", &shape);
    let models: [(&Recorded, &[&str], &str); 4] = [
        (&FIXTURE, &TWO, "237 of 237"),
        (&LLAMA, &TWO, "180 of 180"),
        (&QWEN3, &TWO, "198 of 198"),
        (&shared, &["--ranks", "4"], "180 of 180"),
    ];
    for (of, ranks, sites) in models {
        let trace = NUMPY.record_with(of, "ranks", None, ranks);
        let (exit, out) = explain(of, &trace, &["--reference", path(&of.reference), "--verbose"]);
        let equal = format!("equal within the floor: {sites} sites");
        assert!(exit == 0 && out.starts_with(&equal), "{exit} {out}");
        assert!(out.contains("guilty operations: 0"), "{out}");
        assert!(out.contains(&format!("numpy_engine, {} ranks", ranks[1])), "{out}");
    }
}

#[test]
fn a_bug_in_ranks_has_the_verdict_that_it_has_in_one() {
    let of = &*FIXTURE;
    for bug in ["rope-pairs-interleaved", "softmax-temperature", "relu-for-silu"] {
        let one = NUMPY.record_with(of, "one-rank-bug", Some(bug), &[]);
        let two = NUMPY.record_with(of, "two-ranks-bug", Some(bug), &TWO);
        let (one, two) = (findings(of, &one), findings(of, &two));
        assert!(one.0 == 1 && !one.1.is_empty(), "{bug}: {one:?}");
        assert_eq!(one, two, "{bug}");
    }
}

#[test]
fn a_missing_all_reduce_is_the_first_finding() {
    let of = &*FIXTURE;
    let trace = NUMPY.record_with(of, "no-all-reduce", Some("all-reduce-missing"), &TWO);
    let says = "ranks disagree: rank 1's attn_residual differs from rank 0's from layer 0 on: missing \
                all-reduce: each rank adds its own partial sum of o_proj, not all ranks'";
    let (exit, out) = explain(of, &trace, &[]);
    assert!(exit == 1 && out.starts_with(&format!("{says}\n")), "{out}");
    assert!(
        out.contains("no operation was replayed, because the ranks ran on different values"),
        "{out}"
    );
    let reference = path(&of.reference);
    let (exit, out) = explain(of, &trace, &["--reference", reference]);
    let first = format!("{says}; first divergence: step 0 layer 0 attn_residual [position 0, ");
    assert!(exit == 1 && out.starts_with(&first), "{out}");
    let (exit, out, _) = outcome(&["diff", &trace, reference]);
    assert!(exit == 1 && out.starts_with(&first), "{out}");
    let (exit, out, _) = outcome(&["validate", &trace]);
    assert!(exit == 0 && out.contains(&format!("\n  suspicious {says}\n")), "{out}");
}

/// Records of two ranks' traces what `take` gives of a site on a rank: a trace and how it is split.
fn rewrite(
    of: &Recorded,
    name: &str,
    words: &str,
    take: &dyn Fn(Site, usize) -> Option<&'static str>,
) -> String {
    let folder = of.trace(name);
    let source = |name: &str| TraceReader::open(Path::new(&of.trace(name))).unwrap();
    let (right, wrong) = (source("right"), source("wrong"));
    for rank in 0..2 {
        let manifest = Manifest { run: None, ..right.manifest().clone() };
        let shard = Shard::new(rank, 2, words, &manifest.model).unwrap();
        let manifest = manifest.of_rank(shard);
        let mut writer = TraceWriter::create(Path::new(&folder), manifest, false).unwrap();
        for (index, step) in right.manifest().steps.iter().enumerate() {
            writer.begin_step(&step.tokens, step.first_position).unwrap();
            for site in right.sites().filter(|site| site.step as usize == index) {
                let from = match take(site, rank) {
                    Some("right") => &right,
                    Some(_) => &wrong,
                    None => continue,
                };
                writer.put(site, &from.of_rank(site, rank).unwrap().unwrap()).unwrap();
            }
            writer.end_step().unwrap();
        }
        writer.finish().unwrap();
    }
    folder
}

#[test]
fn a_missing_all_reduce_is_named_by_what_was_recorded() {
    let of = Recorded::of(tempfile::tempdir().unwrap(), FIXTURE.model.clone());
    NUMPY.record_with(&of, "right", None, &TWO);
    NUMPY.record_with(&of, "wrong", Some("all-reduce-missing"), &TWO);
    let headline = |trace: &str| {
        let (exit, out) = explain(&of, trace, &[]);
        (exit, out.lines().next().unwrap().to_string())
    };
    // Nothing but the layers' results, wrong from layer 2 on.
    let late = |site: Site, _| match site.stage {
        Stage::LayerOut if site.layer >= Some(2) => Some("wrong"),
        Stage::LayerOut => Some("right"),
        _ => None,
    };
    let (exit, says) = headline(&rewrite(&of, "late", "", &late));
    let expected = "ranks disagree: rank 1's layer_out differs from rank 0's from layer 2 on: missing \
                    all-reduce of o_proj or ffn_down";
    assert_eq!((exit, says.as_str()), (1, expected));
    // Rank 1 recorded no residual: what rank 0 adds says it.
    let alone = |site: Site, rank| match site.stage {
        Stage::Embd | Stage::AttnResidual if rank == 0 => Some("wrong"),
        Stage::OProj => Some("wrong"),
        _ => None,
    };
    let (exit, says) = headline(&rewrite(&of, "alone", "o_proj=partial", &alone));
    let expected = "ranks disagree: rank 0's attn_residual has only its own partial sum of o_proj in \
                    layer 0: missing all-reduce";
    assert_eq!((exit, says.as_str()), (1, expected));
    // Partial sums that are declared whole, and whole ones that are declared partial.
    let sums = |site: Site, _| (site.stage == Stage::OProj).then_some("right");
    let (_, says) = headline(&rewrite(&of, "undeclared", "", &sums));
    let expected = "ranks disagree: rank 1's o_proj differs from rank 0's from layer 0 on: missing \
                    all-reduce, or partial sums that are not declared as such";
    assert_eq!(says, expected);
    let whole = |site: Site, _| (site.stage == Stage::AttnResidual).then_some("right");
    let (_, says) = headline(&rewrite(&of, "summed", "attn_residual=partial", &whole));
    let expected = "ranks disagree: attn_residual is declared a partial sum and is the same on every \
                    rank in layer 0: it was recorded after the all-reduce, declare it replicated";
    assert_eq!(says, expected);
    // A copy of a KV head's input agrees, and what one rank makes of it does not.
    let norm = |site: Site, rank| match (site.stage, rank) {
        (Stage::AttnResidual, _) => Some("right"),
        (Stage::FfnNorm, 0) => Some("right"),
        (Stage::FfnNorm, _) => Some("wrong"),
        _ => None,
    };
    let (_, says) = headline(&rewrite(&of, "norm", "", &norm));
    assert!(
        says.contains("rank 1's ffn_norm differs from rank 0's from layer 0 on: another"),
        "{says}"
    );
    let right = |_: Site, _| Some("right");
    let words = "head neuron vocab o_proj=partial ffn_down=partial";
    let (exit, _) = headline(&rewrite(&of, "all", words, &right));
    assert_eq!(exit, 0);
}

#[test]
fn a_wrong_split_of_the_heads_is_named() {
    let cases = [
        ("heads-in-turn", "query heads assigned to 2 ranks round-robin, but gathered in blocks"),
        ("heads-of-first-rank", "each of 2 ranks has the first one's query heads"),
        (
            "fused-qkv-cut",
            "the fused weight of q, k and v is cut into 2 equal parts for as many ranks",
        ),
    ];
    for (of, name) in [(&*FIXTURE, "fixture"), (&*LLAMA, "llama"), (&*QWEN3, "qwen3")] {
        for (bug, says) in cases {
            let trace = NUMPY.record_with(of, bug, Some(bug), &TWO);
            let (exit, findings) = findings(of, &trace);
            assert_eq!(exit, 1);
            let first = &findings[0];
            assert_eq!(first[0][0], "blk.0.q", "{name} {bug}: {findings:?}");
            let [key, text, certainty] = [1, 2, 3].map(|at| first[at].as_str().unwrap());
            assert_eq!((key, certainty), ("rank-split", "proven"), "{name} {bug}");
            // Of k and v the same may be said in other words.
            assert_eq!(text.split("; in ").next(), Some(says), "{name} {bug}");
            fs::remove_dir_all(trace).unwrap();
        }
    }
}
