//! Faults of the loader that are planted in our own engine are named by the weight that they change.

use firstdiff::{
    core::tensor::DType,
    engine::fault::{FAULTS, Fault, Faults, Need, Plant},
    model::synth::Spec,
};

use crate::common::{Bench, engine};

/// What is said of a fault's weights.
fn text(fault: &Fault) -> &'static str {
    match fault.name {
        "attn-norm-weight-missing" => "all 1, but not in the file",
        "attn-norm-weight-plus-one" => "1 was added",
        "attn-norm-weight-of-next-layer" | "wk-of-next-layer" => "the next layer's",
        "ffn-norm-weight-of-attn-norm" => "is blk.*.attn_norm.weight",
        "final-norm-weight-of-attn-norm" => "is blk.0.attn_norm.weight",
        "qkv-bias-zero" | "ffn-down-zero" => "all zero, but not in the file",
        "q-bias-broadcast" => "its first 16 elements, repeated",
        "wq-transposed" => "transposed",
        "k-bias-of-v" => "is blk.*.attn_v.bias",
        "k-scaled-1.001" => "multiplied by 1.001",
        "wv-inner-half" => "columns 112-223 of 224 are zero, but not in the file",
        "wv-rows-rotated-by-a-head" => "row i is the file's row (i + 16) mod 32",
        "wo-transposed" => "transposed",
        "wo-leading-dimension" => "its rows were read every 223 elements, but they are 224 long",
        "ffn-gate-weight-of-up" => "is blk.*.ffn_up.weight",
        "ffn-up-outputs-truncated" => "are zero, but not in the file",
        "logits-tied-mistaken" => "is token_embd.weight",
        other => panic!("{other} is not known here"),
    }
}

#[test]
fn each_planted_fault_of_the_loader_is_named_first_by_its_weight() {
    let fixture = Bench::fixture();
    let untied = Bench::synth(&Spec::preset("tiny-qwen2").unwrap());
    let loads = FAULTS.iter().filter_map(|fault| match fault.plant {
        Plant::Load { tensors, .. } => Some((fault, tensors)),
        _ => None,
    });
    let mut seen = 0;
    for (fault, tensors) in loads {
        let is_untied = fault.needs.contains(&Need::Tensor("output.weight"));
        let bench = if is_untied { &untied } else { &fixture };
        let dtypes = [DType::F32, DType::F16];
        let is_seen = |dtype: &DType| *dtype == DType::F32 || !fault.needs.contains(&Need::F32);
        for dtype in dtypes.into_iter().filter(is_seen) {
            let mut spec = engine(dtype);
            spec.faults = Faults(vec![fault]);
            let weights = bench.run(&spec, 3, 0).weights;
            let named: Vec<String> = weights.wrong.iter().map(ToString::to_string).collect();
            let is_named = |tensor: &&str| {
                named.iter().any(|said| said.contains(*tensor) && said.contains(text(fault)))
            };
            assert!(tensors.iter().all(is_named), "{}: {named:?}", fault.name);
            assert_eq!(named.len(), tensors.len(), "{}: {named:?}", fault.name);
            assert!(weights.otherwise.is_empty(), "{}: {:?}", fault.name, weights.otherwise);
            seen += 1;
        }
    }
    assert_eq!(seen, 37);
}

#[test]
fn a_right_engine_holds_the_files_weights_in_f32_and_f16() {
    let bench = Bench::fixture();
    for dtype in [DType::F32, DType::F16] {
        let weights = bench.run(&engine(dtype), 3, 0).weights;
        assert!(weights.wrong.is_empty() && weights.recorded > 40, "{weights:?}");
        assert_eq!((weights.right, weights.unrecorded), (weights.recorded, 0), "{weights:?}");
    }
}
