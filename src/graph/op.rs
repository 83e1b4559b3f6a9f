//! The operations of a graph, by ggml's own names.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::site::Name;

macro_rules! ops {
    ($($name:ident $text:literal,)*) => {
        /// What a node computes. Its name is the one that `ggml_op_desc` gives.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum Op {
            $($name,)*
            /// An operation that this program has no rule for.
            Other(Name),
        }

        impl Op {
            /// The name that ggml gives it, such as `MUL_MAT`.
            pub fn name(&self) -> &str {
                match self {
                    $(Op::$name => $text,)*
                    Op::Other(name) => name.as_str(),
                }
            }
        }

        impl From<String> for Op {
            fn from(name: String) -> Op {
                match name.as_str() {
                    $($text => Op::$name,)*
                    _ => {
                        let unknown = || Name::new("UNKNOWN").expect("made of letters");
                        Op::Other(Name::new(&name).unwrap_or_else(unknown))
                    }
                }
            }
        }
    };
}

ops! {
    // No operation: a weight, an input, a state.
    Leaf "NONE",
    // Layout
    View "VIEW",
    Reshape "RESHAPE",
    Permute "PERMUTE",
    Transpose "TRANSPOSE",
    Cont "CONT",
    Dup "DUP",
    Cpy "CPY",
    // Rows and parts
    GetRows "GET_ROWS",
    SetRows "SET_ROWS",
    Set "SET",
    Concat "CONCAT",
    Repeat "REPEAT",
    Pad "PAD",
    Roll "ROLL",
    Tri "TRI",
    Diag "DIAG",
    Fill "FILL",
    Arange "ARANGE",
    // One rounding
    Add "ADD",
    AddId "ADD_ID",
    Add1 "ADD1",
    Sub "SUB",
    Mul "MUL",
    Div "DIV",
    Scale "SCALE",
    Sqr "SQR",
    Sqrt "SQRT",
    Clamp "CLAMP",
    Abs "ABS",
    Sgn "SGN",
    Neg "NEG",
    Step "STEP",
    Relu "RELU",
    Floor "FLOOR",
    Ceil "CEIL",
    Round "ROUND",
    Trunc "TRUNC",
    // Functions
    Exp "EXP",
    Expm1 "EXPM1",
    Log "LOG",
    Sin "SIN",
    Cos "COS",
    Tanh "TANH",
    Elu "ELU",
    Sigmoid "SIGMOID",
    Silu "SILU",
    Gelu "GELU",
    GeluQuick "GELU_QUICK",
    GeluErf "GELU_ERF",
    HardSwish "HARDSWISH",
    HardSigmoid "HARDSIGMOID",
    Softplus "SOFTPLUS",
    Xielu "XIELU",
    LeakyRelu "LEAKY_RELU",
    // Gated functions
    Reglu "REGLU",
    Geglu "GEGLU",
    Swiglu "SWIGLU",
    SwigluOai "SWIGLU_OAI",
    SwigluClamp "SWIGLU_CLAMP",
    GegluErf "GEGLU_ERF",
    GegluQuick "GEGLU_QUICK",
    // Sums
    MulMat "MUL_MAT",
    MulMatId "MUL_MAT_ID",
    OutProd "OUT_PROD",
    Sum "SUM",
    SumRows "SUM_ROWS",
    CumSum "CUMSUM",
    Mean "MEAN",
    Norm "NORM",
    RmsNorm "RMS_NORM",
    GroupNorm "GROUP_NORM",
    L2Norm "L2_NORM",
    SoftMax "SOFT_MAX",
    Rope "ROPE",
    // Choices
    ArgSort "ARGSORT",
    TopK "TOP_K",
    ArgMax "ARGMAX",
    // Recurrences
    SsmConv "SSM_CONV",
    SsmScan "SSM_SCAN",
    GatedDeltaNet "GATED_DELTA_NET",
    GatedLinearAttention "GATED_LINEAR_ATTN",
    RwkvWkv6 "RWKV_WKV6",
    RwkvWkv7 "RWKV_WKV7",
    SolveTri "SOLVE_TRI",
    // One family's own
    LightningIndexer "LIGHTNING_INDEXER",
    HyperMix "DSV4_HC_COMB",
    HyperRead "DSV4_HC_PRE",
    HyperWrite "DSV4_HC_POST",
}

impl Op {
    /// Whether it only arranges values: its result is its source through an index map.
    pub fn is_layout(&self) -> bool {
        self.is_window() || matches!(self, Op::Cont | Op::Dup | Op::Cpy)
    }

    /// Whether it has no memory of its own: the values of its source, seen through other strides.
    pub fn is_window(&self) -> bool {
        matches!(self, Op::View | Op::Reshape | Op::Permute | Op::Transpose)
    }

    /// Whether it multiplies by a matrix.
    pub fn is_product(&self) -> bool {
        matches!(self, Op::MulMat | Op::MulMatId | Op::OutProd)
    }

    /// Whether it is a function of two halves, or of two tensors: a gate and what it gates.
    pub fn is_gated(&self) -> bool {
        use Op::*;
        matches!(self, Reglu | Geglu | Swiglu | SwigluOai | SwigluClamp | GegluErf | GegluQuick)
    }

    /// Whether it is an activation function of one tensor.
    pub fn is_activation(&self) -> bool {
        use Op::*;
        matches!(
            self,
            Relu | Silu | Gelu | GeluQuick | GeluErf | Xielu | LeakyRelu | HardSwish | Elu
        )
    }

    /// Whether its result has several parts, one after another: outputs and states.
    pub fn is_packed(&self) -> bool {
        use Op::*;
        matches!(self, SsmScan | GatedDeltaNet | GatedLinearAttention | RwkvWkv6 | RwkvWkv7)
    }

    /// Whether its result is a choice: ids, which no rounding moves a little.
    pub fn is_choice(&self) -> bool {
        matches!(self, Op::ArgSort | Op::TopK | Op::ArgMax)
    }

    /// Whether it normalises groups of elements.
    pub fn is_norm(&self) -> bool {
        matches!(self, Op::Norm | Op::RmsNorm | Op::GroupNorm | Op::L2Norm)
    }
}

impl From<Op> for String {
    fn from(op: Op) -> String {
        op.name().to_string()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
