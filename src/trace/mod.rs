//! A recorded run: a folder with one side's tensors, to be compared as a live side is.
//!
//! `docs/trace-format.md` describes the files for people who write their own writer.

mod comparable;
mod error;
mod header;
mod inspect;
mod layout;
mod manifest;
mod plan;
mod ranks;
mod read;
mod shard;
mod step;
mod stitch;
mod write;

pub use comparable::{Common, Longer, comparable};
pub use error::{Kind, Limit, TraceError};
pub use inspect::Inspection;
pub use manifest::{
    CHECKSUM_FILE, FORMAT_VERSION, MANIFEST_FILE, Manifest, ModelId, Producer, SHARD_VERSION,
    Settings, Shapes, Side, Step, UNFINISHED_FILE, step_file,
};
pub use plan::PLAN_FILE;
pub use ranks::rank_folder;
pub use read::{TraceReader, feed};
pub use shard::{Shard, Split};
pub use write::TraceWriter;
