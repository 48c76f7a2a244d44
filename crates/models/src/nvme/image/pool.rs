//! An engine of threads, each of which executes one operation at a time.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::task::Task;
use super::{Done, Engine, ImageFile, Operation};

/// Number of threads. Disks work on several operations at once, and a flush must not keep all others waiting.
const THREADS: usize = 4;

/// A pool of threads. They end by themselves after it is dropped.
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    image: Arc<ImageFile>,
    queues: Mutex<Queues>,
    /// Signalled when an operation waits, and at the end.
    work: Condvar,
    /// Signalled when an operation has ended.
    ended: Condvar,
    notify: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Queues {
    waiting: VecDeque<(u64, Operation)>,
    done: Vec<Done>,
    is_closed: bool,
}

impl Pool {
    /// Starts the threads. They call `notify` after an operation has ended.
    pub(super) fn start(
        image: Arc<ImageFile>,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Pool> {
        let shared = Arc::new(Shared {
            image,
            queues: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            notify: Box::new(notify),
        });
        let pool = Pool { shared };
        for _ in 0..THREADS {
            let shared = pool.shared.clone();
            std::thread::Builder::new().name("image".into()).spawn(move || shared.work())?;
        }
        Ok(pool)
    }
}

impl Engine for Pool {
    fn submit(&mut self, tag: u64, operation: Operation) {
        self.shared.lock().waiting.push_back((tag, operation));
        self.shared.work.notify_one();
    }

    fn collect(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.shared.lock().done);
    }

    fn wait(&mut self, deadline: Instant) {
        let mut queues = self.shared.lock();
        while queues.done.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            let waited = self.shared.ended.wait_timeout(queues, left);
            queues = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut queues = self.lock();
        loop {
            let Some((tag, operation)) = queues.waiting.pop_front() else {
                if queues.is_closed {
                    return;
                }
                queues = self.work.wait(queues).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queues);
            let mut task = Task::new(tag, operation);
            while let Some(request) = task.next() {
                let result = self.image.execute(request, &mut task);
                task.take_result(request, result);
            }
            queues = self.lock();
            queues.done.push(task.into_done());
            let is_first = queues.done.len() == 1;
            self.ended.notify_all();
            if is_first {
                // The others are collected with it.
                drop(queues);
                (self.notify)();
                queues = self.lock();
            }
        }
    }

    /// No operation panics, and a push leaves the queues as they should be.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.work.notify_all();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
