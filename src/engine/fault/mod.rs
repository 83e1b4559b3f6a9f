//! Seeded faults: bugs planted on purpose, each with the place where a comparison must blame it.
//!
//! There are five ways into the engine, see [`Plant`]; each is asked for in one place of it.

mod load;
mod need;
mod plant;
mod table;

pub use load::Load;
pub use need::{Need, Subject};
pub use plant::{Faults, Parameter, Plant, Shift, Wiring};
pub use table::{FAULTS, Fault, find};
