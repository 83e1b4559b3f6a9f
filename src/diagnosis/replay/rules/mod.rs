//! One rule an operation: what it must give in f64, and how far rounding may take each element.
//!
//! A rule knows no architecture. Arrays are dense, in ggml's order: the first axis is the fastest.

mod choices;
mod delta;
mod elementwise;
mod functions;
mod gated;
mod hyper;
mod indexer;
mod layout;
mod norms;
mod place;
mod point;
mod products;
mod rope;
mod softmax;
mod states;
mod sums;
#[cfg(test)]
mod testing;

use std::{borrow::Cow, sync::Arc};

use self::point::{Point, Source};
pub use self::{
    choices::{Logits, is_choice_of},
    products::{finished as finished_product, has_all_experts, is_with_weight, product_of},
};
use crate::{
    core::format::Format,
    diagnosis::replay::{Expected, LAMBDA, Matrix, Rounding},
    graph::{Op, Params},
    model::gguf::GgufError,
};

/// What a function such as exp, and the few operations beside it, may be off, in unit roundoffs.
pub const FUNCTION: f64 = 16.0;

/// A node that is about to be computed.
pub struct Call<'c, 'a> {
    pub op: Op,
    pub params: Params,
    /// Elements of the result along each axis.
    pub ne: [usize; 4],
    /// The sources by their places.
    pub arguments: Vec<Option<Argument<'c, 'a>>>,
    /// The roundings that the side declares.
    pub rounding: Rounding,
    /// Whether GELU and its kin are read from a table of f16 values, as ggml's CPU backend does.
    pub has_tables: bool,
    /// The position of the token, where a step's are computed one by one.
    pub position: Option<usize>,
    /// What is rounded within the operation.
    pub steps: Steps,
    /// The only outputs of a product with a weight that are computed, of each row; the others are NaN.
    pub only: Option<Arc<[usize]>>,
}

/// The formats that values within one operation are rounded to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    /// Of a rotation: the frequency of a pair, its angle, and the sine and cosine of that.
    pub frequencies: Option<Format>,
    pub angles: Option<Format>,
    pub tables: Option<Format>,
    /// Of a norm: what a row is multiplied by.
    pub roots: Option<Format>,
    /// Of an activation: the sigmoid, and the activation before it is multiplied by up.
    pub sigmoid: Option<Format>,
    pub activated: Option<Format>,
    /// Of a negative x the sigmoid is 1 - sigmoid(-x), which is rounded too.
    pub is_complement: bool,
}

/// A source of a node.
#[derive(Clone)]
pub struct Argument<'c, 'a> {
    pub ne: [usize; 4],
    pub values: Values<'c, 'a>,
}

/// The elements of a source.
#[derive(Clone)]
pub enum Values<'c, 'a> {
    /// As recorded or as computed, dense; with the standard deviation of each element's error where it
    /// is uncertain.
    Dense { value: Cow<'c, [f64]>, spread: Option<Cow<'c, [f64]>> },
    /// A weight of the model's file: ne[1] ne[2] ne[3] rows of ne[0] elements.
    Weight(Matrix<'a>),
}

impl<'a> Argument<'_, 'a> {
    /// The same, which borrows nothing.
    pub fn into_owned<'c>(self) -> Argument<'c, 'a> {
        let Argument { ne, values } = self;
        let values = match values {
            Values::Dense { value, spread } => Values::Dense {
                value: Cow::Owned(value.into_owned()),
                spread: spread.map(|spread| Cow::Owned(spread.into_owned())),
            },
            Values::Weight(matrix) => Values::Weight(matrix),
        };
        Argument { ne, values }
    }

    pub fn elements(&self) -> usize {
        self.ne.iter().product()
    }

    /// Rows of ne[0] elements.
    pub fn rows(&self) -> usize {
        self.ne[1..].iter().product()
    }

    /// All elements.
    pub fn value(&self) -> Result<Cow<'_, [f64]>, GgufError> {
        Ok(match &self.values {
            Values::Dense { value, .. } => Cow::Borrowed(value),
            Values::Weight(matrix) => {
                Cow::Owned(matrix.flat()?.into_iter().map(f64::from).collect())
            }
        })
    }

    /// The standard deviations of the elements' errors; `None` where all are known.
    pub fn spread(&self) -> Option<&[f64]> {
        match &self.values {
            Values::Dense { spread, .. } => spread.as_deref(),
            Values::Weight(_) => None,
        }
    }
}

impl<'c, 'a> Call<'c, 'a> {
    /// A source that the operation always has.
    pub fn argument(&self, index: usize) -> &Argument<'c, 'a> {
        let argument = self.arguments.get(index).and_then(Option::as_ref);
        argument.expect("ggml gives an operation all of its sources")
    }

    /// A source that the operation may have.
    pub fn optional(&self, index: usize) -> Option<&Argument<'c, 'a>> {
        self.arguments.get(index).and_then(Option::as_ref)
    }

    pub fn elements(&self) -> usize {
        self.ne.iter().product()
    }
}

/// What a node must give; `None` where no rule is known for its operation, or for its parameters.
///
/// Weights may be any source. Ids that no row has give NaN: nothing is expected there.
pub fn compute<'a>(call: &Call<'_, 'a>) -> Result<Option<Expected<'a>>, GgufError> {
    use Op::*;
    if call.elements() == 0 {
        return Ok(Some(call.exact(Vec::new(), None)));
    }
    Ok(match &call.op {
        Leaf | View | Reshape | Permute | Transpose | Other(_) => None,
        Cont | Dup | Cpy | GetRows | SetRows | Set | Concat | Repeat | Pad | Roll | Tri | Diag
        | Fill | Arange => Some(layout::compute(call)?),
        Add | AddId | Add1 | Sub | Mul | Div | Scale | Sqr | Sqrt | Clamp | Abs | Sgn | Neg
        | Step | Relu | LeakyRelu | Floor | Ceil | Round | Trunc => elementwise::compute(call)?,
        Exp | Expm1 | Log | Sin | Cos | Tanh | Elu | Sigmoid | Silu | Gelu | GeluQuick
        | GeluErf | HardSwish | HardSigmoid | Softplus | Xielu => functions::compute(call)?,
        MulMat | MulMatId => Some(products::product(call)?),
        OutProd => Some(products::outer(call)?),
        Sum | SumRows | CumSum | Mean | SsmConv | SolveTri => sums::compute(call)?,
        Norm | RmsNorm | GroupNorm | L2Norm => Some(norms::compute(call)?),
        SoftMax => Some(softmax::compute(call)?),
        Rope => rope::compute(call)?,
        ArgSort | TopK | ArgMax => Some(choices::compute(call)?),
        LightningIndexer => Some(indexer::compute(call)?),
        HyperMix => Some(hyper::mix(call)?),
        HyperRead => Some(hyper::read(call)?),
        HyperWrite => Some(hyper::write(call)?),
        SsmScan => states::scan(call)?,
        RwkvWkv6 | GatedLinearAttention => Some(states::linear_attention(call)?),
        GatedDeltaNet | RwkvWkv7 => delta::compute(call)?,
        Reglu | Geglu | Swiglu | SwigluOai | SwigluClamp | GegluErf | GegluQuick => {
            gated::compute(call)?
        }
    })
}
