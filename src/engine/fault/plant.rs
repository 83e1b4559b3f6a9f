//! How a fault gets into the engine.

use crate::{
    engine::fault::{Fault, Load},
    graph::site::Stage,
    model::{Config, RopePairs},
};

/// A way into the engine, and what goes wrong there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Plant {
    /// A definition that changes a kernel file.
    Define { file: &'static str, define: &'static str },
    /// Tensors, named without their `blk.N.`, that are loaded wrongly.
    Load { tensors: &'static [&'static str], load: Load },
    /// A hyperparameter that the engine computes with; shapes stay.
    Parameter(Parameter),
    /// Positions as rope (`QRope`, `KRope`) or the append (`KCache`) takes them, wrong from a step
    /// on.
    Positions { users: &'static [Stage], first_step: u32, shift: Shift },
    /// A mistake in the host code around the kernels.
    Wiring(Wiring),
}

/// Wrong hyperparameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parameter {
    OtherRopePairs,
    RopeTheta(f32),
    RmsEps(f32),
    /// 1.
    NoScale,
    /// 1/D.
    ScaleSquared,
    /// 1/sqrt(E).
    ScaleOfHidden,
}

/// What becomes of a position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    Zero,
    By(i32),
}

/// Mistakes in the host code around the kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wiring {
    KStoredBeforeRope,
    DecodeNeverAppended,
    CacheOfLayer0,
    AttnResidualMissing,
    AttnResidualOfNormed,
    FfnResidualMissing,
    FinalNormMissing,
}

impl Parameter {
    /// Makes the mistake.
    pub fn apply(self, config: &mut Config) {
        match self {
            Parameter::OtherRopePairs => {
                config.rope_pairs = match config.rope_pairs {
                    RopePairs::Norm => RopePairs::Neox,
                    RopePairs::Neox => RopePairs::Norm,
                }
            }
            Parameter::RopeTheta(theta) => config.rope_theta = theta,
            Parameter::RmsEps(eps) => config.rms_eps = eps,
            Parameter::NoScale => config.attention_scale = 1.0,
            Parameter::ScaleSquared => config.attention_scale *= config.attention_scale,
            Parameter::ScaleOfHidden => {
                config.attention_scale = 1.0 / (config.n_embd as f32).sqrt();
            }
        }
    }
}

/// The faults of a run.
#[derive(Clone, Debug, Default)]
pub struct Faults(pub Vec<&'static Fault>);

impl Faults {
    fn plants(&self) -> impl Iterator<Item = Plant> {
        self.0.iter().map(|fault| fault.plant)
    }

    /// Whether a mistake in the host code is planted.
    pub fn has(&self, wiring: Wiring) -> bool {
        self.plants().any(|plant| plant == Plant::Wiring(wiring))
    }

    /// The definitions for a kernel file.
    pub fn defines(&self, kernel_file: &str) -> Vec<String> {
        let of_file = |plant| match plant {
            Plant::Define { file, define } if file == kernel_file => Some(define.to_string()),
            _ => None,
        };
        self.plants().filter_map(of_file).collect()
    }

    /// What happens to a tensor, named without its `blk.N.`, when it is loaded.
    pub(super) fn loads(&self, tensor: &str) -> Vec<Load> {
        let of_tensor = |plant| match plant {
            Plant::Load { tensors, load } if tensors.contains(&tensor) => Some(load),
            _ => None,
        };
        self.plants().filter_map(of_tensor).collect()
    }

    /// The hyperparameters that the engine computes with.
    pub fn config(&self, right: &Config) -> Config {
        let mut config = right.clone();
        for plant in self.plants() {
            if let Plant::Parameter(parameter) = plant {
                parameter.apply(&mut config);
            }
        }
        config
    }

    /// A token's position as one of its users takes it.
    pub fn position(&self, user: Stage, step: u32, right: i32) -> i32 {
        self.plants().fold(right, |position, plant| match plant {
            Plant::Positions { users, first_step, shift }
                if users.contains(&user) && step >= first_step =>
            {
                match shift {
                    Shift::Zero => 0,
                    Shift::By(distance) => position + distance,
                }
            }
            _ => position,
        })
    }
}
