//! Many runs as one answer, for CI: models x prompts x storage x attention variants x devices.
//!
//! `config` reads the file that says what is to be checked, `matrix` makes the cases of it and splits
//! them over machines, `cases` runs them, `results` holds what came out, `kernel` finds the line of a
//! `.cu` file that it is about; `annotations`, `junit` and `summary` write it for others to read, and
//! `merge` joins the parts. `lock` is a baseline that is committed, `ratchet` compares accuracies with
//! it, `hold` makes a verdict of that, and `bless` a new baseline. `pinned` is a reference that is
//! committed, `pin` makes one of llama.cpp's runs, and `alone` runs a case against it.

mod alone;
mod blank;
mod bless;
mod cases;
mod config;
mod error;
mod hold;
mod kernel;
mod lines;
mod lock;
mod matrix;
mod merge;
mod pin;
mod pinned;
mod ratchet;

pub use bless::{Kind, Proposal, Review};
pub use cases::{Asked, Opened, run};
pub use config::{Config, ConfigError, Prompt};
pub use error::CheckError;
pub use kernel::Chosen;
pub use lock::{Level, Lock, LockError, Locked, LockedCase};
pub use matrix::{Case, Partition};
pub use merge::{MergeError, merge, read};
pub use pin::{Moved, moved, pin};
pub use pinned::{Pinned, PinnedError, PinnedModel, PinnedPrompt, PinnedSite};
pub use ratchet::Changes;
