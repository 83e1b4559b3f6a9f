//! Comparison of two sides, a site at a time.

mod align;
mod digest;
mod filter;
mod floor;
mod pattern;
mod queries;
mod stats;

pub use align::{Aligner, ChannelSink, Side, channel};
pub use digest::{Digest, SAMPLES, SUMS};
pub use filter::{FilterError, SiteFilter};
pub use floor::{DEFAULT_FACTOR, DeclaredFloor, Floor, SiteFloor};
pub use pattern::{Pattern, axis_phrase};
pub use queries::{Queries, QueriesError, RowTokens};
pub use stats::{Difference, Element, NonFinite, compare};
