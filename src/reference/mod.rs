//! llama.cpp as the reference: the same prompt, every tensor through its graph callback.

mod callback;
mod context;
mod import;
mod node;
mod noise;
mod routing;
mod session;
mod skip;
mod tamper;
mod threads;
mod vocabulary;
mod widen;

pub use callback::Changes;
pub use noise::{Amplitude, Noise, Place};
pub use routing::{Forced, Routing, is_choice};
pub use session::{Precision, Reference, ReferenceError, ReferenceOptions, Session};
pub use tamper::{StepShape, Tamper};
pub use vocabulary::Vocabulary;
