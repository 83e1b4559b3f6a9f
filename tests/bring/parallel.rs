//! Mistakes of engines whose ranks divide the work: sums over ranks, vocabularies, KV heads, experts.

use std::{io::Write, sync::LazyLock};

use firstdiff::model::{ModelFile, gguf::Header};
use serde_json::Value;

use super::engines::{FIXTURE, LLAMA, NUMPY, Recorded};
use crate::cli::{outcome, path};

/// A mixture of experts.
static EXPERTS: LazyLock<Recorded> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.gguf");
    let synth = ["synth", "-o", path(&model), "--arch", "qwen3moe"];
    assert_eq!(outcome(&synth).0, 0);
    Recorded::of(folder, model)
});

/// Two KV heads for four ranks.
static SHARED: LazyLock<Recorded> = LazyLock::new(|| {
    let shape = ["--heads", "8", "--kv-heads", "2", "--ffn", "160"];
    Recorded::synth_with("tiny-llama", &shape)
});

/// Heads that three ranks divide, and a vocabulary that they do not.
static THIRDS: LazyLock<Recorded> = LazyLock::new(|| {
    let shape = ["--heads", "6", "--kv-heads", "3"];
    Recorded::synth_with("tiny-llama", &shape)
});

/// A model whose down and output projections have biases.
static BIASED: LazyLock<Recorded> = LazyLock::new(|| {
    let (right, folder) = (ModelFile::open(&LLAMA.model).unwrap(), tempfile::tempdir().unwrap());
    let model = folder.path().join("m.gguf");
    let mut header = Header::default();
    header.copy_keys(right.gguf());
    for info in right.gguf().tensors() {
        header.add_tensor(&info.name, &info.dims, info.ggml_type);
        let is_of_sum =
            ["attn_output.weight", "ffn_down.weight"].iter().any(|end| info.name.ends_with(end));
        if is_of_sum {
            let bias = info.name.replace(".weight", ".bias");
            header.add_tensor(&bias, &info.dims[1..2], llama_cpp_sys_2::GGML_TYPE_F32);
        }
    }
    let write = |info: &firstdiff::model::gguf::TensorInfo, out: &mut dyn Write| match right
        .gguf()
        .tensor(&info.name)
    {
        Some(own) => out.write_all(right.gguf().data(own)),
        None => {
            let bias = crate::common::random_values(info.dims[0] as usize, info.name.len() as u32);
            bias.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
        }
    };
    header.write(&model, write).unwrap();
    Recorded::of(folder, model)
});

/// What `explain` says of a run on so many ranks: its exit code and its text.
fn explained(of: &Recorded, ranks: usize, bug: Option<&str>, more: &[&str]) -> (i32, String) {
    let ranks = ranks.to_string();
    let name = format!("{ranks}-{}", bug.unwrap_or("right"));
    let name = format!("parallel-{name}");
    let trace = NUMPY.record_with(of, &name, bug, &["--ranks", &ranks]);
    let command = ["explain", &trace, "-m", path(&of.model)];
    let (exit, out, err) = outcome(&[&command[..], more].concat());
    std::fs::remove_dir_all(trace).unwrap();
    assert_eq!(err, "");
    (exit, out)
}

/// A mistake on so many ranks, the first operation that is guilty, and what is said.
type Mistake<'m> = (&'m str, usize, &'m str, &'m str);

#[track_caller]
fn each_is_named(of: &Recorded, mistakes: &[Mistake<'_>]) {
    for &(bug, ranks, operation, says) in mistakes {
        let (exit, out) = explained(of, ranks, Some(bug), &["--json", "-"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        let finding = &report["diagnosis"]["findings"][0];
        let cause = &finding["cause"];
        let text = cause["text"].as_str().unwrap_or_default();
        let what = format!("{bug} on {ranks} ranks: {finding}");
        assert!(exit == 1 && finding["operations"][0] == operation, "{what}");
        assert!(cause["certainty"] == "proven" && text.contains(says), "{what}");
    }
}

#[test]
fn a_mixture_of_experts_is_right_on_one_rank_and_on_several() {
    for ranks in [1, 2, 4] {
        let reference = ["--reference", path(&EXPERTS.reference)];
        let (exit, out) = explained(&EXPERTS, ranks, None, &reference);
        assert!(exit == 0 && out.starts_with("equal within the floor: "), "{ranks}: {out}");
        assert!(out.contains("guilty operations: 0"), "{ranks}: {out}");
    }
}

#[test]
fn sums_over_ranks_that_are_wrong_are_named() {
    each_is_named(
        &FIXTURE,
        &[
            (
                "all-reduce-twice",
                2,
                "blk.0.attn_residual",
                "o_proj is summed over the 2 ranks twice: times 2",
            ),
            (
                "residual-on-each-rank",
                2,
                "blk.0.layer_out",
                "attn_residual is added on each of 2 ranks before their sum: times 2",
            ),
            (
                "norm-of-shard",
                2,
                "blk.0.attn_norm",
                "not all 224 together: the share of each of 2 ranks",
            ),
            ("logits-of-ranks-reversed", 2, "logits", "of 2 ranks in reverse order of the ranks"),
        ],
    );
    let bias = "the bias is added on each of 2 ranks before their sum: times 2";
    each_is_named(&BIASED, &[("bias-on-each-rank", 2, "blk.0.o_proj", bias)]);
    let reference = ["--reference", path(&BIASED.reference)];
    let (exit, out) = explained(&BIASED, 2, None, &reference);
    assert!(exit == 0 && out.contains("guilty operations: 0"), "{out}");
    let thrice = "o_proj is summed over the 3 ranks twice: times 3";
    each_is_named(&THIRDS, &[("all-reduce-twice", 3, "blk.0.attn_residual", thrice)]);
    let reversed = "its rows are reordered: 0-169 are logits 342-511, 170-340 are logits 171-341";
    each_is_named(&THIRDS, &[("logits-of-ranks-reversed", 3, "logits", reversed)]);
}

#[test]
fn a_divided_vocabulary_or_kv_heads_that_are_looked_up_wrongly_are_named() {
    let masked = "a rank's rows for the ids of other ranks are not masked";
    let mistakes = [
        ("ids-not-masked", 4, "embd", masked),
        ("ids-offset", 4, "embd", "has the row of id - 1"),
        ("logits-of-ranks-reversed", 4, "logits", "of 4 ranks in reverse order of the ranks"),
        ("residual-on-each-rank", 4, "blk.0.layer_out", "before their sum: times 4"),
    ];
    each_is_named(&SHARED, &mistakes);
    let (exit, out) = explained(&SHARED, 4, Some("kv-heads-in-turn"), &[]);
    let says = "ranks disagree: rank 1's k differs from rank 0's from layer 0 on: rank r has KV head r % 2, \
                not r * 2 / 4: they are assigned to the ranks round-robin\n";
    assert!(exit == 1 && out.starts_with(says), "{out}");
}

#[test]
fn experts_that_ranks_mistake_are_named() {
    let in_turn = |ranks| {
        format!("the experts are assigned to {ranks} ranks round-robin, but looked up in blocks")
    };
    let (two, four) = (&*in_turn(2), &*in_turn(4));
    let of_other = "slots of expert 3 have the weights of expert 5";
    each_is_named(
        &EXPERTS,
        &[
            ("expert-map-in-turn", 2, "blk.0.ffn_moe_gate", two),
            ("expert-map-in-turn", 4, "blk.0.ffn_moe_gate", four),
            ("expert-map-shifted", 1, "blk.0.ffn_moe_gate", "expert id + 1"),
            ("expert-of-other", 1, "blk.0.ffn_moe_gate", of_other),
            ("expert-of-other", 2, "blk.0.ffn_moe_gate", of_other),
            ("expert-down-of-other", 1, "blk.1.ffn_moe_down", of_other),
            (
                "slots-exchanged",
                1,
                "blk.0.ffn_moe_down",
                "results of a token's slots in reverse order",
            ),
            (
                "weights-of-other-slots",
                1,
                "blk.0.ffn_moe_weighted",
                "factors in reverse order of the slots",
            ),
            (
                "experts-of-a-rank-lost",
                2,
                "blk.0.layer_out",
                "rank 1's partial sum of ffn_moe_out is left out",
            ),
            (
                "experts-of-a-rank-twice",
                4,
                "blk.0.layer_out",
                "rank 1's partial sum of ffn_moe_out is added twice",
            ),
        ],
    );
}
