//! A recorded run: a folder with one side's tensors, to be compared as a live side is.
//!
//! `docs/trace-format.md` describes the files for people who write their own writer.

mod array;
mod batch;
#[cfg(feature = "full")]
mod beside;
#[cfg(feature = "full")]
mod comparable;
mod error;
#[cfg(feature = "full")]
mod fits;
#[cfg(feature = "full")]
mod graph_files;
mod groups;
#[cfg(feature = "full")]
mod header;
#[cfg(feature = "full")]
pub mod import;
#[cfg(feature = "full")]
mod inspect;
mod layout;
#[cfg(feature = "full")]
pub mod lint;
#[cfg(feature = "full")]
mod loaded;
mod manifest;
#[cfg(feature = "full")]
mod old;
mod plan;
#[cfg(feature = "full")]
mod quantised;
#[cfg(feature = "full")]
mod ranks;
#[cfg(feature = "full")]
mod read;
#[cfg(feature = "full")]
pub mod recording;
mod removed;
#[cfg(feature = "full")]
mod row_words;
mod seal;
#[cfg(feature = "full")]
mod sequence;
mod shard;
mod step;
#[cfg(feature = "full")]
mod stitch;
mod weights;
mod write;

pub use array::{Array, Elements};
pub use batch::{Batch, BatchedSequence};
#[cfg(feature = "full")]
pub use beside::{OtherSequence, PaddingRow};
#[cfg(feature = "full")]
pub use comparable::{Common, Longer, Parting, comparable};
pub use error::{Kind, Limit, TraceError};
pub use groups::{Length, SiteGroup};
#[cfg(feature = "full")]
pub use inspect::Inspection;
pub use manifest::{
    CHECKSUM_FILE, FORMAT_VERSION, FileSeal, GraphFiles, MANIFEST_FILE, Manifest, ModelId,
    Producer, Settings, Side, Step, UNFINISHED_FILE, step_file,
};
pub use plan::{PLAN_FILE, Plan};
#[cfg(feature = "full")]
pub use quantised::caches_in_words;
#[cfg(feature = "full")]
pub use read::{TraceReader, feed};
pub use removed::Removed;
#[cfg(feature = "full")]
pub use row_words::rows_in_words;
#[cfg(feature = "full")]
pub use sequence::{NeighbourRow, Outside, OutsideRow};
pub use shard::{Shard, Split, rank_folder};
pub use weights::{WEIGHTS_FILE, WeightEntry, WeightsFile};
pub use write::TraceWriter;
