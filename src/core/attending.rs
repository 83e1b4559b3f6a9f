//! How a side's attention is fed, as part of its declared arithmetic.

use serde::Deserialize;

/// How a side's attention is fed; by default from the cache alone, all tokens of a step at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attending {
    pub calls: Calls,
    pub current: Current,
}

/// How often the kernel is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Calls {
    /// Once a step, for all of its tokens.
    #[default]
    Step,
    /// Once a token: a prompt is a loop of calls.
    Token,
}

/// Where a query finds the key and the value of its own call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Current {
    #[default]
    Cache,
    /// In the kernel's arguments k_current and v_current.
    Argument,
}
