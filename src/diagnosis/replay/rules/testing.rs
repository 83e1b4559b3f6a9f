//! Nodes of random numbers, for tests.

use std::borrow::Cow;

use super::{Argument, Call, Params, Values, compute};
use crate::{
    core::tensor::DType,
    diagnosis::replay::{Expected, Matrix, Rounding},
    graph::op::Op,
};

/// Random numbers.
pub struct Random(pub u64);

impl Random {
    /// In [-1, 1), as f32 holds it.
    pub fn number(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f64::from((self.0 >> 40) as f32 / 8388608.0 - 1.0)
    }

    /// Of a standard deviation of 1.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.number()).sum::<f64>() / 2.0
    }
}

/// A source of a node.
#[derive(Clone)]
pub struct Given {
    pub ne: [usize; 4],
    pub value: Vec<f64>,
    pub spread: Option<Vec<f64>>,
    pub is_weight: bool,
}

impl Given {
    pub fn of(ne: [usize; 4], value: Vec<f64>) -> Given {
        assert_eq!(ne.iter().product::<usize>(), value.len());
        Given { ne, value, spread: None, is_weight: false }
    }

    /// Numbers in [-1, 1).
    pub fn random(ne: [usize; 4], seed: u64) -> Given {
        let mut random = Random(seed.wrapping_mul(0x9e3779b97f4a7c15) + 1);
        random.number();
        Given::of(ne, (0..ne.iter().product()).map(|_| random.number()).collect())
    }

    pub fn map(mut self, of: impl Fn(f64) -> f64) -> Given {
        self.value.iter_mut().for_each(|x| *x = of(*x));
        self
    }

    /// A weight of the file, in f32.
    pub fn weight(self) -> Given {
        Given { is_weight: true, ..self.map(|x| f64::from(x as f32)) }
    }

    /// With elements that are off by some of `spread`.
    pub fn uncertain(self, spread: f64) -> Given {
        let spread = (0..self.value.len()).map(|i| spread * (0.5 + (i % 3) as f64 / 2.0)).collect();
        Given { spread: Some(spread), ..self }
    }

    /// The same with errors of its spread, and no spread.
    pub fn perturbed(&self, random: &mut Random) -> Given {
        let mut out = self.clone();
        for (x, spread) in out.value.iter_mut().zip(self.spread.iter().flatten()) {
            *x += spread * random.normal();
        }
        out.certain()
    }

    pub fn certain(&self) -> Given {
        Given { spread: None, ..self.clone() }
    }

    fn argument(&self) -> Argument<'_, 'static> {
        let values = if self.is_weight {
            let (width, value) = (self.ne[0], self.value.clone());
            Values::Weight(Matrix::of_elements(value.len() / width, width, move |row, column| {
                value[row * width + column] as f32
            }))
        } else {
            Values::Dense {
                value: Cow::Borrowed(&self.value),
                spread: self.spread.as_deref().map(Cow::Borrowed),
            }
        };
        Argument { ne: self.ne, values }
    }
}

/// A node without its sources' values.
#[derive(Clone)]
pub struct Node {
    pub op: Op,
    pub params: Params,
    pub ne: [usize; 4],
    pub has_tables: bool,
}

impl Node {
    pub fn new(op: Op, ne: [usize; 4]) -> Node {
        Node { op, params: Params::default(), ne, has_tables: false }
    }

    pub fn int(mut self, index: usize, value: i32) -> Node {
        self.params.0[index] = value;
        self
    }

    pub fn float(mut self, index: usize, value: f32) -> Node {
        self.params.set_float(index, value);
        self
    }

    /// In f32.
    pub fn try_compute(&self, sources: &[Given]) -> Option<Expected<'static>> {
        let call = Call {
            op: self.op,
            params: self.params,
            ne: self.ne,
            arguments: sources.iter().map(|given| Some(given.argument())).collect(),
            rounding: Rounding::new(DType::F32, DType::F32),
            has_tables: self.has_tables,
            position: None,
            steps: Default::default(),
            only: None,
        };
        compute(&call).unwrap()
    }

    pub fn compute(&self, sources: &[Given]) -> Expected<'static> {
        let expected = self.try_compute(sources).unwrap();
        assert_eq!(expected.value.len(), self.ne.iter().product::<usize>(), "{}", self.op);
        expected
    }

    pub fn value(&self, sources: &[Given]) -> Vec<f64> {
        self.compute(sources).value
    }

    /// The result as a source.
    pub fn given(&self, sources: &[Given]) -> Given {
        Given::of(self.ne, self.value(sources))
    }

    /// Errors of uncertain sources must stay within the bound, must be some of it, and would not be
    /// within the bound that known sources have.
    pub fn propagates(&self, sources: &[Given]) {
        let mut random = Random(7);
        let expected = self.compute(sources);
        let certain = sources.iter().map(Given::certain).collect::<Vec<_>>();
        let known = self.compute(&certain);
        let (mut worst, mut unpropagated): (f64, f64) = (0.0, 0.0);
        for _ in 0..30 {
            let perturbed: Vec<Given> =
                sources.iter().map(|source| source.perturbed(&mut random)).collect();
            for (i, value) in self.value(&perturbed).into_iter().enumerate() {
                let error = (value - expected.value[i]).abs();
                worst = worst.max(error / expected.bound(i));
                unpropagated = unpropagated.max(error / known.bound(i));
            }
        }
        assert!(worst <= 1.0, "{}: {worst} bounds", self.op);
        assert!(worst >= 0.02, "{}: only {worst} bounds", self.op);
        assert!(unpropagated > 1.0, "{}: {unpropagated} bounds of known sources", self.op);
    }
}

/// Whether two results are the same but for roundings of f64.
pub fn assert_near(actual: &[f64], expected: &[f64], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= 1e-11 * (1.0 + e.abs()), "{what}: element {i} is {a}, not {e}");
    }
}
