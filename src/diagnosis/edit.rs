//! Changes of a node that hypotheses are made of.

use std::{borrow::Cow, rc::Rc, sync::Arc};

use crate::{
    core::tensor::DType,
    diagnosis::replay::{
        Edit, Expected, LAMBDA, Machine, Matrix, ReplayError, Spread,
        rules::{Argument, Call, Values},
    },
    graph::{NodeId, Op, Params},
};

/// New values of a source, of those that it has and their number along each axis.
type NewValues<'c> = Rc<dyn Fn(&Machine<'_>, &[f64], [usize; 4]) -> Option<Vec<f64>> + 'c>;

/// The place of an element of a source that is taken for one, of so many along each axis; zero where there is
/// none.
type Moves = Arc<dyn Fn(usize, [usize; 4]) -> Option<usize> + Send + Sync>;

/// Changes a result, in ggml's order, of so many elements along each axis.
type OfResult<'c> = Rc<dyn Fn(&mut [f64], [usize; 4]) + 'c>;

/// A row of a result, and the same row of the node's first source.
pub struct Row<'r> {
    pub result: &'r [f64],
    pub source: &'r [f64],
    /// Whether the step has but one token.
    pub is_alone: bool,
    /// The position of its token, where rows go by (token, head, ...).
    pub position: usize,
}

/// Changes a node for the token of a position.
type AtPosition<'c> = Rc<dyn Fn(&mut Call<'_, '_>, usize) + 'c>;

/// A weight in place of another, of the file.
type OtherMatrix<'c> = Rc<dyn for<'a> Fn(&Machine<'a>) -> Result<Matrix<'a>, ReplayError> + 'c>;

/// What is changed of a node.
#[derive(Clone)]
pub enum Change<'c> {
    /// Another operation on the same sources.
    Op(Op),
    /// Its parameters.
    Params(Rc<dyn Fn(&mut Params) + 'c>),
    /// A source is left out: no mask, no sinks.
    Without(usize),
    /// Two sources change places.
    Swapped(usize, usize),
    /// A source's values are others.
    Values(usize, NewValues<'c>),
    /// A source's elements are others of it.
    Moved(usize, Moves),
    /// A source is another weight of the file.
    Weight(usize, String),
    /// A source is a matrix made of weights of the file.
    Matrix(usize, OtherMatrix<'c>),
    /// A source is a matrix of nothing but zeros.
    ZeroWeight(usize),
    /// A source is another tensor of the graph.
    Source(usize, NodeId),
    /// A source is what was recorded of a site, given by its place.
    Recorded(usize, usize),
    /// It does nothing: its result is that source.
    LeftOut(usize),
    /// Anything.
    Call(Rc<dyn Fn(&mut Call<'_, '_>) + 'c>),
    /// A product with a cache, for the token of each position in its own way.
    AtPosition(AtPosition<'c>),
    /// Its result is changed.
    Result(OfResult<'c>),
    /// Its result is multiplied by a factor, its error too.
    Times(f64),
    /// Each row of its result is multiplied by a number of its own, its error too.
    RowTimes(Rc<dyn Fn(Row<'_>) -> f64 + 'c>),
    /// Each element of its result is another of it.
    Order(Rc<dyn Fn(usize, [usize; 4]) -> usize + 'c>),
}

impl<'c> Change<'c> {
    /// A function of each element of a source.
    pub fn each(source: usize, of: impl Fn(f64) -> f64 + 'c) -> Change<'c> {
        let values = move |_: &Machine<'_>, values: &[f64], _| {
            Some(values.iter().map(|&x| of(x)).collect::<Vec<f64>>())
        };
        Change::Values(source, Rc::new(values))
    }

    /// A source's elements in another order: each is that from the place given.
    pub fn moved(
        source: usize,
        from: impl Fn(usize, [usize; 4]) -> Option<usize> + Send + Sync + 'static,
    ) -> Change<'c> {
        Change::Moved(source, Arc::new(from))
    }

    /// A source times a number that a program holds in f32. That is an operation of its own: its product
    /// is rounded once.
    pub fn scaled(source: usize, factor: f64) -> Change<'c> {
        Change::Call(Rc::new(move |call| {
            let u = call.rounding.sum;
            let Some(Some(argument)) = call.arguments.get_mut(source) else { return };
            let Ok(value) = argument.value() else { return };
            let value: Vec<f64> = value.iter().map(|x| f64::from(factor as f32) * x).collect();
            let before = argument.spread();
            let spread = |(i, x): (usize, &f64)| {
                let before = before.map_or(0.0, |spread| factor.abs() * spread[i]);
                before.hypot(u * x.abs() / LAMBDA)
            };
            let spread = value.iter().enumerate().map(spread).collect();
            let (value, spread) = (Cow::Owned(value), Some(Cow::Owned(spread)));
            argument.values = Values::Dense { value, spread };
        }))
    }

    /// Whether it makes sense of another node of the same operation, whatever its sizes.
    fn fits_any(&self) -> bool {
        use Change::{LeftOut, Op, Params, Times, Without, ZeroWeight};
        matches!(self, LeftOut(_) | Op(_) | Params(_) | Times(_) | Without(_) | ZeroWeight(_))
    }

    /// A parameter is another number.
    pub fn float(index: usize, value: f64) -> Change<'c> {
        Change::Params(Rc::new(move |params| params.set_float(index, value as f32)))
    }

    /// A parameter is another whole number.
    pub fn int(index: usize, value: i32) -> Change<'c> {
        Change::Params(Rc::new(move |params| params.set_int(index, value)))
    }
}

/// Changes of several nodes.
#[derive(Clone)]
pub struct Edits<'c>(pub Vec<(NodeId, Change<'c>)>);

impl<'c> Edits<'c> {
    pub fn one(id: NodeId, change: Change<'c>) -> Edits<'c> {
        Edits(vec![(id, change)])
    }

    /// These changes, and then others.
    pub fn and(&self, others: &Edits<'c>) -> Edits<'c> {
        Edits(self.0.iter().chain(&others.0).cloned().collect())
    }
}

impl Edit for Edits<'_> {
    fn change<'a>(
        &self,
        machine: &Machine<'a>,
        id: NodeId,
        call: &mut Call<'_, 'a>,
    ) -> Result<(), ReplayError> {
        for (_, change) in self.0.iter().filter(|(of, _)| *of == id) {
            apply(change, machine, id, call)?;
        }
        Ok(())
    }

    fn is_by_token(&self, id: NodeId) -> bool {
        let is_of = |(of, change): &(NodeId, Change<'_>)| {
            *of == id && matches!(change, Change::AtPosition(_))
        };
        self.0.iter().any(is_of)
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.0.iter().map(|(id, _)| *id).collect()
    }

    fn in_alike(&self, alike: &dyn Fn(NodeId) -> Vec<NodeId>) -> Option<Box<dyn Edit + '_>> {
        if !self.0.iter().all(|(_, change)| change.fits_any()) {
            return None;
        }
        let mut all = self.0.clone();
        for (id, change) in &self.0 {
            all.extend(alike(*id).into_iter().map(|other| (other, change.clone())));
        }
        let is_more = all.len() > self.0.len();
        is_more.then(|| Box::new(Edits(all)) as Box<dyn Edit>)
    }

    fn result(&self, machine: &Machine<'_>, id: NodeId, result: &mut Expected<'_>) {
        let ne = machine.graph().node(id).sizes(machine.extent).ne;
        for (_, change) in self.0.iter().filter(|(of, _)| *of == id) {
            match change {
                Change::Result(of) => of(&mut result.value, ne),
                Change::Times(factor) => rearrange(result, |i| i, *factor),
                Change::RowTimes(of) => row_times(machine, id, result, &**of),
                Change::Order(from) => rearrange(result, |i| from(i, ne), 1.0),
                _ => {}
            }
        }
    }
}

/// Takes each element of a result from another place, times a factor; nothing where a place is none.
fn rearrange(result: &mut Expected<'_>, from: impl Fn(usize) -> usize, factor: f64) {
    let n = result.value.len();
    let order: Vec<usize> = (0..n).map(from).collect();
    if order.iter().all(|&from| from < n) {
        let (value, single) = Default::default();
        let rounding = result.rounding;
        let nothing = Expected { value, spread: Spread::None, single, rounding };
        *result = std::mem::replace(result, nothing).rearranged(order, factor);
    }
}

/// Multiplies each row of a result by a number of its own.
fn row_times(
    machine: &Machine<'_>,
    id: NodeId,
    result: &mut Expected<'_>,
    of: &dyn Fn(Row<'_>) -> f64,
) {
    let node = machine.graph().node(id);
    let width = node.sizes(machine.extent).ne[0].max(1);
    let source = node.source(0).map(|source| machine.argument(source));
    let Some(Ok(Some(source))) = source else { return };
    let Ok(values) = source.value() else { return };
    if values.len() != result.value.len() {
        return;
    }
    let rows = result.value.chunks_exact(width).zip(values.chunks_exact(width));
    let (is_alone, ne) = (machine.extent.tokens == 1, node.sizes(machine.extent).ne);
    // Rows of a softmax lie (token, head).
    let row = |(at, (result, source))| {
        let position = machine.first_position + at % ne[1].max(1);
        of(Row { result, source, is_alone, position })
    };
    let factors: Vec<f64> = rows.enumerate().map(row).collect();
    let n = result.value.len();
    let factor = |i: usize| factors[i / width];
    let value: Vec<f64> = (0..n).map(|i| factor(i) * result.value[i]).collect();
    let spread = (0..n).map(|i| factor(i).abs() * result.most_spread(i)).collect();
    // The factor is computed from as many terms, and the product is rounded.
    let once = |i: usize| {
        let own = LAMBDA * result.rounding.sum * value[i].abs();
        factor(i).abs() * result.single_of(i) + own
    };
    result.single = (0..n).map(once).collect();
    result.spread = Spread::Each(spread);
    result.value = value;
}

/// Moves a source's elements; rows of a weight are only made when they are read.
fn moved<'a>(argument: &mut Argument<'_, 'a>, from: &Moves) -> Result<(), ReplayError> {
    let ne = argument.ne;
    if let Values::Weight(matrix) = &argument.values {
        let (flat, from) = (matrix.flat()?, Arc::clone(from));
        let (outputs, inputs) = (matrix.outputs, matrix.inputs);
        let element = move |output: usize, input: usize| {
            let at = from(output * inputs + input, ne);
            at.and_then(|at| flat.get(at).copied()).unwrap_or(0.0)
        };
        argument.values = Values::Weight(Matrix::of_elements(outputs, inputs, element));
        return Ok(());
    }
    let value = argument.value()?;
    let of = |i| from(i, ne).and_then(|at| value.get(at).copied()).unwrap_or(0.0);
    let value = (0..value.len()).map(of).collect::<Vec<f64>>();
    let spread = argument.spread().map(|spread| Cow::Owned(spread.to_vec()));
    argument.values = Values::Dense { value: Cow::Owned(value), spread };
    Ok(())
}

fn apply<'a>(
    change: &Change<'_>,
    machine: &Machine<'a>,
    id: NodeId,
    call: &mut Call<'_, 'a>,
) -> Result<(), ReplayError> {
    match change {
        Change::Op(op) => call.op = *op,
        Change::Params(of) => of(&mut call.params),
        Change::Without(source) => {
            if let Some(argument) = call.arguments.get_mut(*source) {
                *argument = None;
            }
        }
        Change::Swapped(a, b) => call.arguments.swap(*a, *b),
        Change::Values(source, of) => {
            let Some(Some(argument)) = call.arguments.get_mut(*source) else { return Ok(()) };
            let value = argument.value()?.into_owned();
            let value = of(machine, &value, argument.ne);
            let Some(value) = value.filter(|value| value.len() == argument.elements()) else {
                return Ok(());
            };
            let spread = argument.spread().map(|spread| Cow::Owned(spread.to_vec()));
            argument.values = Values::Dense { value: Cow::Owned(value), spread };
        }
        Change::Moved(source, from) => {
            let Some(Some(argument)) = call.arguments.get_mut(*source) else { return Ok(()) };
            moved(argument, from)?;
        }
        Change::Weight(source, name) => {
            let Some(Some(argument)) = call.arguments.get_mut(*source) else { return Ok(()) };
            let arithmetic = machine.run.recording.arithmetic;
            let is_vector = argument.ne[1..].iter().all(|&n| n == 1);
            let of_vectors = arithmetic.vectors.unwrap_or(DType::F32);
            let dtype = if is_vector { of_vectors } else { arithmetic.weights };
            let matrix = Matrix::of_file(machine.run.file, name, dtype)?;
            if matrix.outputs * matrix.inputs == argument.elements() {
                argument.values = Values::Weight(matrix);
            }
        }
        Change::Matrix(source, of) => {
            let Some(Some(argument)) = call.arguments.get_mut(*source) else { return Ok(()) };
            let matrix = of(machine)?;
            if matrix.outputs * matrix.inputs == argument.elements() {
                argument.values = Values::Weight(matrix);
            }
        }
        Change::ZeroWeight(source) => {
            let Some(Some(argument)) = call.arguments.get_mut(*source) else { return Ok(()) };
            let matrix = Matrix::of_elements(argument.rows(), argument.ne[0], |_, _| 0.0);
            argument.values = Values::Weight(matrix);
        }
        Change::Source(source, other) => {
            let owned = machine.argument(*other)?.map(Argument::into_owned);
            if let (Some(place), Some(argument)) = (call.arguments.get_mut(*source), owned) {
                *place = Some(argument);
            }
        }
        Change::Recorded(source, place) => {
            let own = machine.graph().node(id).source(*source);
            let (Some(Some(argument)), Some(own)) = (call.arguments.get_mut(*source), own) else {
                return Ok(());
            };
            if let Some(value) = machine.recorded_as(*place, own, argument.ne)? {
                argument.values = Values::Dense { value: Cow::Owned(value), spread: None };
            }
        }
        Change::LeftOut(source) => {
            let elements = call.elements();
            let Some(argument) = call.arguments.get_mut(*source) else { return Ok(()) };
            let Some(kept) = argument.take_if(|argument| argument.elements() == elements) else {
                return Ok(());
            };
            call.op = Op::Dup;
            call.arguments = vec![Some(kept)];
        }
        Change::Call(of) => of(call),
        Change::AtPosition(of) => {
            if let Some(position) = call.position {
                of(call, position);
            }
        }
        Change::Result(_) | Change::Times(_) | Change::RowTimes(_) | Change::Order(_) => {}
    }
    Ok(())
}
