//! Threads that work on fragments: a burst that has something for several copies is run by all of them at once.

use base::Now;
use node::Task;
use rayon_core::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Mutex, PoisonError};

/// With fewer inputs than this, waking another thread costs more than it saves.
const SHARED_MIN: usize = 32;

/// The node's thread and those that help it.
pub(crate) struct Crew(Option<ThreadPool>);

impl Crew {
    /// So many threads, the caller's own among them.
    pub(crate) fn new(threads: usize) -> std::io::Result<Crew> {
        if threads <= 1 {
            return Ok(Crew(None));
        }
        let pool = ThreadPoolBuilder::new().num_threads(threads - 1).thread_name(|n| format!("fragments-{n}")).build();
        Ok(Crew(Some(pool.map_err(std::io::Error::other)?)))
    }

    /// Half of this machine's processors, at most 8: clients, sockets and the disc need some, too.
    pub(crate) fn usual() -> usize {
        std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).clamp(1, 8))
    }

    /// Runs every task once, and returns when all have run.
    pub(crate) fn run(&self, now: Now, tasks: &mut [Task]) {
        let shared = tasks.len() > 1 && tasks.iter().map(Task::weight).sum::<usize>() >= SHARED_MIN;
        let Some(pool) = self.0.as_ref().filter(|_| shared) else {
            return tasks.iter_mut().for_each(|task| task.run(now));
        };
        let helpers = pool.current_num_threads().min(tasks.len() - 1);
        let left = Mutex::new(tasks.iter_mut());
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some(task) = next() {
                task.run(now);
            }
        };
        pool.in_place_scope(|scope| {
            (0..helpers).for_each(|_| scope.spawn(|_| work()));
            work();
        });
    }
}
