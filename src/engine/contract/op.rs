//! The operations that a kernel can take over, and what its parameters can stand for.

use std::fmt;

use serde::Deserialize;

use crate::graph::site::Stage;

/// An operation of the engine that has a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    Embedding,
    RmsNorm,
    Rope,
    KvAppend,
    Attention,
    Swiglu,
    ResidualAdd,
}

/// A tensor that a pointer parameter stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Out,
    /// Attention: (T, Hq, D), after rope.
    Q,
    /// Attention: keys after rope and values of the call's tokens, (T, Hk, D).
    KCurrent,
    VCurrent,
    KCache,
    VCache,
    /// kv_append: keys after rope and values, (T, Hk, D).
    K,
    V,
    Positions,
    /// Attention: 0 where a query sees a key, else minus infinity, (T, P).
    Mask,
    /// Attention: scaled scores and probabilities, (T, Hq, P); written for the report only.
    Scores,
    Probs,
    Table,
    Ids,
    X,
    Y,
    Weight,
    /// Divisors of rope's angles (D/2), null where the model has none.
    Factors,
    Gate,
    Up,
    /// Memory for the kernel's own use.
    Scratch,
    /// A null pointer.
    Null,
    Scale,
    Eps,
    Theta,
}

/// What the elements behind a pointer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// The engine's storage type, `T`.
    Storage,
    F32,
    I32,
    Any,
    /// No pointer but a float.
    Scalar,
}

/// An axis of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Always one.
    Batch,
    Token,
    Head,
    KvHead,
    Position,
    Dim,
}

/// What a kernel does with a pointer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    In,
    Out,
    InOut,
}

/// A role as an operation has it.
pub struct Place {
    pub role: Role,
    pub element: Element,
    pub access: &'static [Access],
    /// Whether the operation cannot be computed without it.
    pub required: bool,
    /// In the engine's order; empty where the order is fixed.
    pub axes: &'static [Axis],
}

const IN: &[Access] = &[Access::In];
const OUT: &[Access] = &[Access::Out];
const CACHE: &[Access] = &[Access::In, Access::InOut];
const IN_PLACE: &[Access] = &[Access::In, Access::InOut];
const Q_AXES: &[Axis] = &[Axis::Token, Axis::Head, Axis::Dim];
const KV_AXES: &[Axis] = &[Axis::Token, Axis::KvHead, Axis::Dim];
const CACHE_AXES: &[Axis] = &[Axis::KvHead, Axis::Position, Axis::Dim];

const fn place(role: Role, element: Element, access: &'static [Access]) -> Place {
    Place { role, element, access, required: true, axes: &[] }
}

const fn along(axes: &'static [Axis], place: Place) -> Place {
    Place { axes, ..place }
}

const fn optional(place: Place) -> Place {
    Place { required: false, ..place }
}

use Element::{F32, I32, Storage};

const OUTPUT: Place = place(Role::Out, Storage, OUT);
const SCRATCH: Place = optional(place(Role::Scratch, Element::Any, &[Access::InOut]));
const NULL: Place = optional(place(Role::Null, Element::Any, IN));
const SCALE: Place = optional(place(Role::Scale, Element::Scalar, IN));

static EMBEDDING: &[Place] =
    &[OUTPUT, place(Role::Table, Storage, IN), place(Role::Ids, I32, IN), SCRATCH, NULL];
static RMS_NORM: &[Place] = &[
    optional(OUTPUT),
    place(Role::X, Storage, IN_PLACE),
    place(Role::Weight, F32, IN),
    place(Role::Eps, Element::Scalar, IN),
    SCRATCH,
    NULL,
];
static ROPE: &[Place] = &[
    optional(OUTPUT),
    place(Role::X, Storage, IN_PLACE),
    place(Role::Positions, I32, IN),
    optional(place(Role::Factors, F32, IN)),
    place(Role::Theta, Element::Scalar, IN),
    SCRATCH,
    NULL,
];
static KV_APPEND: &[Place] = &[
    place(Role::KCache, Storage, &[Access::InOut]),
    place(Role::VCache, Storage, &[Access::InOut]),
    place(Role::K, Storage, IN),
    place(Role::V, Storage, IN),
    place(Role::Positions, I32, IN),
    SCRATCH,
    NULL,
];
static ATTENTION: &[Place] = &[
    along(Q_AXES, OUTPUT),
    along(Q_AXES, place(Role::Q, Storage, IN)),
    along(KV_AXES, optional(place(Role::KCurrent, Storage, IN))),
    along(KV_AXES, optional(place(Role::VCurrent, Storage, IN))),
    along(CACHE_AXES, place(Role::KCache, Storage, CACHE)),
    along(CACHE_AXES, place(Role::VCache, Storage, CACHE)),
    optional(place(Role::Positions, I32, IN)),
    optional(place(Role::Mask, F32, IN)),
    optional(place(Role::Scores, F32, OUT)),
    optional(place(Role::Probs, F32, OUT)),
    SCALE,
    SCRATCH,
    NULL,
];
static SWIGLU: &[Place] =
    &[OUTPUT, place(Role::Gate, Storage, IN), place(Role::Up, Storage, IN), SCRATCH, NULL];
static RESIDUAL_ADD: &[Place] = &[
    optional(OUTPUT),
    place(Role::X, Storage, IN_PLACE),
    place(Role::Y, Storage, IN),
    SCRATCH,
    NULL,
];

/// What every operation knows of the model, and of a call.
const MODEL_DIMS: [&str; 9] =
    ["n_layer", "n_embd", "n_head", "n_head_kv", "head_dim", "n_ff", "n_vocab", "batch", "element"];

impl Op {
    pub const ALL: [Op; 7] = [
        Op::Embedding,
        Op::RmsNorm,
        Op::Rope,
        Op::KvAppend,
        Op::Attention,
        Op::Swiglu,
        Op::ResidualAdd,
    ];

    /// Its name in a contract, which is that of our own kernel file.
    pub fn name(self) -> &'static str {
        match self {
            Op::Embedding => "embedding",
            Op::RmsNorm => "rms_norm",
            Op::Rope => "rope",
            Op::KvAppend => "kv_append",
            Op::Attention => "attention",
            Op::Swiglu => "swiglu",
            Op::ResidualAdd => "residual_add",
        }
    }

    pub fn of(name: &str) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.name() == name)
    }

    /// The roles that its parameters can have.
    pub fn places(self) -> &'static [Place] {
        match self {
            Op::Embedding => EMBEDDING,
            Op::RmsNorm => RMS_NORM,
            Op::Rope => ROPE,
            Op::KvAppend => KV_APPEND,
            Op::Attention => ATTENTION,
            Op::Swiglu => SWIGLU,
            Op::ResidualAdd => RESIDUAL_ADD,
        }
    }

    /// The names that its expressions may use.
    pub fn dims(self) -> Vec<&'static str> {
        let own: &[&str] = match self {
            Op::Embedding => &["tokens"],
            Op::RmsNorm => &["rows", "width"],
            Op::Rope => &["tokens", "heads"],
            Op::KvAppend | Op::Attention => &["tokens", "past", "length", "capacity"],
            Op::Swiglu | Op::ResidualAdd => &["elements"],
        };
        own.iter().copied().chain(MODEL_DIMS).collect()
    }

    /// The stages that its kernel makes.
    pub fn stages(self) -> &'static [Stage] {
        use Stage::*;
        match self {
            Op::Embedding => &[Embd],
            Op::RmsNorm => &[AttnNorm, QNorm, KNorm, FfnNorm, FinalNorm],
            Op::Rope => &[QRope, KRope],
            Op::KvAppend => &[KCache, VCache],
            Op::Attention => &[Scores, Probs, AttnOut],
            Op::Swiglu => &[FfnAct],
            Op::ResidualAdd => &[AttnResidual, LayerOut],
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Role {
    /// Its name in a contract.
    pub fn name(self) -> &'static str {
        match self {
            Role::Out => "out",
            Role::Q => "q",
            Role::KCurrent => "k_current",
            Role::VCurrent => "v_current",
            Role::KCache => "k_cache",
            Role::VCache => "v_cache",
            Role::K => "k",
            Role::V => "v",
            Role::Positions => "positions",
            Role::Mask => "mask",
            Role::Scores => "scores",
            Role::Probs => "probs",
            Role::Table => "table",
            Role::Ids => "ids",
            Role::X => "x",
            Role::Y => "y",
            Role::Weight => "weight",
            Role::Factors => "factors",
            Role::Gate => "gate",
            Role::Up => "up",
            Role::Scratch => "scratch",
            Role::Null => "null",
            Role::Scale => "scale",
            Role::Eps => "eps",
            Role::Theta => "theta",
        }
    }
}
