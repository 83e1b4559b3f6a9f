//! The report of a comparison: as data, as JSON, and as text.

mod blame;
mod schema;
mod terminal;

pub use blame::guilt;
pub use schema::{
    Compared, Headline, ModelSummary, REPORT_VERSION, Report, SideSummary, SiteRow, StepRow,
};
pub use terminal::{headline, render};
