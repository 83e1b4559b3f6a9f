//! Recomputes any operation of a recorded side from that side's own tensors.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    ops::Range,
    rc::Rc,
    sync::Arc,
};

use crate::{
    core::{
        arithmetic::Arithmetic,
        attending::Attending,
        exit::Exit,
        pool,
        tensor::{DType, Tensor},
    },
    diagnosis::replay::{
        expected::{Expected, Operand, Rounding},
        matrix::{Matrix, round},
        operation::{Operation, norm_weight, projection},
        ops::{self, Heads},
    },
    graph::site::Stage,
    model::{Model, ModelError, gguf::GgufError, rope_angle, rope_pair},
    trace::{TraceError, recording::Recorded},
};

/// Why an operation could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl ReplayError {
    /// The exit code of the error.
    pub fn exit(&self) -> Exit {
        match self {
            ReplayError::Trace(error) => error.exit(),
            ReplayError::Model(_) => Exit::BadInput,
        }
    }
}

impl From<GgufError> for ReplayError {
    fn from(error: GgufError) -> ReplayError {
        ReplayError::Model(ModelError::Gguf(error))
    }
}

/// One side's run.
#[derive(Clone, Copy)]
pub struct Recording<'a> {
    pub tensors: &'a dyn Recorded,
    /// Token ids of each step; together they are the positions 0, 1, 2, ...
    pub steps: &'a [Vec<i32>],
    pub arithmetic: &'a Arithmetic,
    pub attention: Attending,
}

impl Recording<'_> {
    /// The positions of a step's tokens.
    pub fn positions(&self, step: u32) -> Range<usize> {
        let before: usize = self.steps[..step as usize].iter().map(Vec::len).sum();
        before..before + self.steps[step as usize].len()
    }

    /// The positions of several steps' tokens, one after another.
    pub fn rows(&self, steps: &[u32]) -> Vec<usize> {
        steps.iter().flat_map(|&step| self.positions(step)).collect()
    }
}

/// A part of an operation's result: of one step, or of several whose rows follow one another.
pub struct Piece<'a> {
    pub steps: Vec<u32>,
    /// The position of each row.
    pub positions: Vec<usize>,
    /// Elements of a row.
    pub width: usize,
    /// Scores only: keys of one head's row, of which those after the query do not count.
    pub keys: Option<usize>,
    pub expected: Expected<'a>,
    pub captured: Vec<f32>,
}

type Tensors = HashMap<(Operation, u32), Option<Rc<Tensor>>>;
type Operands = HashMap<(Operation, Vec<u32>), Arc<Operand>>;

/// A cache as the query of a position finds it, given how many positions it holds after the step.
pub type Found = dyn Fn(usize, usize) -> Operand;

/// Recomputes operations, remembering what it has read. One thread uses it for one layer.
pub struct Replay<'a> {
    pub model: &'a Model,
    pub recording: Recording<'a>,
    tensors: RefCell<Tensors>,
    computed: RefCell<Operands>,
    /// Operations without a tensor that were computed in passing.
    pub(super) spanned: RefCell<BTreeSet<Operation>>,
    /// Caches as tokens find them, where that is known.
    pub(super) found: RefCell<HashMap<Operation, Rc<Found>>>,
}

impl<'a> Replay<'a> {
    pub fn new(model: &'a Model, recording: Recording<'a>) -> Replay<'a> {
        let (tensors, computed, spanned, found) = Default::default();
        Replay { model, recording, tensors, computed, spanned, found }
    }

    /// The operations that were computed because their tensors are not there, since the last call.
    pub fn take_spanned(&self) -> Vec<Operation> {
        self.spanned.take().into_iter().collect()
    }

    /// Whether an operation's result was recorded in a step.
    pub fn has(&self, operation: Operation, step: u32) -> bool {
        self.recording.tensors.has(operation.site(step))
    }

    /// The steps in which an operation's result was recorded.
    pub fn steps_of(&self, operation: Operation) -> Vec<u32> {
        let steps = 0..self.recording.steps.len() as u32;
        steps.filter(|&step| self.has(operation, step)).collect()
    }

    /// What a side recorded of an operation in a step.
    pub fn tensor(
        &self,
        operation: Operation,
        step: u32,
    ) -> Result<Option<Rc<Tensor>>, ReplayError> {
        if let Some(known) = self.tensors.borrow().get(&(operation, step)) {
            return Ok(known.clone());
        }
        let tensor = self.recording.tensors.tensor(operation.site(step))?.map(Rc::new);
        self.tensors.borrow_mut().insert((operation, step), tensor.clone());
        Ok(tensor)
    }

    /// Appends what a side recorded of an operation in a step to `whole` values in all. Logits are the
    /// largest of all results, and no other operation reads them: they are not kept besides.
    fn append(
        &self,
        operation: Operation,
        step: u32,
        to: &mut Vec<f32>,
        whole: usize,
    ) -> Result<(), ReplayError> {
        let room = whole.saturating_sub(to.len());
        if operation.stage != Stage::Logits {
            let tensor = self.tensor(operation, step)?;
            to.reserve_exact(room);
            to.extend_from_slice(tensor.as_ref().map_or(&[], |tensor| &tensor.data));
        } else if let Some(tensor) = self.recording.tensors.tensor(operation.site(step))? {
            if to.is_empty() { *to = tensor.data } else { to.extend_from_slice(&tensor.data) }
        }
        Ok(())
    }

    /// The recorded result of an operation over steps, rows one after another; `None` unless all
    /// are there.
    pub fn captured(
        &self,
        operation: Operation,
        steps: &[u32],
    ) -> Result<Option<Operand>, ReplayError> {
        let (mut values, mut width, mut sums) = (Vec::new(), 0, Vec::new());
        for &step in steps {
            let Some(tensor) = self.tensor(operation, step)? else { return Ok(None) };
            width = tensor.shape[1..].iter().product();
            values.extend_from_slice(&tensor.data);
            // From here on its values are kept as the operand's.
            self.tensors.borrow_mut().remove(&(operation, step));
            if let Ok(tensor) = Rc::try_unwrap(tensor) {
                pool::done(tensor);
            }
            sums.extend(
                self.recording.tensors.magnitudes(operation.site(step))?.unwrap_or_default(),
            );
        }
        // What the ranks add up is known, the order and the format in which they did is not.
        let rounding = self.rounding(operation);
        let unit = rounding.sum.max(rounding.storage);
        let spread = sums.into_iter().map(|sum| unit * f64::from(sum)).collect::<Vec<f64>>();
        let spread = Some(spread).filter(|spread| spread.len() == values.len());
        Ok(Some(Operand { spread, ..Operand::captured(width, &values) }))
    }

    /// An operation's result as the input of another: recorded, or else computed.
    pub fn operand(
        &self,
        operation: Operation,
        steps: &[u32],
    ) -> Result<Arc<Operand>, ReplayError> {
        let key = (operation, steps.to_vec());
        if let Some(known) = self.computed.borrow().get(&key) {
            return Ok(Arc::clone(known));
        }
        let operand = match self.captured(operation, steps)? {
            Some(captured) => captured,
            None => {
                self.spanned.borrow_mut().insert(operation);
                let (width, parts) = self.parts(operation, steps)?;
                let last = *steps.last().expect("an operand of at least one step");
                joined(width.of(self.recording.positions(last).end), parts)
            }
        };
        let operand = Arc::new(operand);
        self.computed.borrow_mut().insert(key, Arc::clone(&operand));
        Ok(operand)
    }

    /// The keys or values that a step's attention reads: (P, Hk D).
    pub fn cache(&self, operation: Operation, step: u32) -> Result<Arc<Operand>, ReplayError> {
        if self.tensor(operation, step)?.is_some() {
            return self.operand(operation, &[step]);
        }
        self.spanned.borrow_mut().insert(operation);
        let steps: Vec<u32> = (0..=step).collect();
        self.operand(operation.at(appended(operation.stage)), &steps)
    }

    /// The roundings that the side declares for an operation.
    pub fn rounding(&self, operation: Operation) -> Rounding {
        Rounding::of(self.recording.arithmetic, operation.stage)
    }

    /// The heads of the model's attention.
    pub fn heads(&self) -> Heads {
        let c = &self.model.config;
        Heads { query: c.n_head, kv: c.n_head_kv, dim: c.head_dim }
    }

    /// The weight of a projection.
    pub fn weight(&self, operation: Operation) -> Result<Matrix<'a>, ReplayError> {
        let (weight, _) = projection(operation.stage).expect("called for a projection");
        let mut name = operation.tensor(weight);
        if !self.model.has(&name) && operation.stage == Stage::Logits {
            name = "token_embd.weight".to_string();
        }
        self.matrix(&name)
    }

    /// A matrix of the model's file, rounded as the side declares.
    pub fn matrix(&self, tensor: &str) -> Result<Matrix<'a>, ReplayError> {
        Ok(Matrix::of_file(self.model, tensor, self.recording.arithmetic.weights)?)
    }

    /// A bias or a norm's weight, rounded as the side declares; `None` where the model has none.
    pub fn vector(&self, tensor: &str) -> Result<Option<Vec<f32>>, ReplayError> {
        self.model.has(tensor).then(|| self.rounded(tensor)).transpose()
    }

    fn rounded(&self, tensor: &str) -> Result<Vec<f32>, ReplayError> {
        let mut values = self.model.weights(tensor)?;
        round(self.recording.arithmetic.vectors.unwrap_or(DType::F32), &mut values);
        Ok(values)
    }

    /// The weight of a norm.
    pub fn norm_weight(&self, operation: Operation) -> Result<Vec<f32>, ReplayError> {
        let part = norm_weight(operation.stage).expect("called for a norm");
        self.rounded(&operation.tensor(part))
    }

    /// What the angle of each pair is divided by, if the model has such factors.
    pub fn rope_factors(&self) -> Result<Option<Vec<f32>>, ReplayError> {
        let name = "rope_freqs.weight";
        Ok(self.model.has(name).then(|| self.model.weights(name)).transpose()?)
    }

    /// The bias of a projection, if the model has one.
    pub fn bias(&self, operation: Operation) -> Result<Option<Vec<f32>>, ReplayError> {
        let (_, bias) = projection(operation.stage).expect("called for a projection");
        self.vector(&operation.tensor(bias))
    }

    /// What an operation must give in the steps where its result was recorded.
    pub fn pieces(&self, operation: Operation) -> Result<Vec<Piece<'a>>, ReplayError> {
        let steps = self.steps_of(operation);
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let (width, parts) = self.parts(operation, &steps)?;
        self.with_captured(operation, width, parts)
    }

    /// Results of an operation, each beside what was recorded.
    pub fn with_captured(
        &self,
        operation: Operation,
        width: Width,
        parts: Vec<(Vec<u32>, Expected<'a>)>,
    ) -> Result<Vec<Piece<'a>>, ReplayError> {
        let piece = |(steps, mut expected): (Vec<u32>, Expected<'a>)| {
            let mut captured = Vec::new();
            for &step in &steps {
                let before = captured.len();
                self.append(operation, step, &mut captured, expected.value.len())?;
                // Each rank stored its partial sum rounded.
                let sums = self.recording.tensors.magnitudes(operation.site(step))?;
                let Some(sums) = sums else { continue };
                expected.single.resize(expected.value.len(), 0.0);
                for (single, sum) in expected.single[before..].iter_mut().zip(&sums) {
                    *single += expected.rounding.storage * f64::from(*sum);
                }
            }
            let last = *steps.last().expect("a piece has steps");
            let is_cache = matches!(operation.stage, Stage::KCache | Stage::VCache);
            let positions = if is_cache {
                (0..self.recording.positions(last).end).collect()
            } else {
                self.recording.rows(&steps)
            };
            let end = self.recording.positions(last).end;
            let keys = (operation.stage == Stage::Scores).then_some(end);
            let width = width.of(end);
            Ok(Piece { steps, positions, width, keys, expected, captured })
        };
        parts.into_iter().map(piece).collect()
    }

    /// What an operation must give in steps, and the width of its rows.
    fn parts(&self, operation: Operation, steps: &[u32]) -> Result<Parts<'a>, ReplayError> {
        self.parts_rounded(operation, steps, self.rounding(operation))
    }

    /// What an operation must give in steps if it rounds like that.
    pub fn parts_rounded(
        &self,
        operation: Operation,
        steps: &[u32],
        rounding: Rounding,
    ) -> Result<Parts<'a>, ReplayError> {
        use Stage::*;
        let c = &self.model.config;
        let at = |stage| self.operand(operation.at(stage), steps);
        let whole = |width, expected| (Width::Fixed(width), vec![(steps.to_vec(), expected)]);
        let heads = self.heads();
        Ok(match operation.stage {
            Embd => whole(c.n_embd, self.embedding(steps, rounding)?),
            AttnNorm | FfnNorm | FinalNorm | QNorm | KNorm => {
                let x = self.operand(self.input(operation), steps)?;
                whole(x.width, self.norm(operation, &x, rounding)?)
            }
            Q | K | V | OProj | FfnGate | FfnUp | FfnDown | Logits => {
                let x = self.operand(self.input(operation), steps)?;
                let weight = self.weight(operation)?;
                let bias = self.bias(operation)?;
                let width = weight.outputs;
                whole(width, ops::linear(&x, &weight, bias.as_deref(), rounding)?)
            }
            QRope | KRope => {
                let x = self.operand(self.input(operation), steps)?;
                whole(x.width, self.rope(&x, steps, rounding)?)
            }
            KCache | VCache => {
                let parts = steps.iter().map(|&step| {
                    let slots = self.appended(operation, step)?;
                    Ok((vec![step], ops::copy(&slots, rounding)))
                });
                (Width::Fixed(heads.kv * heads.dim), parts.collect::<Result<_, ReplayError>>()?)
            }
            Scores => {
                let kv_head = |head| head / (heads.query / heads.kv);
                let score = ops::Score {
                    kv_head: &kv_head,
                    scale: f64::from(c.attention_scale),
                    dims: 0..heads.dim,
                };
                let parts = steps.iter().map(|&step| {
                    let q = self.operand(operation.at(QRope), &[step])?;
                    let k = self.cache(operation.at(KCache), step)?;
                    Ok((vec![step], ops::scores(&q, &k, heads, &score, rounding)))
                });
                (Width::Keys(heads.query), parts.collect::<Result<_, ReplayError>>()?)
            }
            Probs => {
                let parts = steps.iter().map(|&step| {
                    let scores = self.operand(operation.at(Scores), &[step])?;
                    let positions = self.recording.positions(step);
                    let softmax = ops::Softmax {
                        keys: positions.end,
                        visible: &|token| 0..positions.start + token + 1,
                        temperature: 1.0,
                        divisor: &|terms, _| terms.iter().sum(),
                    };
                    Ok((vec![step], ops::softmax(&scores, &softmax, rounding)))
                });
                (Width::Keys(heads.query), parts.collect::<Result<_, ReplayError>>()?)
            }
            AttnOut => {
                let kv_head = |head| head / (heads.query / heads.kv);
                let parts = steps.iter().map(|&step| {
                    if self.is_fused(operation, step) {
                        return Ok((vec![step], self.attended(operation, step, rounding)?));
                    }
                    let probs = self.operand(operation.at(Probs), &[step])?;
                    let v = self.cache(operation.at(VCache), step)?;
                    let all = (&kv_head as &dyn Fn(usize) -> usize, 0..v.rows());
                    Ok((vec![step], ops::weighted_sum(&probs, &v, heads, all, rounding)))
                });
                let width = heads.query * heads.dim;
                (Width::Fixed(width), parts.collect::<Result<_, ReplayError>>()?)
            }
            AttnResidual => {
                let hidden = self.operand(operation.hidden(c), steps)?;
                whole(c.n_embd, ops::add(&hidden, &*at(OProj)?, rounding))
            }
            FfnAct => whole(
                c.n_ff,
                ops::gated(&*at(FfnGate)?, &*at(FfnUp)?, (&ops::silu, false), rounding),
            ),
            LayerOut => whole(c.n_embd, ops::add(&*at(AttnResidual)?, &*at(FfnDown)?, rounding)),
            Other(_) => unreachable!("{operation} is none of the engine's operations"),
        })
    }

    /// The operation whose result is the main input of a norm, a projection or a rotation.
    pub fn input(&self, operation: Operation) -> Operation {
        use Stage::*;
        let normed = |stage, plain| {
            if self.model.config.stages().contains(&stage) {
                operation.at(stage)
            } else {
                operation.at(plain)
            }
        };
        match operation.stage {
            AttnNorm | FinalNorm => operation.hidden(&self.model.config),
            Q | K | V => operation.at(AttnNorm),
            QNorm => operation.at(Q),
            KNorm => operation.at(K),
            QRope => normed(QNorm, Q),
            KRope => normed(KNorm, K),
            OProj => operation.at(AttnOut),
            FfnNorm => operation.at(AttnResidual),
            FfnGate | FfnUp => operation.at(FfnNorm),
            FfnDown => operation.at(FfnAct),
            Logits => operation.at(FinalNorm),
            _ => unreachable!("{operation} has no single input"),
        }
    }

    fn embedding(&self, steps: &[u32], rounding: Rounding) -> Result<Expected<'a>, ReplayError> {
        let table = self.matrix("token_embd.weight")?;
        let mut values = Vec::new();
        for &id in steps.iter().flat_map(|&step| &self.recording.steps[step as usize]) {
            values.extend(table.row(id as usize)?);
        }
        Ok(ops::copy(&Operand::captured(table.inputs, &values), rounding))
    }

    fn norm(
        &self,
        operation: Operation,
        x: &Operand,
        rounding: Rounding,
    ) -> Result<Expected<'a>, ReplayError> {
        let weight = self.norm_weight(operation)?;
        let weight: Vec<f64> = weight.into_iter().map(f64::from).collect();
        let eps = f64::from(self.model.config.rms_eps);
        let scale = |x: &[f64]| ops::inverse_rms(x, eps);
        let norm = ops::Norm { weight: &weight, centre: &|_| 0.0, scale: &scale };
        Ok(ops::norm(x, &norm, rounding))
    }

    fn rope(
        &self,
        x: &Operand,
        steps: &[u32],
        rounding: Rounding,
    ) -> Result<Expected<'a>, ReplayError> {
        let c = &self.model.config;
        let factors = self.rope_factors()?;
        let positions = self.recording.rows(steps);
        let angle = |row: usize, pair: usize| {
            let factor = factors.as_ref().map_or(1.0, |factors| f64::from(factors[pair]));
            Some(
                rope_angle(f64::from(c.rope_theta), positions[row] as f64, pair, c.head_dim)
                    / factor,
            )
        };
        let pair = rope_pair(c.rope_pairs, c.head_dim);
        let rotation = ops::Rotation { head_dim: c.head_dim, pair: &pair, angle: &angle };
        Ok(ops::rotate(x, &rotation, rounding))
    }

    /// The slots after a step's append: the older ones as they were after the step before.
    fn appended(&self, operation: Operation, step: u32) -> Result<Operand, ReplayError> {
        let source = operation.at(appended(operation.stage));
        let new = self.operand(source, &[step])?;
        let old = match step.checked_sub(1) {
            None => {
                return Ok(Operand {
                    width: new.width,
                    value: new.value.clone(),
                    spread: new.spread.clone(),
                });
            }
            Some(before) => self.cache(operation, before)?,
        };
        Ok(joined_operands(&[&*old, &*new]))
    }
}

/// Parts of a result: the steps of each, and what it must be.
pub type Parts<'a> = (Width, Vec<(Vec<u32>, Expected<'a>)>);

/// Elements of a row.
#[derive(Clone, Copy)]
pub enum Width {
    Fixed(usize),
    /// As many as there are positions, for each of that many heads.
    Keys(usize),
}

impl Width {
    fn of(self, positions: usize) -> usize {
        match self {
            Width::Fixed(width) => width,
            Width::Keys(heads) => heads * positions,
        }
    }
}

/// What a cache holds.
pub fn appended(cache: Stage) -> Stage {
    if cache == Stage::KCache { Stage::KRope } else { Stage::V }
}

fn joined(width: usize, parts: Vec<(Vec<u32>, Expected<'_>)>) -> Operand {
    let parts = parts.into_iter().map(|(_, expected)| expected.into_operand(width));
    let parts: Vec<Operand> = parts.collect();
    joined_operands(&parts.iter().collect::<Vec<_>>())
}

fn joined_operands(parts: &[&Operand]) -> Operand {
    let value = parts.iter().flat_map(|part| part.value.iter().copied()).collect();
    let any = parts.iter().any(|part| part.spread.is_some());
    let spread = any.then(|| {
        let of =
            |part: &&Operand| (0..part.value.len()).map(|i| part.spread_of(i)).collect::<Vec<_>>();
        parts.iter().flat_map(of).collect()
    });
    Operand { width: parts[0].width, value, spread }
}
