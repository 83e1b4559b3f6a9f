//! What both sides are to run.

/// A prompt to be continued by that many tokens.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    pub prompt: &'a [i32],
    pub decode: u32,
}

impl Task<'_> {
    /// Positions in the cache at the end.
    pub fn positions(&self) -> usize {
        self.prompt.len() + self.decode as usize
    }
}

/// The position of a step's first token after a prompt of that length.
pub fn first_position(prompt: usize, step: u32) -> usize {
    match step {
        0 => 0,
        step => prompt + step as usize - 1,
    }
}
