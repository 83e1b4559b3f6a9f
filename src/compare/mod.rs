//! Comparison of two sides, a site at a time.

mod align;
mod digest;
mod filter;
pub(crate) mod lanes;
mod layers;
mod pattern;
mod picture;
mod queries;
pub(crate) mod rows;
mod stats;
pub mod verdict;

pub use align::{Aligner, ChannelSink, Side, channel};
pub use digest::{Digest, SAMPLES, SUMS};
pub use filter::{FilterError, SiteFilter};
pub use layers::Layers;
pub use pattern::{Pattern, axis_phrase};
pub use picture::{Grid, Picture, Pixel};
pub use queries::{Queries, QueriesError, RowTokens};
pub use stats::{Difference, Element, NonFinite, compare, in_floors};
