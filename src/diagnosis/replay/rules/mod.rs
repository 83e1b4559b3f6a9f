//! One rule an operation: what it must give in f64, and how far rounding may take each element.
//!
//! A rule knows no architecture. Arrays are dense, in ggml's order: the first axis is the fastest.

mod choices;
mod delta;
mod elementwise;
mod functions;
mod gated;
mod layout;
mod norms;
mod place;
mod products;
mod rope;
mod softmax;
mod states;
mod sums;

use std::borrow::Cow;

use rayon::prelude::*;

pub use self::choices::{Logits, is_choice_of};
use crate::{
    diagnosis::replay::{Expected, LAMBDA, Matrix, Operand, Rounding, Spread, ops::FUNCTION},
    graph::{Op, Params},
    model::gguf::GgufError,
};

/// Elements that a task computes at least.
const TASK: usize = 1 << 12;

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
}

/// A source of a node.
pub struct Argument<'c, 'a> {
    pub ne: [usize; 4],
    pub values: Values<'c, 'a>,
}

/// The elements of a source.
pub enum Values<'c, 'a> {
    /// As recorded or as computed, dense; with the standard deviation of each element's error where it
    /// is uncertain.
    Dense { value: Cow<'c, [f64]>, spread: Option<Cow<'c, [f64]>> },
    /// A weight of the model's file: ne[1] ne[2] ne[3] rows of ne[0] elements.
    Weight(Matrix<'a>),
}

impl Argument<'_, '_> {
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

/// An element of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Point {
    value: f64,
    /// The standard deviation of the errors that a sum gathers, and of those that came with the inputs.
    spread: f64,
    /// The bound of what is rounded once.
    single: f64,
}

impl Point {
    fn exact(value: f64) -> Point {
        Point { value, ..Point::default() }
    }
}

/// Chains of operations: errors are added up without regard to their signs, so that it does not matter
/// which of them are the same error.
impl Point {
    fn times(self, other: Point) -> Point {
        let (a, b) = (self.value.abs(), other.value.abs());
        Point {
            value: self.value * other.value,
            spread: a * other.spread + b * self.spread,
            single: a * other.single + b * self.single,
        }
    }

    fn plus(self, other: Point) -> Point {
        Point {
            value: self.value + other.value,
            spread: self.spread + other.spread,
            single: self.single + other.single,
        }
    }

    /// Rounded, by so many unit roundoffs.
    fn rounded(self, u: f64) -> Point {
        Point { single: self.single + u * self.value.abs(), ..self }
    }
}

/// A source whose elements are read one by one.
struct Source<'f> {
    ne: [usize; 4],
    values: Cow<'f, [f64]>,
    spread: Option<&'f [f64]>,
}

impl Source<'_> {
    fn at(&self, index: usize) -> Point {
        let spread = self.spread.map_or(0.0, |spread| spread[index]);
        Point { value: self.values[index], spread, single: 0.0 }
    }

    /// Some elements from one on.
    fn row(&self, first: usize, count: usize) -> Vec<Point> {
        (first..first + count).map(|index| self.at(index)).collect()
    }
}

impl Argument<'_, '_> {
    fn source(&self) -> Result<Source<'_>, GgufError> {
        Ok(Source { ne: self.ne, values: self.value()?, spread: self.spread() })
    }

    /// The standard deviation of an element's error.
    fn spread_of(&self, index: usize) -> f64 {
        self.spread().map_or(0.0, |spread| spread[index])
    }

    /// Rows of ne[0] elements.
    fn operand(&self) -> Result<Operand, GgufError> {
        let spread = self.spread().map(<[f64]>::to_vec);
        Ok(Operand { width: self.ne[0], value: self.value()?.into_owned(), spread })
    }
}

impl Call<'_, '_> {
    /// Whether an input's errors go on into the result.
    fn is_uncertain(&self) -> bool {
        self.arguments.iter().flatten().any(|argument| argument.spread().is_some())
    }

    /// The result as it is without roundings of its own.
    fn exact(&self, value: Vec<f64>, spread: Option<Vec<f64>>) -> Expected<'static> {
        let spread = spread.map_or(Spread::None, Spread::Each);
        Expected { value, spread, single: Vec::new(), rounding: self.rounding }
    }

    /// The result of its elements.
    fn expected(&self, points: &[Point]) -> Expected<'static> {
        let some = |part: fn(&Point) -> f64| {
            let any = points.iter().any(|point| part(point) != 0.0);
            any.then(|| points.iter().map(part).collect::<Vec<f64>>())
        };
        let single = some(|point| point.single).unwrap_or_default();
        let value = points.iter().map(|point| point.value).collect();
        Expected { single, ..self.exact(value, some(|point| point.spread)) }
    }

    /// The result, each element on its own.
    fn each(&self, point: impl Fn(usize) -> Point + Send + Sync) -> Expected<'static> {
        let points = (0..self.elements()).into_par_iter().with_min_len(TASK).map(point);
        self.expected(&points.collect::<Vec<_>>())
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
        MulMat => Some(products::product(call)?),
        MulMatId => Some(products::of_experts(call)?),
        OutProd => Some(products::outer(call)?),
        Sum | SumRows | CumSum | Mean | SsmConv | SolveTri => sums::compute(call)?,
        Norm | RmsNorm | GroupNorm | L2Norm => Some(norms::compute(call)?),
        SoftMax => Some(softmax::compute(call)?),
        Rope => rope::compute(call)?,
        ArgSort | TopK | ArgMax => Some(choices::compute(call)?),
        SsmScan => states::scan(call)?,
        RwkvWkv6 | GatedLinearAttention => Some(states::linear_attention(call)?),
        GatedDeltaNet | RwkvWkv7 => delta::compute(call)?,
        Reglu | Geglu | Swiglu | SwigluOai | SwigluClamp | GegluErf | GegluQuick => {
            gated::compute(call)?
        }
    })
}
