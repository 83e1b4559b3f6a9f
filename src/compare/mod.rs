//! Comparison of two sides, a site at a time.

#[cfg(feature = "full")]
mod align;
#[cfg(feature = "full")]
mod digest;
#[cfg(feature = "full")]
mod filter;
mod floor;
#[cfg(feature = "full")]
pub(crate) mod lanes;
#[cfg(feature = "full")]
mod pattern;
#[cfg(feature = "full")]
mod queries;
#[cfg(feature = "full")]
pub(crate) mod rows;
#[cfg(feature = "full")]
mod stats;

#[cfg(feature = "full")]
pub use align::{Aligner, ChannelSink, Side, channel};
#[cfg(feature = "full")]
pub use digest::{Digest, SAMPLES, SUMS};
#[cfg(feature = "full")]
pub use filter::{FilterError, SiteFilter};
pub use floor::{DEFAULT_FACTOR, DeclaredFloor, Floor, SiteFloor};
#[cfg(feature = "full")]
pub use pattern::{Pattern, axis_phrase};
#[cfg(feature = "full")]
pub use queries::{Queries, QueriesError, RowTokens};
#[cfg(feature = "full")]
pub use stats::{Difference, Element, NonFinite, compare};
