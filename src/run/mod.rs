//! Runs: the engine beside the reference, the engine on two devices, two traces, and what is measured before.

pub mod acceptance;
pub mod baseline;
mod beside;
mod cross_device;
mod division;
mod error;
mod experts;
mod hooks;
pub mod lengths;
mod measure_floor;
mod noisy;
mod open;
mod pairing;
mod seen;
mod two_sides;
mod two_traces;

pub use beside::{ComparedSite, show_beside, show_traces};
pub use cross_device::CrossCheck;
pub use division::Division;
pub use error::RunError;
pub use open::{PLANNED_POSITIONS, open, open_for, planned};
pub use pairing::Pairing;
pub use seen::SeenKeys;
pub use two_sides::{Finished, Kept, Run, own_weights, run_engine};
pub use two_traces::judge_traces;
