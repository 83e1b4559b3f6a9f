//! Every kernel on the checked host device, over odd shapes and several thread orders.
//!
//! `subjects` says what is run, `cases`, `attention` and `product` launch it on made-up data, `reference`
//! says in f64 what must come out, `run` brings the findings together.

mod attention;
mod cases;
mod product;
mod reference;
mod run;
mod subjects;

pub use run::{Finding, Kind, Outcome, check, thread_orders};
pub use subjects::{Subject, subjects};
