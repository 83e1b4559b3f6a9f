//! Every hypothesis: which operations it may explain, and the function that tries it.

use crate::{
    diagnosis::{
        attention, cache, elementwise, likeness, norm, projection, rope,
        scene::{Scene, Visit},
    },
    replay::{self, ReplayError},
    site::Stage,
};

/// A family of explanations. A new one is a function here.
pub struct Hypothesis {
    pub applies: fn(Stage) -> bool,
    pub candidates: for<'s, 'a> fn(&Scene<'s, 'a>, Visit<'_, 'a>) -> Result<(), ReplayError>,
}

fn is_projection(stage: Stage) -> bool {
    replay::projection(stage).is_some()
}

fn is_norm(stage: Stage) -> bool {
    replay::norm_weight(stage).is_some()
}

fn is_cache(stage: Stage) -> bool {
    matches!(stage, Stage::KCache | Stage::VCache)
}

/// In the order of a forward pass; what applies to any operation comes last.
pub const HYPOTHESES: [Hypothesis; 20] = [
    Hypothesis { applies: |stage| stage == Stage::Embd, candidates: elementwise::embeddings },
    Hypothesis { applies: is_norm, candidates: norm::norms },
    Hypothesis { applies: is_norm, candidates: norm::other_input },
    Hypothesis { applies: is_projection, candidates: projection::weights_and_biases },
    Hypothesis { applies: is_projection, candidates: projection::other_input },
    Hypothesis {
        applies: |stage| matches!(stage, Stage::QRope | Stage::KRope),
        candidates: rope::rotations,
    },
    Hypothesis { applies: is_cache, candidates: cache::appends },
    Hypothesis { applies: is_cache, candidates: cache::other_layers_cache },
    Hypothesis { applies: |stage| stage == Stage::Scores, candidates: attention::scores },
    Hypothesis { applies: |stage| stage == Stage::Probs, candidates: attention::softmaxes },
    Hypothesis { applies: |stage| stage == Stage::AttnOut, candidates: attention::weighted_sums },
    Hypothesis {
        applies: |stage| matches!(stage, Stage::AttnResidual | Stage::LayerOut),
        candidates: elementwise::residuals,
    },
    Hypothesis { applies: |stage| stage == Stage::FfnAct, candidates: elementwise::swiglu },
    Hypothesis { applies: |_| true, candidates: likeness::overflows },
    Hypothesis { applies: |_| true, candidates: likeness::permutations },
    Hypothesis { applies: |_| true, candidates: likeness::constants },
    Hypothesis { applies: |_| true, candidates: likeness::multiples },
    Hypothesis { applies: |_| true, candidates: likeness::other_tensors },
    Hypothesis { applies: |_| true, candidates: likeness::offsets },
    Hypothesis { applies: |_| true, candidates: likeness::arithmetic },
];
