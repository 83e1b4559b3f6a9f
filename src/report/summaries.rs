//! The sides and the model of a report.

use std::collections::BTreeSet;

use crate::{
    engine::EngineSpec,
    model::{Ledger, Model, gguf::GgufError},
    reference::{Precision, Reference},
    report::{ModelSummary, SideSummary},
    trace::Manifest,
};

impl ModelSummary {
    /// The model, and which of its weights are suspicious: of those of some sites, by their places, or of all.
    pub fn of(model: &Model, asked: Option<&BTreeSet<usize>>) -> Result<ModelSummary, GgufError> {
        let names = asked.map(|asked| model.graph.weights_of_all(asked));
        Ok(ModelSummary {
            path: model.path.display().to_string(),
            blake3: model.hash(),
            config: model.config.clone(),
            parameters: model.parameters(),
            ledger: Ledger::of_some(model, names.as_ref())?,
        })
    }
}

impl SideSummary {
    /// How an engine ran on a device.
    pub fn of_engine(engine: &EngineSpec, device: String) -> SideSummary {
        let mut settings = vec![
            ("dtype".to_string(), engine.storage.to_string()),
            ("attention".to_string(), engine.attention.to_string()),
        ];
        if let Some(folder) = engine.kernels.folder() {
            settings.push(("kernels".to_string(), folder.display().to_string()));
            let changed = engine.kernels.changed().unwrap_or_default();
            let changed = if changed.is_empty() { "none".to_string() } else { changed.join(", ") };
            settings.push(("changed kernels".to_string(), changed));
        }
        for contract in engine.kernels.contracts() {
            settings.push((format!("{} kernel", contract.op), contract.path.display().to_string()));
        }
        for fault in &engine.faults.0 {
            settings.push(("planted fault".to_string(), fault.name.to_string()));
        }
        SideSummary { name: device, settings, arithmetic: Some(engine.arithmetic()) }
    }

    /// How the reference ran.
    pub fn of_reference(reference: &Reference) -> SideSummary {
        let precision = match reference.options().precision {
            Precision::F32 => "weights widened to f32, f32 KV cache",
            Precision::Native => "the file as it is, f16 KV cache",
        };
        let settings = vec![
            ("precision".to_string(), precision.to_string()),
            ("threads".to_string(), reference.threads().to_string()),
        ];
        SideSummary { name: "llama.cpp".to_string(), settings, arithmetic: None }
    }

    /// The side that a trace records.
    pub fn of_trace(manifest: &Manifest) -> SideSummary {
        let settings = &manifest.settings;
        let producer = format!("{} {}", manifest.producer.name, manifest.producer.version);
        let listed = [
            ("dtype", settings.dtype.map(|dtype| dtype.to_string())),
            ("attention", settings.attention.clone()),
            ("planted fault", settings.fault.clone()),
            ("precision", settings.reference_precision.clone()),
            ("recorded by", Some(producer)),
        ];
        let present = |(key, value): (&str, Option<String>)| Some((key.to_string(), value?));
        SideSummary {
            name: manifest.device.clone(),
            settings: listed.into_iter().filter_map(present).collect(),
            arithmetic: Some(manifest.arithmetic.clone()),
        }
    }
}
