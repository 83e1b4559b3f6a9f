//! What an attention that is one operation reads, and what it must give.

use std::{ops::Range, rc::Rc, sync::Arc};

use crate::{
    core::attending::{Attending, Calls, Current},
    diagnosis::replay::{
        attend::{Reading, Roundings, Way, attend},
        expected::{Expected, Operand, Rounding},
        forward::{Replay, ReplayError, appended},
        operation::Operation,
        ops,
    },
    graph::site::Stage,
};

/// Keys or values as the tokens of a step read them.
pub enum Reads {
    /// All the same.
    Alike(Arc<Operand>),
    /// By token, made when asked for: each is a whole cache.
    Each(Box<dyn Fn(usize) -> Operand>),
}

impl Reads {
    fn of(&self, token: usize) -> Arc<Operand> {
        match self {
            Reads::Alike(all) => Arc::clone(all),
            Reads::Each(of) => Arc::new(of(token)),
        }
    }
}

/// What the tokens of a step read.
pub struct Readings {
    pub keys: Reads,
    pub values: Reads,
    /// The position of the first of them.
    pub first: usize,
}

impl Readings {
    /// What a token of the step reads.
    pub fn of(&self, token: usize) -> Reading {
        let visible = 0..self.first + token + 1;
        Reading { keys: self.keys.of(token), values: self.values.of(token), visible }
    }
}

impl<'a> Replay<'a> {
    /// Whether a layer's attention is one operation in a step: nothing within it was recorded.
    pub fn is_fused(&self, operation: Operation, step: u32) -> bool {
        [Stage::Scores, Stage::Probs].iter().all(|&stage| !self.has(operation.at(stage), step))
    }

    /// What each token of a step reads. Its own key and value may come as arguments: then a wrong append
    /// is none of its faults.
    pub fn readings(&self, operation: Operation, step: u32) -> Result<Readings, ReplayError> {
        Ok(Readings {
            keys: self.read_by_tokens(operation.at(Stage::KCache), step)?,
            values: self.read_by_tokens(operation.at(Stage::VCache), step)?,
            first: self.recording.positions(step).start,
        })
    }

    /// From now on the tokens read that of a cache, by their positions and those in the cache after the
    /// step. What was recorded at the end of a step is not what its tokens found, where they were
    /// appended one by one to wrong slots.
    pub fn set_found(&self, cache: Operation, found: impl Fn(usize, usize) -> Operand + 'static) {
        self.found.borrow_mut().insert(cache, Rc::new(found));
    }

    /// A cache as each token of a step reads it, or as all do.
    fn read_by_tokens(&self, cache: Operation, step: u32) -> Result<Reads, ReplayError> {
        let Range { start: first, end } = self.recording.positions(step);
        if let Some(found) = self.found.borrow().get(&cache) {
            let found = Rc::clone(found);
            return Ok(Reads::Each(Box::new(move |token| found(first + token, end))));
        }
        let whole = self.cache(cache, step)?;
        let Attending { calls, current } = self.recording.attention;
        if current == Current::Cache {
            return Ok(Reads::Alike(whole));
        }
        let own = self.operand(cache.at(appended(cache.stage)), &[step])?;
        if (0..own.rows()).all(|token| own.row(token) == whole.row(first + token)) {
            return Ok(Reads::Alike(whole));
        }
        let tokens = own.rows();
        let with = move |tokens: Range<usize>| {
            let mut value = whole.value.clone();
            let at = (first + tokens.start) * whole.width;
            let rows = &own.value[tokens.start * own.width..tokens.end * own.width];
            value[at..at + rows.len()].copy_from_slice(rows);
            Operand { width: whole.width, value, spread: whole.spread.clone() }
        };
        Ok(match calls {
            Calls::Step => Reads::Alike(Arc::new(with(0..tokens))),
            Calls::Token => Reads::Each(Box::new(move |token| with(token..token + 1))),
        })
    }

    /// The roundings of an attention that is one operation.
    pub fn attention_roundings(&self, operation: Operation, out: Rounding) -> Roundings {
        let of = |stage| self.rounding(operation.at(stage));
        Roundings { scores: of(Stage::Scores), probs: of(Stage::Probs), out }
    }

    /// What an attention that is one operation must give in a step.
    pub(super) fn attended(
        &self,
        operation: Operation,
        step: u32,
        rounding: Rounding,
    ) -> Result<Expected<'a>, ReplayError> {
        let within = [Stage::Scores, Stage::Probs].map(|stage| operation.at(stage));
        self.spanned.borrow_mut().extend(within);
        let heads = self.heads();
        let kv_head = |head| head / (heads.query / heads.kv);
        let way = Way {
            score: ops::Score {
                kv_head: &kv_head,
                scale: f64::from(self.model.config.attention_scale),
                dims: 0..heads.dim,
            },
            value_head: &kv_head,
            temperature: 1.0,
            divisor: &|terms, _| terms.iter().sum(),
        };
        let q = self.operand(operation.at(Stage::QRope), &[step])?;
        let readings = self.readings(operation, step)?;
        let roundings = self.attention_roundings(operation, rounding);
        Ok(attend(&q, &|row| readings.of(row), heads, &way, roundings))
    }
}
