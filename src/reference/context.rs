//! A llama.cpp context, owned.

use std::{ffi::c_void, ptr::NonNull};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::threads::Threads;
use crate::reference::Precision;

/// The callbacks of a context. Their user data points to a slot with a pointer to what they work on, or
/// null.
pub struct Hooks {
    pub on_node: unsafe extern "C" fn(*mut sys::ggml_tensor, bool, *mut c_void) -> bool,
    pub is_over: unsafe extern "C" fn(*mut c_void) -> bool,
}

/// What a context is made for.
pub struct ContextSpec {
    /// Positions of the sequence, in all.
    pub positions: usize,
    /// Tokens of the largest step.
    pub batch: usize,
    pub threads: i32,
    pub precision: Precision,
}

/// One llama.cpp context: a KV cache that grows step by step.
pub struct Context {
    context: NonNull<sys::llama_context>,
    slot: NonNull<*mut c_void>,
    /// Positions that its caches have room for.
    pub positions: usize,
    /// The context's own; dropped after it.
    _threads: Option<Threads>,
}

// SAFETY: a context is used by one thread at a time, and llama.cpp ties it to none.
unsafe impl Send for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context and the slot are ours, and no decode runs.
        unsafe {
            sys::llama_free(self.context.as_ptr());
            drop(Box::from_raw(self.slot.as_ptr()));
        }
    }
}

impl Context {
    /// A context on a model, which must outlive it; `None` where llama.cpp makes none.
    pub fn new(model: &LlamaModel, spec: &ContextSpec, hooks: &Hooks) -> Option<Context> {
        let positions = (spec.positions + 1).next_multiple_of(256);
        let slot = NonNull::from(Box::leak(Box::new(std::ptr::null_mut::<c_void>())));
        // SAFETY: returns plain data.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = positions as u32;
        params.n_batch = spec.batch as u32;
        params.n_ubatch = spec.batch as u32;
        params.n_threads = spec.threads;
        params.n_threads_batch = spec.threads;
        params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        // A slot of a cache is then a position, in windows too.
        params.swa_full = true;
        if spec.precision == Precision::F32 {
            params.type_k = sys::GGML_TYPE_F32;
            params.type_v = sys::GGML_TYPE_F32;
        }
        // A cache lies where its layer does: here, or on a server.
        params.offload_kqv = true;
        params.op_offload = false;
        params.cb_eval = Some(hooks.on_node);
        params.cb_eval_user_data = slot.as_ptr().cast();
        params.abort_callback = Some(hooks.is_over);
        params.abort_callback_data = slot.as_ptr().cast();
        // SAFETY: LlamaModel is a transparent wrapper around a non-null llama_model pointer, and the
        // caller keeps it for as long as the context lives.
        let context = unsafe {
            let model = *std::ptr::from_ref(model).cast::<*mut sys::llama_model>();
            sys::llama_init_from_model(model, params)
        };
        let Some(context) = NonNull::new(context) else {
            // SAFETY: the slot was leaked above and nobody else has it.
            unsafe { drop(Box::from_raw(slot.as_ptr())) };
            return None;
        };
        let threads = Threads::new(spec.threads);
        if let Some(threads) = &threads {
            // SAFETY: the context is freed before its threads.
            unsafe { threads.attach_to(context.as_ptr()) };
        }
        Some(Context { context, slot, positions, _threads: threads })
    }

    /// Forgets every token.
    pub fn clear(&mut self) {
        // SAFETY: the context is live; its memory belongs to it.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context.as_ptr()), true) }
    }

    /// Decodes tokens at positions from `first` on, with callbacks that work on `data`; llama.cpp's code.
    pub fn decode_with<T>(&mut self, data: &mut T, tokens: &[i32], first: usize) -> i32 {
        // SAFETY: the slot holds `data` only for the time of the decode; nothing else touches it
        // meanwhile.
        unsafe {
            *self.slot.as_ptr() = std::ptr::from_mut(data).cast();
            let code = decode(self.context.as_ptr(), tokens, first);
            *self.slot.as_ptr() = std::ptr::null_mut();
            code
        }
    }

    /// The last token's logits after a decode.
    pub fn logits(&self, n_vocab: usize) -> Option<&[f32]> {
        // SAFETY: the last decode asked for the logits of every token; llama.cpp owns n_vocab floats
        // until the next decode.
        unsafe {
            let first = sys::llama_get_logits_ith(self.context.as_ptr(), -1);
            (!first.is_null()).then(|| std::slice::from_raw_parts(first, n_vocab))
        }
    }
}

/// Runs llama_decode over tokens at positions from `first` on, asking for logits of all of them.
///
/// # Safety
/// The context is live and used by no other thread.
unsafe fn decode(context: *mut sys::llama_context, tokens: &[i32], first: usize) -> i32 {
    let n = tokens.len();
    // SAFETY: the batch has room for `n` tokens of one sequence; every array is written below `n`.
    unsafe {
        let mut batch = sys::llama_batch_init(n as i32, 0, 1);
        batch.n_tokens = n as i32;
        for (i, &token) in tokens.iter().enumerate() {
            *batch.token.add(i) = token;
            *batch.pos.add(i) = (first + i) as i32;
            *batch.n_seq_id.add(i) = 1;
            **batch.seq_id.add(i) = 0;
            *batch.logits.add(i) = 1;
        }
        let code = sys::llama_decode(context, batch);
        sys::llama_batch_free(batch);
        code
    }
}
