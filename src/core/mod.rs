//! What everything speaks of: values, number formats, errors' exit codes, files and memory.

#[cfg(feature = "full")]
pub mod activity;
pub mod arithmetic;
#[cfg(feature = "full")]
pub mod attending;
pub mod cache;
#[cfg(feature = "full")]
pub mod cause_key;
pub mod exit;
pub mod floor;
pub mod format;
pub mod loaded;
#[cfg(feature = "full")]
pub mod places;
#[cfg(feature = "full")]
pub mod pool;
#[cfg(feature = "full")]
pub mod random;
#[cfg(feature = "full")]
pub mod rounded;
pub mod sink;
#[cfg(feature = "full")]
pub mod snapshot;
pub mod task;
pub mod tensor;
