//! Mistakes in an attention that is one kernel: in what is between its inputs and its output, where nothing
//! was recorded.

use std::rc::Rc;

use super::Visit;
use crate::{
    core::{
        attending::{Calls, Current},
        cause_key::CauseKey,
    },
    diagnosis::{
        Change, Edits, Evidence, StepEvidence,
        replay::{
            ReplayError,
            rules::{Call, Values},
        },
        written::{Step, When, Written},
    },
    graph::{
        NodeId, Op,
        site::{Site, Stage},
    },
};

/// The products with keys and with values of an attention that is one operation.
#[derive(Clone, Copy)]
struct Products {
    keys: NodeId,
    values: NodeId,
}

/// Queries that lie in registers, and KV heads that are found at a wrong stride.
pub fn attentions(evidence: &Evidence<'_>, visit: Visit<'_>) -> Result<(), ReplayError> {
    let products = evidence.nodes(|node| node.op == Op::MulMat);
    let products: Vec<NodeId> =
        products.into_iter().filter(|&id| evidence.is_of_computed(id)).collect();
    let [keys, values] = products[..] else { return Ok(()) };
    if evidence.spec().stage != Stage::AttnOut {
        return Ok(());
    }
    in_registers(evidence, keys, visit)?;
    strides(evidence, Products { keys, values }, visit)
}

/// Keys that count only in the dims of one thread.
fn in_registers(
    evidence: &Evidence<'_>,
    keys: NodeId,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let longest = evidence.steps.last().map_or(0, |step| step.machine.extent.cells);
    for block in [1024, 512, 256, 128, 64, 32] {
        // Shorter rows than the block look the same for any.
        if block >= longest && block != 1024 {
            continue;
        }
        let own = Change::moved(0, move |i, ne| {
            (i % ne[0] % block == i / ne[0] % ne[1] % block).then_some(i)
        });
        let what = "q is in registers, not in shared memory: for key j only";
        let text = if block < longest {
            format!("{what} the dims of thread j % {block} are summed")
        } else {
            format!("{what} dim j is summed")
        };
        visit(evidence.mistake(CauseKey::QueryInRegisters, text, &Edits::one(keys, own))?);
    }
    Ok(())
}

/// What a stride between KV heads depends on, given the query's position and the step's last length.
type Stride = fn(usize, usize) -> usize;

/// Positions in the cache with the query's own token, without it, and after the whole step.
const LENGTHS: [Stride; 3] = [|p, _| p + 1, |p, _| p, |_, length| length];

/// The head, slot and dim of a cache's element.
#[derive(Clone, Copy)]
struct Element {
    head: usize,
    slot: usize,
    dim: usize,
}

/// A cache as a product reads it: keys lie (dim, slot, head), values (slot, dim, head).
#[derive(Clone, Copy)]
struct Layout {
    ne: [usize; 4],
    is_keys: bool,
}

impl Layout {
    fn slots(self) -> usize {
        self.ne[usize::from(self.is_keys)]
    }

    fn dims(self) -> usize {
        self.ne[usize::from(!self.is_keys)]
    }

    fn element(self, i: usize) -> Element {
        let ([n0, n1, ..], row) = (self.ne, i / self.ne[0]);
        let (head, a, b) = (row / n1, row % n1, i % n0);
        let (slot, dim) = if self.is_keys { (a, b) } else { (b, a) };
        Element { head, slot, dim }
    }

    fn place(self, Element { head, slot, dim }: Element) -> usize {
        let (a, b) = if self.is_keys { (slot, dim) } else { (dim, slot) };
        (head * self.ne[1] + a) * self.ne[0] + b
    }
}

/// KV heads found by the cache's length instead of its capacity: when read only, and when written too.
fn strides(
    evidence: &Evidence<'_>,
    Products { keys, values }: Products,
    visit: Visit<'_>,
) -> Result<(), ReplayError> {
    let heads = evidence.graph().node(keys).source(0).map(|id| evidence.graph().node(id).ne[2]);
    let positions = evidence.steps.last().map_or(0, |step| step.machine.extent.cells);
    if heads.is_none_or(|heads| heads.fixed < 2) {
        return Ok(());
    }
    let trained = evidence.run.file.trained_positions().unwrap_or(usize::MAX);
    let what = "KV heads strided by the cache's length instead of its capacity";
    let both =
        |of: &dyn Fn(bool) -> Change<'static>| Edits(vec![(keys, of(true)), (values, of(false))]);
    for stride in LENGTHS {
        for capacity in [(positions + 1).next_multiple_of(64), trained, usize::MAX] {
            let edits = both(&|is_keys| read_at(evidence, stride, capacity, is_keys));
            let text = format!("{what} when read");
            visit(evidence.mistake(CauseKey::CacheStride, text, &edits)?);
        }
        let written = [true, false].map(|is_keys| written_at(evidence, stride, is_keys));
        let [Some(of_keys), Some(of_values)] = written else { continue };
        let edits = Edits(vec![(keys, of_keys), (values, of_values)]);
        let text = format!("{what}, written and read");
        visit(evidence.mistake(CauseKey::CacheStride, text, &edits)?);
    }
    Ok(())
}

/// The cache read at a stride, of memory that has a capacity.
fn read_at(
    evidence: &Evidence<'_>,
    stride: Stride,
    capacity: usize,
    is_keys: bool,
) -> Change<'static> {
    let attention = evidence.run.recording.attention;
    let of_value = move |element: Element, position: usize, length: usize| {
        // What a later token of the step writes is not there yet.
        let written = match (attention.calls, attention.current) {
            (Calls::Step, _) => length,
            (Calls::Token, Current::Cache) => position + 1,
            (Calls::Token, Current::Argument) => position,
        };
        let is_own = attention.current == Current::Argument && element.slot == position;
        if is_own {
            return Some(element);
        }
        let flat = element.head * stride(position, length) + element.slot;
        let (head, slot) = (flat / capacity, flat % capacity);
        (slot < written).then_some(Element { head, slot, ..element })
    };
    changed(is_keys, move |layout, values, position| {
        let from = |i: usize| {
            let element = of_value(layout.element(i), position, layout.slots())?;
            values.get(layout.place(element)).copied().filter(|_| element.slot < layout.slots())
        };
        (0..values.len()).map(|i| from(i).unwrap_or(0.0)).collect()
    })
}

/// The cache written at a stride and read at it, from the rows that should be in it.
fn written_at(evidence: &Evidence<'_>, stride: Stride, is_keys: bool) -> Option<Change<'static>> {
    let stage = if is_keys { Stage::KRope } else { Stage::V };
    let layer = evidence.spec().layer;
    let sites = &evidence.run.model.sites;
    let place = sites.place(Site { step: 0, layer, stage })?;
    let own = |step: &StepEvidence<'_>| evidence.recorded(step, place);
    let rows: Option<Vec<Vec<f64>>> = evidence.steps.iter().map(own).collect();
    let of = |step: &StepEvidence<'_>| Step {
        index: step.observed.step,
        first: step.machine.first_position,
        length: step.machine.extent.cells,
    };
    let steps: Vec<Step> = evidence.steps.iter().map(of).collect();
    let shape = sites.specs()[place].axes.iter().skip(1).map(|axis| axis.size.fixed as usize);
    let [heads, dim] = shape.collect::<Vec<usize>>()[..] else { return None };
    let slot = |head, position, step: Step| Some(head * stride(position, step.length) + position);
    let written = Written::new((heads, dim), &rows?, &steps, &slot);
    Some(changed(is_keys, move |layout, values, position| {
        let length = layout.slots();
        let at = |head, slot| head * stride(position, length) + slot;
        let read = written.read((position, When::Before), length, &at);
        let of = |i: usize| {
            let Element { head, slot, dim } = layout.element(i);
            read[(slot * heads + head) * layout.dims() + dim]
        };
        (0..values.len()).map(of).collect()
    }))
}

/// A product whose cache is another for the token of each position.
fn changed(
    is_keys: bool,
    of: impl Fn(Layout, &[f64], usize) -> Vec<f64> + 'static,
) -> Change<'static> {
    Change::AtPosition(Rc::new(move |call: &mut Call<'_, '_>, position| {
        let Some(Some(argument)) = call.arguments.first_mut() else { return };
        let Ok(values) = argument.value() else { return };
        let value = of(Layout { ne: argument.ne, is_keys }, &values, position);
        let spread = argument.spread().map(|spread| spread.to_vec().into());
        argument.values = Values::Dense { value: value.into(), spread };
    }))
}
