//! A dozen of `make archs`: llama.cpp's own tensors, replayed through its own graph.

use std::{path::Path, sync::Arc};

use firstdiff::{
    core::{
        arithmetic::Arithmetic,
        attending::Attending,
        task::Task,
        tensor::{DType, Tensor},
    },
    diagnosis::replay::{GraphRun, Look, Recording, judge_found},
    graph::site::{Site, Stage},
    model::{
        ModelFile,
        synth::arch::{ArchModel, ArchSpec},
    },
    reference::{Reference, ReferenceOptions},
    run::acceptance::accept,
    trace::{TraceError, recording::Recorded},
};

use crate::common::Keep;

/// Windows, caps, sinks, mixtures, latent attention, biases of positions, and every kind of recurrence.
const ARCHS: [&str; 14] = [
    "bloom",
    "deepseek2",
    "falcon-h1",
    "gemma2:caps",
    "gemma3n",
    "gpt-oss",
    "granitemoe",
    "lfm2",
    "llama:yarn",
    "mamba",
    "mamba2",
    "qwen35moe",
    "qwen3next",
    "rwkv7",
];

#[test]
fn every_node_of_an_architecture_is_measured_and_within_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_firstdiff"));
    // Past any window of a synthetic model.
    let prompt: Vec<i32> = (0..40).map(|index| (index * 37 + 11) % 256).collect();
    for name in ARCHS {
        let path = folder.path().join("model.gguf");
        let model = ArchModel::plan(&ArchSpec::new(name), program).unwrap();
        model.write(&path, program, &mut |_| {}).unwrap();
        let file = ModelFile::open(&path).unwrap();
        let reference = Reference::load(&file, ReferenceOptions::default()).unwrap();
        let accepted = accept(&file, &reference, Task { prompt: &prompt, decode: 3 }).unwrap();
        assert_eq!(accepted.beyond, [], "{name}");
        assert_eq!(accepted.measured, accepted.nodes, "{name}: {:?}", accepted.without_rule);
        assert!(accepted.nodes > 70 && accepted.elements > 100_000, "{name}");
        let worst = accepted.worst.expect("sites were judged");
        assert!(worst.1 > 0.1, "{name}: {worst:?}: bounds that wide say nothing");
    }
}

/// A recording without some sites.
struct Partial<'a>(&'a Keep, fn(Site) -> bool);

impl Recorded for Partial<'_> {
    fn tensor(&self, site: Site) -> Result<Option<Tensor>, TraceError> {
        if self.has(site) { self.0.tensor(site) } else { Ok(None) }
    }

    fn has(&self, site: Site) -> bool {
        self.1(site) && self.0.has(site)
    }
}

/// Caches that several layers share, recurrences, experts; recorded whole, without caches, and in gaps of some layers.
#[test]
fn parts_of_a_graph_judged_at_the_same_time_say_what_the_whole_does() {
    let (folder, program) =
        (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_BIN_EXE_firstdiff")));
    let has: [fn(Site) -> bool; 4] = [
        |_| true,
        |site| !matches!(site.stage, Stage::KCache | Stage::VCache),
        |site| matches!(site.stage, Stage::Embd | Stage::LayerOut | Stage::Logits),
        |site| site.layer.is_none_or(|layer| layer % 2 == 0 || site.step == 1),
    ];
    for name in ["llama", "gemma3n", "falcon-h1", "qwen3next", "deepseek2", "granitemoe"] {
        let path = folder.path().join("model.gguf");
        let model = ArchModel::plan(&ArchSpec::new(name), program).unwrap();
        model.write(&path, program, &mut |_| {}).unwrap();
        let file = ModelFile::open(&path).unwrap();
        let reference = Reference::load(&file, ReferenceOptions::default()).unwrap();
        let steps: [Vec<i32>; 3] =
            [(0..20).map(|i| (i * 37 + 11) % 256).collect(), vec![5], vec![8]];
        let mut keep = Keep::default();
        let mut session = reference.session(22, 20).unwrap();
        for (step, tokens) in (0..).zip(&steps) {
            session.step(step, tokens, &mut keep, None).unwrap();
        }
        // One wrong result, which is beyond its bound alike.
        let site = *keep.tensors.keys().find(|site| site.layer == Some(1)).unwrap();
        keep.tensors.get_mut(&site).unwrap().data[3] += 1.0;
        let (model, inputs) = reference.import(&steps.concat()).unwrap();
        for (at, has) in has.into_iter().enumerate() {
            let (tensors, arithmetic) = (Partial(&keep, has), Arithmetic::engine(DType::F32));
            let recording = Recording {
                tensors: &tensors,
                steps: &steps,
                arithmetic: &arithmetic,
                attention: Attending::default(),
            };
            let (file, model, inputs) = (&file, &*model, &inputs);
            let run =
                GraphRun { has_tables: true, ..GraphRun::new(file, model, inputs, recording) };
            let judged = |parts: usize| {
                let look: Look<'_, '_, usize> = &|seen, _, _| {
                    *seen += 1;
                    Ok(())
                };
                let (verdict, seen) =
                    judge_found(run, &Arc::default(), vec![0; parts], look).unwrap();
                let judged = serde_json::to_value(&verdict.judged).unwrap();
                let without_rule = verdict.without_rule;
                (seen.into_iter().sum::<usize>(), judged, without_rule, verdict.near_ties)
            };
            let whole = judged(1);
            assert!(!whole.1.as_array().unwrap().is_empty(), "{name}");
            for parts in [2, 3, 50] {
                assert!(judged(parts) == whole, "{name}, recording {at}, {parts} parts");
            }
        }
    }
}
