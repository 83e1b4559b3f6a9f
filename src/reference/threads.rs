//! llama.cpp's threads of one session.

use llama_cpp_sys_2 as sys;

/// How long a thread waits busily for more work before it sleeps: some milliseconds. The least but none:
/// while nodes are captured the comparison can use the cores.
const POLL: u32 = 1;

/// Threads that stay for the time of a session. Without them llama.cpp starts its threads anew for the
/// nodes between every two captures.
pub struct Threads(*mut sys::ggml_threadpool);

// SAFETY: the pool is used by the session's context alone, and tied to no thread.
unsafe impl Send for Threads {}

impl Threads {
    /// Starts them; `None` where there is no memory for that.
    pub fn new(n: i32) -> Option<Threads> {
        // SAFETY: the parameters are plain data, which the pool copies.
        let pool = unsafe {
            let mut params = sys::ggml_threadpool_params_default(n);
            params.poll = POLL;
            sys::ggml_threadpool_new(&raw mut params)
        };
        (!pool.is_null()).then_some(Threads(pool))
    }

    /// The pool, to be used by one backend at a time.
    pub fn pool(&self) -> *mut sys::ggml_threadpool {
        self.0
    }

    /// Gives them to a context.
    ///
    /// # Safety
    /// The context is live, and freed before these threads.
    pub unsafe fn attach_to(&self, context: *mut sys::llama_context) {
        // SAFETY: the pool lives as long as the context, as the caller promises.
        unsafe { sys::llama_attach_threadpool(context, self.0, self.0) }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { sys::ggml_threadpool_free(self.0) }
    }
}
