//! llama.cpp as the reference: the same prompt, every tensor through its graph callback.

mod callback;
mod context;
mod import;
mod node;
mod noise;
mod session;
mod threads;
mod vocabulary;
mod widen;

pub use import::{Imported, SequenceInputs};
pub use noise::{Amplitude, Noise};
pub use session::{Precision, Reference, ReferenceError, ReferenceOptions, Session};
pub use vocabulary::Vocabulary;
