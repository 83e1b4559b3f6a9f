//! What every side of a comparison does: put (site, tensor) pairs into a [`Sink`].

use crate::{core::tensor::Tensor, graph::site::Site};

/// The receiver wants no more tensors; the side ends its run early and reports no error of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by the receiver")]
pub struct Stopped;

/// Receives one side's tensors as it computes them.
///
/// Within a layer a side may put its sites in any order; layers and steps come in order.
pub trait Sink: Send {
    /// Whether the tensor of this site is wanted; an unwanted one is never copied.
    fn wants(&self, site: Site) -> bool;

    /// The tokens whose rows of a site are wanted, ascending; `None` means every token of the step.
    fn queries(&self, _site: Site) -> Option<&[usize]> {
        None
    }

    /// A step begins, which runs these tokens from that position on.
    fn begin_step(&mut self, _tokens: &[i32], _first_position: usize) -> Result<(), Stopped> {
        Ok(())
    }

    /// Takes the tensor of a wanted site, in the shape of the stage's definition; with fewer rows where
    /// [`Sink::queries`] says so.
    fn put(&mut self, site: Site, tensor: Tensor) -> Result<(), Stopped>;

    /// A step has ended, after which the side itself would decode that token.
    fn end_step(&mut self, _choice: Option<Choice>) -> Result<(), Stopped> {
        Ok(())
    }
}

/// Wants nothing: a run without hooks.
pub struct NoSink;

impl Sink for NoSink {
    fn wants(&self, _site: Site) -> bool {
        false
    }

    fn put(&mut self, _site: Site, _tensor: Tensor) -> Result<(), Stopped> {
        Ok(())
    }
}

/// What a side would say next: the two most likely tokens of a step's last row of logits.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Choice {
    pub token: i32,
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub logit: f32,
    pub second: i32,
    #[serde(deserialize_with = "crate::core::tensor::nan_from_null")]
    pub second_logit: f32,
}

/// Logits that are looked at together.
const PART: usize = 256;

impl Choice {
    /// The choice that a row of logits makes; `None` where its two largest are not finite. The lower id
    /// wins a tie.
    pub fn of(logits: &[f32]) -> Option<Choice> {
        let none = (-1, f32::NEG_INFINITY);
        let (mut first, mut second) = (none, none);
        for (part, logits) in logits.chunks(PART).enumerate() {
            // Nearly always false, and a few instructions.
            if logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) <= second.1 {
                continue;
            }
            for (id, &logit) in (part * PART..).zip(logits) {
                if logit > first.1 {
                    (second, first) = (first, (id as i32, logit));
                } else if logit > second.1 {
                    second = (id as i32, logit);
                }
            }
        }
        let (token, logit) = first;
        let (second, second_logit) = second;
        (second >= 0 && logit.is_finite()).then_some(Choice { token, logit, second, second_logit })
    }

    /// How far apart the two are.
    pub fn gap(&self) -> f32 {
        self.logit - self.second_logit
    }
}
