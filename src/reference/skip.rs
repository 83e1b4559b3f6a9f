//! Nodes of llama.cpp's graph that nobody needs: they are not computed, and the weights that they read stay on disk.

use llama_cpp_sys_2 as sys;

use super::node::{COMPUTE, Node};

/// Nodes that are left out of a decode.
#[derive(Default)]
pub struct Skipped(Vec<*mut sys::ggml_tensor>);

// SAFETY: the nodes belong to a context that moves between threads with what they are put back by.
unsafe impl Send for Skipped {}

impl Skipped {
    /// Leaves out a node that llama.cpp is about to compute.
    pub fn add(&mut self, node: Node) {
        // SAFETY: llama.cpp passes a live node, which nobody reads meanwhile.
        unsafe {
            if (*node.0).flags & COMPUTE != 0 {
                (*node.0).flags &= !COMPUTE;
                self.0.push(node.0);
            }
        }
    }

    /// Makes the nodes what they were, right after their decode: llama.cpp may use its graph again.
    pub fn put_back(&mut self) {
        for tensor in self.0.drain(..) {
            // SAFETY: the nodes live until the context's next decode.
            unsafe { (*tensor).flags |= COMPUTE };
        }
    }
}
