//! Weights as an engine holds them: right forms accuse nobody, and each mistake is named.

// Matrices of experts.
mod experts;
// The forms and mistakes of single weights.
mod forms;
// Planted faults of our own engine's loader.
mod planted;
