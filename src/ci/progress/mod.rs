//! What a change of the engine fixed: two reports compared cause by cause.
//!
//! A correct fix can leave the text, and the sites that differ, as bad as before, where another bug
//! follows. The causes tell the two apart: every operation is judged by its own inputs.

mod changes;
mod saved;
mod text;

pub use changes::{Change, Kind, Progress};
pub use saved::{Saved, SavedError};
