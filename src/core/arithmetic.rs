//! The arithmetic that an engine declares: how each stage is stored and accumulated.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    core::{format::Format, tensor::DType},
    graph::site::Stage,
};

/// How the tensor of one stage is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpArithmetic {
    /// The format its elements are rounded to when stored.
    pub storage: DType,
    /// The format in which sums are kept.
    pub accumulator: DType,
}

/// The arithmetic of a whole engine. A stage that is not named is computed as `default` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arithmetic {
    /// The format matrices are rounded to before use.
    pub weights: DType,
    /// The format that biases and the weights of norms are rounded to; f32 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<DType>,
    /// The format that the steps of a formula pass their results in, such as the normalised vector
    /// before it is multiplied by its weight, where a framework runs a kernel for each; wider than
    /// what is stored where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between: Option<DType>,
    pub default: OpArithmetic,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<Stage, OpArithmetic>,
    /// What is rounded on the way, beside what is stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roundings: Vec<Convention>,
}

/// A value that an engine rounds on the way to a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Value {
    /// What a product with a weight takes.
    Inputs,
    /// The weight of a product.
    Weights,
    /// The queries of a product with cached keys.
    Queries,
    /// The keys of that product.
    Keys,
    /// The probabilities of a product with cached values.
    Probs,
    /// The exponentials that probabilities are before they are divided by their sum, the largest being 1.
    Exps,
    /// The values of that product.
    Values,
    /// What a norm multiplies a row by: the inverse root of its mean square.
    Roots,
    /// A normalised vector before its weight.
    Normed,
    /// The frequencies of a rotation, by which positions are multiplied.
    Frequencies,
    /// The angles of a rotation.
    Angles,
    /// The sine and cosine of a rotation.
    Tables,
    /// The sigmoid within an activation.
    Sigmoid,
    /// The activation before it is multiplied by up.
    Activated,
    /// What a cache holds of its rows.
    Caches,
    /// The result as it is stored, whatever the default is.
    Results,
}

impl Value {
    pub const ALL: [Value; 16] = [
        Value::Inputs,
        Value::Weights,
        Value::Queries,
        Value::Keys,
        Value::Probs,
        Value::Exps,
        Value::Values,
        Value::Roots,
        Value::Normed,
        Value::Frequencies,
        Value::Angles,
        Value::Tables,
        Value::Sigmoid,
        Value::Activated,
        Value::Caches,
        Value::Results,
    ];

    /// The name used in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Value::Inputs => "inputs",
            Value::Weights => "weights",
            Value::Queries => "queries",
            Value::Keys => "keys",
            Value::Probs => "probs",
            Value::Exps => "exps",
            Value::Values => "values",
            Value::Roots => "roots",
            Value::Normed => "normed",
            Value::Frequencies => "frequencies",
            Value::Angles => "angles",
            Value::Tables => "tables",
            Value::Sigmoid => "sigmoid",
            Value::Activated => "activated",
            Value::Caches => "caches",
            Value::Results => "results",
        }
    }

    /// Whether a format of blocks makes sense for it.
    fn takes_blocks(self) -> bool {
        matches!(self, Value::Inputs | Value::Caches)
    }
}

impl From<Value> for &'static str {
    fn from(value: Value) -> &'static str {
        value.name()
    }
}

impl TryFrom<String> for Value {
    type Error = String;

    fn try_from(name: String) -> Result<Value, String> {
        let found = Value::ALL.into_iter().find(|value| value.name() == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = Value::ALL.iter().map(|value| value.name()).collect();
            format!("{name:?} is not a value that can be rounded; choose from {}", names.join(", "))
        })
    }
}

/// The steps in which a rounding is made: a prompt's products are often other kernels than a token's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Steps of several tokens.
    Prefill,
    /// Steps of one token.
    Decode,
}

impl Phase {
    /// The phase of a step.
    pub fn of(tokens: usize) -> Phase {
        if tokens > 1 { Phase::Prefill } else { Phase::Decode }
    }

    /// The name used in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }

    fn from_name(name: &str) -> Result<Phase, String> {
        let found = [Phase::Prefill, Phase::Decode].into_iter().find(|phase| phase.name() == name);
        found.ok_or_else(|| format!("{name:?} is not a kind of step; choose prefill or decode"))
    }
}

/// A rounding that an engine declares: `ffn_down.inputs=q8_0`, `inputs=tf32@prefill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Convention {
    pub value: Value,
    pub format: Format,
    /// The only stage whose operation rounds it; every one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The only kind of steps that round it; every one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
}

impl Convention {
    pub fn everywhere(value: Value, format: Format) -> Convention {
        Convention { value, format, stage: None, phase: None }
    }

    /// Whether a stage's operation makes it in a step of so many tokens.
    pub fn is_of(&self, stage: Option<Stage>, tokens: usize) -> bool {
        (self.stage.is_none() || self.stage == stage)
            && self.phase.is_none_or(|phase| phase == Phase::of(tokens))
    }

    /// Reads `inputs=q8_0`, `ffn_down.inputs=q8_0` or `inputs=tf32@prefill`.
    pub fn parse(text: &str) -> Result<Convention, String> {
        let (text, phase) = match text.split_once('@') {
            Some((text, phase)) => (text, Some(Phase::from_name(phase)?)),
            None => (text, None),
        };
        let (left, format) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} lacks a `=`; write it as in inputs=q8_0"))?;
        let (stage, value) = match left.rsplit_once('.') {
            Some((stage, value)) => (Some(Stage::try_from(stage.to_string())?), value),
            None => (None, left),
        };
        let convention = Convention {
            value: Value::try_from(value.to_string())?,
            format: Format::try_from(format.to_string())?,
            stage,
            phase,
        };
        convention.check().map(|()| convention)
    }

    /// Says why a format is none of a value.
    pub fn check(&self) -> Result<(), String> {
        let Convention { value, format, phase, .. } = *self;
        if phase.is_some() && matches!(value, Value::Caches | Value::Results) {
            return Err(format!("{} are the same in every step: leave out the @", value.name()));
        }
        let fits = match format {
            Format::Ggml => value == Value::Inputs,
            _ if value == Value::Results => DType::try_from(format).is_ok(),
            _ => format.is_of_numbers() || value.takes_blocks(),
        };
        if fits {
            Ok(())
        } else {
            Err(format!("{} cannot be rounded to {format}; choose another", value.name()))
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(stage) = self.stage {
            write!(f, "{}.", stage.name())?;
        }
        write!(f, "{}={}", self.value.name(), self.format)?;
        self.phase.map_or(Ok(()), |phase| write!(f, "@{}", phase.name()))
    }
}

impl Arithmetic {
    /// Our engine's arithmetic for a storage type: f32 accumulators; scores, probs and logits stay f32.
    pub fn engine(storage: DType) -> Arithmetic {
        let op = |storage| OpArithmetic { storage, accumulator: DType::F32 };
        let wide = [Stage::Scores, Stage::Probs, Stage::Logits];
        let stages = match storage {
            DType::F32 => BTreeMap::new(),
            _ => wide.into_iter().map(|stage| (stage, op(DType::F32))).collect(),
        };
        let (default, roundings) = (op(storage), Vec::new());
        Arithmetic { weights: storage, vectors: None, between: None, default, stages, roundings }
    }

    /// The same with further roundings.
    pub fn rounding(mut self, conventions: &[Convention]) -> Arithmetic {
        conventions.iter().for_each(|&convention| self.declare(convention));
        self
    }

    fn declare(&mut self, convention: Convention) {
        let Convention { value, format, stage, phase } = convention;
        match (value, DType::try_from(format)) {
            (Value::Results, Ok(storage)) => match stage {
                Some(stage) => {
                    let own = OpArithmetic { storage, ..self.of(stage) };
                    self.stages.insert(stage, own);
                }
                None => self.default.storage = storage,
            },
            (Value::Weights, Ok(weights)) if stage.is_none() && phase.is_none() => {
                self.weights = weights;
            }
            _ => self.roundings.push(convention),
        }
    }

    /// Those of our own engines, whose floors every reference's trace has.
    pub fn engines() -> [Arithmetic; 2] {
        [DType::F32, DType::F16].map(Arithmetic::engine)
    }

    /// The same where sums are declared in a format that no hardware sums in: units that multiply matrices of
    /// tf32 or bf16 round the inputs and the weights, and add in f32.
    pub fn as_hardware(mut self) -> Arithmetic {
        // In a file what is stored may be listed among the roundings.
        let listed = std::mem::take(&mut self.roundings);
        listed.into_iter().for_each(|convention| self.declare(convention));
        let rounds = |op: &mut OpArithmetic| {
            let format = match [op.accumulator, op.storage] {
                [DType::Tf32, _] | [_, DType::Tf32] => Format::Tf32,
                [DType::Bf16, _] => Format::Bf16,
                _ => return None,
            };
            op.accumulator = DType::F32;
            if op.storage == DType::Tf32 {
                op.storage = DType::F32;
            }
            Some(format)
        };
        let of = |format, stage| {
            let values = match stage {
                Some(Stage::Scores) => [Value::Queries, Value::Keys],
                Some(Stage::AttnOut) => [Value::Probs, Value::Values],
                _ => [Value::Inputs, Value::Weights],
            };
            values.map(|value| Convention { value, format, stage, phase: None })
        };
        let mut found = Vec::new();
        found.extend(rounds(&mut self.default).map(|format| of(format, None)));
        for (&stage, op) in &mut self.stages {
            found.extend(rounds(op).map(|format| of(format, Some(stage))));
        }
        self.roundings.splice(0..0, found.into_iter().flatten());
        self
    }

    /// The arithmetic of a stage.
    pub fn of(&self, stage: Stage) -> OpArithmetic {
        self.stages.get(&stage).copied().unwrap_or(self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roundings_are_read_as_they_are_written_and_odd_ones_refused() {
        let text = "inputs=q8_0,ffn_down.inputs=int8-rows@decode,probs=f16@prefill,caches=e4m3";
        let parsed: Vec<Convention> =
            text.split(',').map(|part| Convention::parse(part).unwrap()).collect();
        let arithmetic = Arithmetic::engine(DType::F32).rounding(&parsed);
        let written: Vec<String> = arithmetic.roundings.iter().map(ToString::to_string).collect();
        assert_eq!(written.join(","), text);
        let json = serde_json::to_string(&arithmetic).unwrap();
        assert_eq!(serde_json::from_str::<Arithmetic>(&json).unwrap(), arithmetic);
        for bad in [
            "inputs",
            "inputs=q9",
            "input=f16",
            "probs=q8_0",
            "caches=ggml",
            "a b.inputs=f16",
            "inputs=f16@verify",
            "inputs=f16@",
            "caches=f16@decode",
            "results=f16@prefill",
        ] {
            assert!(Convention::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sums_that_no_hardware_has_are_rounded_inputs() {
        let json = r#"{"weights": "f32", "default": {"storage": "f32", "accumulator": "tf32"},
            "stages": {"scores": {"storage": "f32", "accumulator": "bf16"}}}"#;
        let held = serde_json::from_str::<Arithmetic>(json).unwrap().as_hardware();
        let written: Vec<String> = held.roundings.iter().map(ToString::to_string).collect();
        assert_eq!(
            written.join(" "),
            "inputs=tf32 weights=tf32 scores.queries=bf16 scores.keys=bf16"
        );
        assert_eq!(held.default, Arithmetic::engine(DType::F32).default);
        let own = Arithmetic::engine(DType::F16);
        assert_eq!(own.clone().as_hardware(), own);
        let json = r#"{"weights": "f32", "default": {"storage": "f32", "accumulator": "f32"},
            "roundings": [{"value": "results", "format": "bf16", "stage": "layer_out"}]}"#;
        let listed = serde_json::from_str::<Arithmetic>(json).unwrap().as_hardware();
        assert_eq!(listed.of(Stage::LayerOut).storage, DType::Bf16);
        assert!(listed.roundings.is_empty());
    }

    #[test]
    fn an_arithmetic_without_roundings_is_written_as_ever() {
        let json = serde_json::to_string(&Arithmetic::engine(DType::F32)).unwrap();
        assert!(!json.contains("roundings"), "{json}");
    }
}
