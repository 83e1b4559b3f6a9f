//! The kinds of causes: what a guilty operation can be guilty of, and what a planted fault must be blamed
//! for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::graph::site::Name;

/// Makes the enum, the list of its variants and their names of one table.
macro_rules! cause_keys {
    ($($key:ident = $name:literal,)*) => {
        /// The kind of a cause, as in `docs/diagnosis.md`; serialised by its name.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize
        )]
        #[serde(into = "&'static str", try_from = "String")]
        pub enum CauseKey {
            $($key,)*
            /// One that this version does not know: in a report that another one wrote.
            Foreign(Name),
        }

        impl CauseKey {
            /// Every key of this version.
            pub const ALL: &[CauseKey] = &[$(CauseKey::$key,)*];

            /// Its name; empty where the cause is unknown.
            pub fn name(self) -> &'static str {
                match self {
                    $(CauseKey::$key => $name,)*
                    CauseKey::Foreign(name) => name.as_str(),
                }
            }
        }
    };
}

cause_keys! {
    Unknown = "",
    EmbeddingRow = "embedding-row",
    NormMissing = "norm-missing",
    NormWeightMissing = "norm-weight-missing",
    NormWeightPlusOne = "norm-weight-plus-one",
    NormWeightZero = "norm-weight-zero",
    NormWeightOfOther = "norm-weight-of-other",
    Eps = "eps",
    MeanSubtracted = "mean-subtracted",
    NotAveraged = "not-averaged",
    RootMissing = "root-missing",
    NotSquared = "not-squared",
    PartialSum = "partial-sum",
    InputOfOther = "input-of-other",
    BiasMissing = "bias-missing",
    BiasBroadcast = "bias-broadcast",
    BiasTwice = "bias-twice",
    BiasNegated = "bias-negated",
    BiasOfOther = "bias-of-other",
    BiasOfOtherLayer = "bias-of-other-layer",
    WeightZero = "weight-zero",
    WeightTransposed = "weight-transposed",
    WeightLeadingDimension = "weight-leading-dimension",
    WeightOfOther = "weight-of-other",
    WeightOfOtherLayer = "weight-of-other-layer",
    WeightDecoded = "weight-decoded",
    TiedOutput = "tied-output",
    InnerTruncated = "inner-truncated",
    RowsPermuted = "rows-permuted",
    OutputsTruncated = "outputs-truncated",
    RankSplit = "rank-split",
    RopeMissing = "rope-missing",
    RopePairs = "rope-pairs",
    RopeTheta = "rope-theta",
    RopePosition = "rope-position",
    RopeDirection = "rope-direction",
    RopePartial = "rope-partial",
    RopeFactors = "rope-factors",
    RopePrecision = "rope-precision",
    CacheUnwritten = "cache-unwritten",
    CacheLate = "cache-late",
    CacheStale = "cache-stale",
    CacheSlot = "cache-slot",
    CacheHead = "cache-head",
    CacheStride = "cache-stride",
    CacheLayer = "cache-layer",
    CacheSource = "cache-source",
    CacheQuantised = "cache-quantised",
    CacheBeforeRope = "cache-before-rope",
    ScoreScale = "score-scale",
    HeadMap = "head-map",
    QuerySource = "query-source",
    ValuesSource = "values-source",
    CacheTransposed = "cache-transposed",
    DimsReversed = "dims-reversed",
    MaskMissing = "mask-missing",
    MaskOffByOne = "mask-off-by-one",
    Window = "window",
    KeysWeighed = "keys-weighed",
    SoftmaxPartialSum = "softmax-partial-sum",
    SoftmaxPadding = "softmax-padding",
    SoftmaxUnnormalised = "softmax-unnormalised",
    SoftmaxTemperature = "softmax-temperature",
    SoftmaxAxis = "softmax-axis",
    SoftmaxOverflow = "softmax-overflow",
    ValuesTruncated = "values-truncated",
    QueryInRegisters = "query-in-registers",
    KeyTwice = "key-twice",
    ResidualMissing = "residual-missing",
    ResidualTwice = "residual-twice",
    ResidualSign = "residual-sign",
    ResidualSource = "residual-source",
    GateUpSwapped = "gate-up-swapped",
    Activation = "activation",
    UpMissing = "up-missing",
    GateMissing = "gate-missing",
    GateTwice = "gate-twice",
    Overflow = "overflow",
    HeadsPermuted = "heads-permuted",
    NormWeightMinusOne = "norm-weight-minus-one",
    NormWeightTwice = "norm-weight-twice",
    NormGroups = "norm-groups",
    WeightFunction = "weight-function",
    RopeScaling = "rope-scaling",
    RopeMagnitude = "rope-magnitude",
    RopeSections = "rope-sections",
    SoftCap = "soft-cap",
    Sinks = "sinks",
    Alibi = "alibi",
    Clamp = "clamp",
    Factor = "factor",
    FactorMissing = "factor-missing",
    TermMissing = "term-missing",
    TermSource = "term-source",
    OperationOther = "operation-other",
    NotDivided = "not-normalised",
    ExpertIds = "expert-ids",
    ExpertRank = "expert-rank",
    ExpertsSwapped = "experts-swapped",
    ExpertChoice = "expert-choice",
    RouterFunction = "gating-function",
    RouterSource = "router-source",
    ExpertNorm = "expert-norm",
    PartsSwapped = "parts-swapped",
    PartsLayout = "parts-layout",
    StateZero = "state-zero",
    StateStale = "state-stale",
    StateTransposed = "state-transposed",
    StateLayer = "state-layer",
    KernelReversed = "kernel-reversed",
    StateShifted = "state-shifted",
    ArgumentsSwapped = "arguments-swapped",
    ArgumentMissing = "argument-missing",
    NotANumber = "not-a-number",
    Zero = "zero",
    Constant = "constant",
    Scaled = "scaled",
    OtherTensor = "other-tensor",
    TokenBefore = "token-before",
    TokenAfter = "token-after",
    RowsEqual = "rows-equal",
    RowOfOther = "row-of-other",
    Reordered = "reordered",
    PreviousStep = "previous-step",
    Offset = "offset",
    InputsRounded = "inputs-rounded",
    StoredCoarser = "stored-coarser",
    F16Accumulation = "f16-accumulation",
}

impl CauseKey {
    /// Whether results that are no numbers are what it is about. Any other cause is proven by numbers alone: of
    /// NaN everything gives NaN.
    pub fn gives_none(self) -> bool {
        matches!(
            self,
            CauseKey::Overflow
                | CauseKey::SoftmaxOverflow
                | CauseKey::NotANumber
                | CauseKey::InputsRounded
        )
    }
}

impl From<CauseKey> for &'static str {
    fn from(key: CauseKey) -> &'static str {
        key.name()
    }
}

impl TryFrom<String> for CauseKey {
    type Error = String;

    fn try_from(name: String) -> Result<CauseKey, String> {
        let known = CauseKey::ALL.iter().copied().find(|key| key.name() == name);
        let foreign = || Name::new(&name).map(CauseKey::Foreign);
        known.or_else(foreign).ok_or_else(|| format!("{name:?} is not a cause key"))
    }
}

impl fmt::Display for CauseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::CauseKey;

    #[test]
    fn every_key_is_documented() {
        let document = include_str!("../../docs/diagnosis.md");
        for key in CauseKey::ALL.iter().filter(|&&key| key != CauseKey::Unknown) {
            assert!(document.contains(&format!("`{key}`")), "{key}");
        }
    }

    #[test]
    fn every_key_and_one_of_another_version_is_read_as_it_was_written() {
        let foreign = CauseKey::try_from("transposed".to_string()).unwrap();
        for key in CauseKey::ALL.iter().copied().chain([foreign]) {
            let json = serde_json::to_string(&key).unwrap();
            assert_eq!(json, format!("\"{key}\""));
            assert_eq!(serde_json::from_str::<CauseKey>(&json).unwrap(), key);
        }
        assert_ne!(foreign, CauseKey::try_from("turned".to_string()).unwrap());
        assert!(serde_json::from_str::<CauseKey>("\"no key\"").is_err());
    }
}
