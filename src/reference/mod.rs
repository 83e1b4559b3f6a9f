//! llama.cpp as the reference: the same prompt, every tensor through its graph callback.

mod callback;
mod context;
mod import;
mod node;
mod noise;
mod routing;
mod rpc;
mod session;
mod skip;
mod tamper;
mod threads;
mod vocabulary;
mod widen;

pub use callback::Changes;
pub use noise::{Amplitude, Noise, Place};
pub use routing::{Forced, Routing, is_choice};
pub use rpc::{DEFAULT_PORT, Server, ServerError, listed, serve};
pub use session::{Precision, Reference, ReferenceError, ReferenceOptions, Session};
pub use tamper::{StepShape, Tamper};
pub use vocabulary::Vocabulary;
