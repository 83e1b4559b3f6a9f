//! The report of a comparison: as data, as JSON, and as text.

mod blame;
pub mod ci;
mod devices;
pub mod html;
mod of_run;
mod of_sequences;
mod of_traces;
mod parted;
mod schema;
mod summaries;
mod terminal;
mod weights;

pub use blame::{answer, guilt};
pub(crate) use blame::{grouped, named, whose};
use schema::formula;
pub use schema::{
    Compared, DevicesSummary, Headline, ModelSummary, Parted, REPORT_VERSION, Report, SequenceRow,
    SideSummary, SiteRow, StepRow,
};
pub(crate) use terminal::{BAD, DIM, GOOD, line};
pub use terminal::{headline, render};
