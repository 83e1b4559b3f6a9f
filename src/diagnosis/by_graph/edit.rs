//! Changes of a node that hypotheses are made of.

use std::borrow::Cow;

use crate::{
    diagnosis::replay::{
        Edit, Expected, Machine, Matrix, ReplayError,
        rules::{Argument, Call, Values},
    },
    graph::{NodeId, Op, Params},
};

/// What is changed of a node.
pub enum Change<'c> {
    /// Another operation on the same sources.
    Op(Op),
    /// Its parameters.
    Params(Box<dyn Fn(&mut Params) + 'c>),
    /// A source is left out: no mask, no sinks.
    Without(usize),
    /// Two sources change places.
    Swapped(usize, usize),
    /// A source's values are others.
    Values(usize, Box<dyn Fn(&Machine<'_>, &[f64], [usize; 4]) -> Option<Vec<f64>> + 'c>),
    /// A source is another weight of the file.
    Weight(usize, String),
    /// A source is another tensor of the graph.
    Source(usize, NodeId),
    /// It does nothing: its result is that source.
    LeftOut(usize),
    /// Its result is changed.
    Result(Box<dyn Fn(&mut [f64], [usize; 4]) + 'c>),
}

/// Changes of several nodes.
pub struct Edits<'c>(pub Vec<(NodeId, Change<'c>)>);

impl<'c> Edits<'c> {
    pub fn one(id: NodeId, change: Change<'c>) -> Edits<'c> {
        Edits(vec![(id, change)])
    }

    /// The same change of several nodes.
    pub fn of_all(ids: &[NodeId], change: impl Fn() -> Change<'c>) -> Edits<'c> {
        Edits(ids.iter().map(|&id| (id, change())).collect())
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
            apply(change, machine, call)?;
        }
        Ok(())
    }

    fn result(&self, machine: &Machine<'_>, id: NodeId, result: &mut Expected<'_>) {
        let ne = machine.graph().node(id).sizes(machine.extent).ne;
        for (_, change) in self.0.iter().filter(|(of, _)| *of == id) {
            if let Change::Result(of) = change {
                of(&mut result.value, ne);
            }
        }
    }
}

fn apply<'a>(
    change: &Change<'_>,
    machine: &Machine<'a>,
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
            let Some(value) = of(machine, &value, argument.ne) else { return Ok(()) };
            let spread = argument.spread().map(|spread| Cow::Owned(spread.to_vec()));
            argument.values = Values::Dense { value: Cow::Owned(value), spread };
        }
        Change::Weight(source, name) => {
            let Some(Some(argument)) = call.arguments.get_mut(*source) else { return Ok(()) };
            let weights = machine.run.recording.arithmetic.weights;
            let matrix = Matrix::of_file(machine.run.file, name, weights)?;
            argument.values = Values::Weight(matrix);
        }
        Change::Source(source, id) => {
            let owned = machine.argument(*id)?.map(owned);
            if let (Some(place), Some(argument)) = (call.arguments.get_mut(*source), owned) {
                *place = Some(argument);
            }
        }
        Change::LeftOut(source) => {
            let kept = call.arguments.get_mut(*source).and_then(Option::take);
            call.op = Op::Dup;
            call.arguments = vec![kept];
        }
        Change::Result(_) => {}
    }
    Ok(())
}

/// An argument that borrows nothing.
fn owned<'c, 'a>(argument: Argument<'_, 'a>) -> Argument<'c, 'a> {
    let Argument { ne, values } = argument;
    let values = match values {
        Values::Dense { value, spread } => Values::Dense {
            value: Cow::Owned(value.into_owned()),
            spread: spread.map(|spread| Cow::Owned(spread.into_owned())),
        },
        Values::Weight(matrix) => Values::Weight(matrix),
    };
    Argument { ne, values }
}
