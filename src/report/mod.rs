//! The report of a comparison: as data, as JSON, and as text.

mod blame;
pub mod ci;
mod devices;
pub mod html;
mod next;
mod of_run;
mod of_sequences;
mod of_traces;
mod parted;
mod partial;
mod schema;
mod summaries;
mod summary;
mod terminal;
mod weights;

pub use blame::{answer, guilt};
pub(crate) use blame::{grouped, named, whose};
pub use next::{Asked, Next, next};
pub use partial::{AskedSites, During, EndedBy, Partial};
use schema::formula;
pub use schema::{
    Compared, DevicesSummary, Headline, ModelSummary, Parted, REPORT_VERSION, Report, SequenceRow,
    SideSummary, SiteRow, StepRow,
};
pub use summary::{Guilty, Summary};
pub(crate) use terminal::{BAD, DIM, GOOD, forced, line};
pub use terminal::{View, headline, render};
