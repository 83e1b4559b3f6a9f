//! What looks wrong with a recording itself: buffers never written, written twice or read too late,
//! sites under another's name, other tokens. A bug of the engine can look the same, so these are
//! notes beside the verdict; only a foreign byte order, which no engine's bug makes, is an error.

mod alone;
mod beside;
mod error;
mod notes;
mod ranks;
mod rows;

pub use alone::alone;
pub use beside::beside;
pub use error::LintError;
pub use ranks::ranks;
pub use rows::embedding;
