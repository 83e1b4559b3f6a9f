//! Threads that widen weights, for sessions that run the same steps at the same time: each block is widened once for
//! all of them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::block::{Task, Worker};

/// The threads, and what the sessions want of them. In a product a session waits until all have come to it.
pub struct Together {
    pool: rayon::ThreadPool,
    /// One for each thread of the pool.
    workers: Vec<Mutex<Worker>>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Those that have not ended.
    sessions: usize,
    /// Those that wait in a product, and what they want.
    waiting: usize,
    tasks: Vec<Task>,
    /// Products that were computed, and how the last ended.
    products: u64,
    outcome: Result<(), String>,
}

impl Together {
    /// Threads for sessions; `None` where there is no memory for that.
    pub fn new(sessions: usize, threads: usize) -> Option<Together> {
        let workers = (0..threads).map(|_| Worker::new().map(Mutex::new)).collect::<Option<_>>()?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok()?;
        let (waiting, tasks, products, outcome) = (0, Vec::new(), 0, Ok(()));
        let state = Mutex::new(State { sessions, waiting, tasks, products, outcome });
        Some(Together { pool, workers, state, changed: Condvar::new() })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.workers.len()
    }

    /// Computes a product of a session, beside those of the others with the same weight.
    ///
    /// # Errors
    /// In words, where ggml fails.
    pub fn product(&self, tasks: Vec<Task>) -> Result<(), String> {
        let mut state = self.state();
        state.tasks.extend(tasks);
        state.waiting += 1;
        if state.waiting == state.sessions {
            return self.compute(state);
        }
        let own = state.products;
        let state = self.changed.wait_while(state, |state| state.products == own);
        state.unwrap_or_else(PoisonError::into_inner).outcome.clone()
    }

    /// A session has ended; nobody waits for it any more.
    pub fn leave(&self) {
        let mut state = self.state();
        state.sessions -= 1;
        if state.sessions > 0 && state.waiting == state.sessions {
            // Those that wait are told if it fails.
            let _ = self.compute(state);
        }
    }

    /// Computes what all wait for.
    fn compute(&self, mut state: MutexGuard<'_, State>) -> Result<(), String> {
        let tasks = std::mem::take(&mut state.tasks);
        let tasks = if state.waiting > 1 { Task::by_block(tasks) } else { tasks };
        state.outcome = self.run(&tasks);
        state.waiting = 0;
        state.products += 1;
        self.changed.notify_all();
        state.outcome.clone()
    }

    /// Runs tasks on the threads.
    ///
    /// # Errors
    /// In words, where ggml fails.
    pub fn run(&self, tasks: &[Task]) -> Result<(), String> {
        let one = |worker: &Mutex<Worker>, task: &Task| {
            worker.lock().unwrap_or_else(PoisonError::into_inner).run(task)
        };
        let workers = &self.workers[..];
        if let [worker] = workers {
            return tasks.iter().try_for_each(|task| one(worker, task));
        }
        let worker = || &workers[rayon::current_thread_index().expect("a thread of the pool")];
        self.pool.install(|| tasks.par_iter().try_for_each(|task| one(worker(), task)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
