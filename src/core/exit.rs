//! Exit codes.

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// Everything that was asked for was compared and is within the floor.
    Equal = 0,
    Diverged = 1,
    /// Usage or bad input.
    BadInput = 2,
    /// The sides cannot be compared.
    Refused = 3,
    /// Nothing, or not all that was asked for, was measured.
    NotMeasured = 4,
    /// The device or the engine failed.
    Device = 5,
    Internal = 70,
    /// Ctrl-C ended the run; what it reports is partial.
    Interrupted = 130,
    /// SIGTERM did.
    Terminated = 143,
}

impl Exit {
    /// Of a run that a signal has ended.
    pub fn of_signal(signal: i32) -> Exit {
        // The same number on every Unix.
        const SIGINT: i32 = 2;
        if signal == SIGINT { Exit::Interrupted } else { Exit::Terminated }
    }
}
