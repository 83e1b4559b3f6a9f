//! Every kernel on the checked host device, over odd shapes and several thread orders.
//!
//! `subjects` says what is run, `cases`, `attention` and `product` launch it on made-up data, `reference`
//! says in f64 what must come out, `run` brings the findings together. `contract` does
//! so for a kernel with a contract, and `sanitize` for all of them under the compiler's sanitizers.

mod attention;
mod cases;
mod contract;
mod error;
mod product;
mod reference;
mod run;
mod sanitize;
mod subjects;

pub use error::KernelCheckError;
pub use run::{Finding, Kind, Outcome, Pass, Target, check, check_target, thread_orders};
pub use sanitize::{announcement, sanitize, text};
pub use subjects::{Subject, subjects};
