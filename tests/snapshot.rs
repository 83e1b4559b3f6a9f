use firstdiff::{
    core::{snapshot, tensor::DType},
    engine::{
        AttentionVariant, EngineSpec,
        fault::{self, Faults},
    },
    graph::site::{Site, Stage},
};

use crate::common::{Bench, Keep, engine};

/// What the engine's attention gives for a prompt of 8 tokens, as a snapshot.
fn attention(bench: &Bench, engine: &EngineSpec) -> String {
    let ids = bench.prompt(8);
    let task = firstdiff::core::task::Task { prompt: &ids, decode: 0 };
    let mut keep = Keep { only: vec![Stage::AttnOut], ..Keep::default() };
    let mut engine = engine.build(&bench.model, task).unwrap();
    engine.step(0, &ids, &mut keep).unwrap();
    snapshot::text("attn_out", &keep.tensors[&Site::in_layer(0, 0, Stage::AttnOut)], 1e-5)
}

#[test]
fn another_attention_kernel_agrees_with_the_snapshot_and_a_wrong_one_does_not() {
    let bench = Bench::fixture();
    let clean = engine(DType::F32);
    let old = attention(&bench, &clean);
    for attention_variant in AttentionVariant::all() {
        let other = EngineSpec { attention: attention_variant, ..clean.clone() };
        assert_eq!(
            snapshot::agree(&old, &attention(&bench, &other)),
            Ok(()),
            "{attention_variant}"
        );
    }
    for name in ["scale-missing", "kv-head-modulo", "mask-off-by-one", "values-head-zero"] {
        let faults = Faults(vec![fault::find(name).unwrap()]);
        let wrong = attention(&bench, &EngineSpec { faults, ..clean.clone() });
        assert!(snapshot::agree(&old, &wrong).is_err(), "{name}");
    }
}
