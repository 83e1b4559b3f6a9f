//! Whether an engine gives the same logits when nothing else of it is looked at.

use crate::{
    core::{
        sink::{NoSink, Sink, Stopped},
        spans,
        tensor::Tensor,
    },
    engine::{Engine, EngineError},
    graph::site::{Site, Stage},
    model::Model,
};

/// Multiplications up to which an engine runs all steps again on the CPU: there a launch has ended before a hook reads,
/// so that little can differ, and a second run would take as long as the first.
const WHOLE: u64 = 1 << 32;

/// What runs without hooks say; `None` of what was not checked.
#[derive(Clone, Copy, Default)]
pub struct Hooks {
    /// Whether the logits are bit-equal with and without hooks.
    pub leave_logits: Option<bool>,
    /// Whether two runs without hooks have bit-equal logits.
    pub runs_repeat: Option<bool>,
}

impl Hooks {
    /// Runs an engine again without hooks, after a run over these steps in which its logits had these hashes. Of a long
    /// run on the CPU only the last step is repeated.
    pub fn check(
        engine: &mut Engine,
        model: &Model,
        steps: &[Vec<i32>],
        with: &[blake3::Hash],
    ) -> Result<Hooks, EngineError> {
        let tokens: usize = steps.iter().map(Vec::len).sum();
        let is_short = model.parameters().saturating_mul(tokens as u64) <= WHOLE;
        let all = is_short || !engine.waits_for_launches();
        let first = if all { 0 } else { steps.len().saturating_sub(1) };
        Hooks::check_from(first, engine, steps, with)
    }

    /// The same of the steps from one on.
    fn check_from(
        first: usize,
        engine: &mut Engine,
        steps: &[Vec<i32>],
        with: &[blake3::Hash],
    ) -> Result<Hooks, EngineError> {
        let with = &with[first.min(with.len())..];
        let without = logits_without_hooks(engine, steps, first)?;
        // Logits that differ are the hooks' doing only if they do not differ by themselves.
        let same = without == with;
        let repeat = same || logits_without_hooks(engine, steps, first)? == without;
        Ok(Hooks { leave_logits: repeat.then_some(same), runs_repeat: Some(repeat) })
    }
}

/// The hashes of the logits from a step on, when no other site is captured.
fn logits_without_hooks(
    engine: &mut Engine,
    steps: &[Vec<i32>],
    first: usize,
) -> Result<Vec<blake3::Hash>, EngineError> {
    match first {
        0 => engine.reset()?,
        // What the steps before have left in the cache is still there.
        _ => engine.assume(steps[..first].iter().map(Vec::len).sum()),
    }
    let mut sink = LogitsHashes::new(OnlyLogits);
    for (step, tokens) in steps.iter().enumerate().skip(first) {
        let _span = spans::span("engine", || format!("step {step}"));
        engine.step(step as u32, tokens, &mut sink)?;
    }
    Ok(sink.hashes)
}

/// Wants the logits, and throws them away.
struct OnlyLogits;

impl Sink for OnlyLogits {
    fn wants(&self, site: Site) -> bool {
        site.stage == Stage::Logits
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        NoSink.put(site, tensor)
    }
}

/// Hashes the logits of each step on their way into a sink.
pub struct LogitsHashes<S> {
    pub inner: S,
    pub hashes: Vec<blake3::Hash>,
}

impl<S> LogitsHashes<S> {
    pub fn new(inner: S) -> LogitsHashes<S> {
        LogitsHashes { inner, hashes: Vec::new() }
    }
}

impl<S: Sink> Sink for LogitsHashes<S> {
    fn wants(&self, site: Site) -> bool {
        self.inner.wants(site)
    }

    fn queries(&self, site: Site) -> Option<&[usize]> {
        self.inner.queries(site)
    }

    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped> {
        if site.stage == Stage::Logits {
            let mut hash = blake3::Hasher::new();
            hash.update_rayon(bytemuck::cast_slice(&tensor.data));
            self.hashes.push(hash.finalize());
        }
        self.inner.put(site, tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{task::Task, tensor::DType},
        engine::{AttentionVariant, DeviceKind, EngineSpec, fault::Faults, kernels::KernelSet},
        model::{
            ModelFile,
            synth::{self, Spec},
        },
        reference::{Reference, ReferenceOptions},
        run::planned,
        trace::recording::Spool,
    };

    #[test]
    fn the_steps_that_are_repeated_have_the_logits_of_the_run_with_hooks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        synth::write(&Spec::preset("tiny-qwen2").unwrap(), &path, &mut |_| {}).unwrap();
        let file = ModelFile::open(&path).unwrap();
        let reference = Reference::load(&file, ReferenceOptions::default()).unwrap();
        let model = planned(file, &reference, 0).unwrap();
        let spec = EngineSpec {
            device: DeviceKind::Host,
            storage: DType::F32,
            attention: AttentionVariant::default(),
            faults: Faults::default(),
            kernels: KernelSet::embedded(),
            roundings: Vec::new(),
        };
        let steps = [vec![3, 14, 15, 92, 65], vec![35], vec![89]];
        let task = Task { prompt: &steps[0], decode: 2 };
        let mut engine = spec.build(&model, task).unwrap();
        let mut sink = LogitsHashes::new(Spool::new().unwrap());
        for (step, tokens) in steps.iter().enumerate() {
            engine.step(step as u32, tokens, &mut sink).unwrap();
        }
        let with = sink.hashes;
        let mut leaves = |first, with: &[blake3::Hash]| {
            let hooks = Hooks::check_from(first, &mut engine, &steps, with).unwrap();
            assert_eq!(hooks.runs_repeat, Some(true));
            hooks.leave_logits
        };
        for first in [2, 1, 2, 0, 2] {
            assert_eq!(leaves(first, &with), Some(true), "from step {first}");
        }
        let other = blake3::hash(b"other logits");
        assert_eq!(leaves(0, &[other, with[1], with[2]]), Some(false));
        assert_eq!(leaves(2, &[other, with[1], with[2]]), Some(true));
        assert_eq!(leaves(2, &[with[0], with[1], other]), Some(false));
    }
}
