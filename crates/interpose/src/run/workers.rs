//! The workers: threads that answer the calls that may take time, each one at a time.

use std::collections::VecDeque;
use std::fmt;

use libc::seccomp_notif;
use parking_lot::{Condvar, Mutex};

/// Workers at a time, and so requests that can wait at once: for the device, or for memory that the program keeps back.
/// The next one waits until one of them is answered.
const MAX_WORKERS: usize = 1024;

/// The calls that wait for a worker, and the count of workers.
#[derive(Debug, Default)]
pub(super) struct Workers {
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<seccomp_notif>,
    workers: usize,
    idle: usize,
    ended: bool,
}

impl Workers {
    /// Adds a call. Returns the number of workers if the last of them is to be started for it.
    pub(super) fn add(&self, call: seccomp_notif) -> Option<usize> {
        let mut queue = self.queue.lock();
        queue.calls.push_back(call);
        let needs_worker = queue.idle < queue.calls.len() && queue.workers < MAX_WORKERS;
        if needs_worker {
            queue.workers += 1;
        }
        let workers = queue.workers;
        drop(queue);
        if !needs_worker {
            self.work.notify_one();
        }
        needs_worker.then_some(workers)
    }

    /// Notes that a worker could not be started.
    pub(super) fn forget_worker(&self) {
        self.queue.lock().workers -= 1;
    }

    /// Takes the first call that waits.
    pub(super) fn take(&self) -> Option<seccomp_notif> {
        self.queue.lock().calls.pop_front()
    }

    /// Takes all calls that wait.
    pub(super) fn take_all(&self) -> VecDeque<seccomp_notif> {
        std::mem::take(&mut self.queue.lock().calls)
    }

    /// Ends the workers, each after the call that it answers.
    pub(super) fn end(&self) {
        self.queue.lock().ended = true;
        self.work.notify_all();
    }

    /// A worker: answers calls until the end.
    pub(super) fn work(&self, answer: impl Fn(&seccomp_notif)) {
        let mut queue = self.queue.lock();
        while !queue.ended {
            let Some(call) = queue.calls.pop_front() else {
                queue.idle += 1;
                self.work.wait(&mut queue);
                queue.idle -= 1;
                continue;
            };
            drop(queue);
            answer(&call);
            queue = self.queue.lock();
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("calls", &self.calls.len())
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    fn call(id: u64) -> seccomp_notif {
        let data = libc::seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] };
        seccomp_notif { id, pid: 0, flags: 0, data }
    }

    #[test]
    fn each_call_has_a_worker_and_idle_workers_take_the_next_ones() {
        let workers = Arc::new(Workers::default());
        let (answered, answers) = mpsc::channel();
        assert_eq!([workers.add(call(1)), workers.add(call(2))], [Some(1), Some(2)]);
        let threads = [0; 2].map(|_| {
            let (workers, answered) = (workers.clone(), answered.clone());
            thread::spawn(move || workers.work(|call| answered.send(call.id).unwrap()))
        });
        let mut first = [answers.recv().unwrap(), answers.recv().unwrap()];
        first.sort_unstable();
        assert_eq!(first, [1, 2]);
        while workers.queue.lock().idle < 2 {
            thread::yield_now();
        }
        assert_eq!(workers.add(call(3)), None);
        assert_eq!(answers.recv(), Ok(3));
        workers.end();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_worker_that_could_not_be_started_is_tried_for_the_next_call() {
        let workers = Workers::default();
        assert_eq!(workers.add(call(1)), Some(1));
        workers.forget_worker();
        assert_eq!(workers.take().map(|call| call.id), Some(1));
        assert_eq!(workers.add(call(2)), Some(1));
        let left: Vec<u64> = workers.take_all().iter().map(|call| call.id).collect();
        assert_eq!((left, workers.take().is_none()), (vec![2], true));
    }

    #[test]
    fn there_are_no_more_workers_than_the_most() {
        let workers = Workers::default();
        let started = (0..2 * MAX_WORKERS as u64).filter_map(|id| workers.add(call(id))).count();
        assert_eq!(started, MAX_WORKERS);
    }
}
