//! Each operation of a recorded side again, in f64, from that side's own inputs.
//!
//! A result further from its exact value than rounding can take it makes the operation guilty; a
//! result within its bound clears it, however far the tensor is from llama.cpp's: what went wrong
//! came in with the inputs. `docs/diagnosis.md` derives the bound.

mod accuracy;
mod attend;
mod expected;
mod forward;
mod graph_judge;
mod judge;
pub mod machine;
mod matrix;
mod operation;
pub mod ops;
mod others;
mod product;
mod products;
mod reading;
pub mod rules;

pub use accuracy::{Accuracy, accuracies};
pub use attend::{Reading, Roundings, Way, attend};
pub use expected::{Expected, LAMBDA, Operand, Rounding, Spread};
pub use forward::{Parts, Piece, Recording, Replay, ReplayError, Width, appended};
pub use graph_judge::{GraphVerdict, judge_graph};
pub use judge::{Judged, Worst, drift, judge, judge_all, wrong_elements};
pub use machine::{AsItIs, Edit, GraphRun, Machine, Memory, Observe, Observed, Root};
pub use matrix::{Matrix, round};
pub use operation::{Operation, name, norm_weight, projection};
pub use products::{Factor, Pair, Product};
pub use reading::Readings;
