//! The named mistakes, a file for each family of operations.

pub mod attention;
pub mod cache;
pub mod elementwise;
pub mod fused;
pub mod likeness;
pub mod norm;
pub mod projection;
pub mod rope;
pub mod softmax;
pub mod split;
