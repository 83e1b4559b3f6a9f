//! The report as one page: a file of its own that a browser opens without a network.
//!
//! `page` puts data into the page's frame, `run` makes them of a report, `cells` the map of layers and sites,
//! `pictures` the tensors, as many as there is room for, and `check` those of a check. `docs/page.md` says what
//! is on it.

mod cells;
mod check;
mod page;
mod pictures;
mod run;

pub use check::check_page;
pub use page::MOST_BYTES;
pub use run::{Extras, run_page};
