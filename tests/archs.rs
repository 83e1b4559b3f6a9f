//! A dozen of `make archs`: llama.cpp's own tensors, replayed through its own graph.

use std::path::Path;

use firstdiff::{
    core::task::Task,
    model::{
        ModelFile,
        synth::arch::{ArchModel, ArchSpec},
    },
    reference::{Reference, ReferenceOptions},
    run::acceptance::accept,
};

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
