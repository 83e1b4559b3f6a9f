//! Each operation of a recorded side again, in f64, from that side's own inputs.
//!
//! A result further from its exact value than rounding can take it makes the operation guilty; a
//! result within its bound clears it, however far the tensor is from llama.cpp's: what went wrong
//! came in with the inputs. `docs/diagnosis.md` derives the bound.

mod accuracy;
mod declared;
mod expected;
mod judge;
pub mod machine;
mod matrix;
mod operation;
mod others;
mod product;
mod products;
mod random_sums;
mod recording;
pub mod rules;

pub use accuracy::{Accuracy, accuracies};
pub use declared::{Declared, rows as rounded_rows};
pub use expected::{Expected, LAMBDA, Operand, Rounding, Spread, SumRounding, Terms};
pub use judge::{
    Judged, Look, ReplayEnd, RunVerdict, Worst, drift, judge, judge_found, part_count,
    wrong_elements,
};
pub use machine::{
    AsItIs, Cleared, Edit, Found, GraphRun, Machine, Memory, Observe, Observed, Probe, Root,
    again_in_all, again_in_last, writes_into,
};
pub use matrix::{Matrix, round};
pub use operation::{Operation, name};
pub use products::{Factor, Multiplied, Pair, Product};
pub use random_sums::{BLOCK as RANDOM_SUM, RandomSums, Replay};
pub use recording::{Piece, Recording, ReplayError, go_on};
