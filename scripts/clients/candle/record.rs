//! Records what candle computes, by the Rust writer. The engine's lines call `put`, `put_axes`, `shown` and `weight`.

use std::{borrow::Borrow, cell::RefCell, error::Error, path::Path};

use candle::{Device, Tensor, quantized::QTensor};
use firstdiff::{
    core::{
        arithmetic::{Arithmetic, Convention},
        loaded::LoadedWeight,
        tensor::DType,
    },
    graph::site::{Site, Stage},
    trace::{Array, Elements, Manifest, Plan, Side, TraceWriter},
};

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

struct Recorder {
    trace: TraceWriter,
    step: u32,
    /// Tokens of the step, and positions after it.
    lengths: (usize, usize),
    layer: Option<u32>,
}

/// Starts the trace. candle rounds what a product takes as llama.cpp does for the weight's type.
pub fn begin(folder: &Path, plan: Plan, engine: &str) -> Result<(), Box<dyn Error>> {
    let arithmetic = Arithmetic::engine(DType::F32).rounding(&[Convention::parse("inputs=ggml")?]);
    let manifest = Manifest::new(Side::Engine, plan.model, arithmetic, engine.into());
    let trace = TraceWriter::create(folder, manifest, true)?;
    let recorder = Recorder { trace, step: 0, lengths: (0, 0), layer: None };
    RECORDER.set(Some(recorder));
    Ok(())
}

/// What `work` makes of the recorder.
fn with<T>(work: impl FnOnce(&mut Recorder) -> Result<T, Box<dyn Error>>) -> T {
    RECORDER.with_borrow_mut(|recorder| {
        let recorder = recorder.as_mut().expect("the trace was begun");
        work(recorder).unwrap_or_else(|error| panic!("layer {:?}: {error}", recorder.layer))
    })
}

pub fn begin_step(ids: &[i32], first: usize) {
    with(|recorder| {
        (recorder.lengths, recorder.layer) = ((ids.len(), first + ids.len()), None);
        Ok(recorder.trace.begin_step(ids, first)?)
    });
}

pub fn end_step() {
    with(|recorder| {
        recorder.step += 1;
        Ok(recorder.trace.end_step()?)
    });
}

pub fn end() {
    let recorder = RECORDER.take().expect("the trace was begun");
    recorder.trace.finish().unwrap_or_else(|error| panic!("{error}"));
}

/// The layers come in turn.
pub fn next_layer() {
    with(|recorder| {
        recorder.layer = Some(recorder.layer.map_or(0, |layer| layer + 1));
        Ok(())
    });
}

pub fn after_layers() {
    with(|recorder| {
        recorder.layer = None;
        Ok(())
    });
}

/// tensor: (1, ...), in the site's own order; of logits the last row may be alone.
pub fn put(stage: &str, tensor: &Tensor) {
    with(|recorder| {
        let site = recorder.site(stage)?;
        let listed = recorder.trace.list().get(site).ok_or("the plan has no such site")?;
        let mut shape = listed.shape(recorder.lengths.0, recorder.lengths.1);
        if stage == "logits" {
            shape[0] = 1;
        }
        let values = tensor.flatten_all()?.to_vec1()?;
        let array = Array::new(Elements::F32(&values), &shape);
        Ok(recorder.trace.put_array(site, &array)?)
    });
}

/// tensor: (1, ...), its axes in another order.
pub fn put_axes(stage: &str, axes: &str, tensor: &Tensor) {
    with(|recorder| {
        let values = tensor.flatten_all()?.to_vec1()?;
        let array = Array::new(Elements::F32(&values), &tensor.dims()[1..]).axes(axes);
        let site = recorder.site(stage)?;
        Ok(recorder.trace.put_array(site, &array)?)
    });
}

/// The tensor itself, recorded on the way.
pub fn shown(stage: &str, tensor: Tensor) -> Tensor {
    put(stage, &tensor);
    tensor
}

/// A weight of a layer, recorded on the way as the engine holds it.
pub fn weight<T: Borrow<QTensor>>(prefix: &str, name: &str, held: T) -> T {
    with(|recorder| {
        let whole = held.borrow().dequantize(&Device::Cpu)?;
        let values = whole.flatten_all()?.to_vec1()?;
        let weight = LoadedWeight::of(&format!("{prefix}.{name}"), whole.dims(), &values)?;
        Ok(recorder.trace.put_weight(&weight)?)
    });
    held
}

impl Recorder {
    fn site(&self, stage: &str) -> Result<Site, String> {
        let stage = Stage::try_from(stage.to_string())?;
        Ok(Site { step: self.step, layer: self.layer, stage })
    }
}
