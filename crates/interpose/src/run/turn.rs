//! The turn to receive the program's calls: one thread receives, and another stands by.
//!
//! The receiver answers quick calls itself. Even such an answer can take forever: the program's memory may be behind a
//! userfaultfd, and a descriptor may belong to a file system that does not reply. The thread that stands by looks every
//! few milliseconds whether the receiver is still in the same answer. If so, it takes the turn, and the former receiver
//! leaves once its answer is done. A thread that stands by in its place is started at once; if that fails, before each further
//! answer.
//!
//! A number counts the steps of whoever has the turn: it is even while a call is awaited and odd during an answer, and it
//! only grows. The end of an answer and the taking of the turn both change the same odd number, so only one of them
//! succeeds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;

/// The interval at which the thread that stands by looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks without a new step after which it sleeps until the next answer.
const LOOKS_BEFORE_SLEEP: u32 = 100;

/// The turn to receive calls.
#[derive(Debug, Default)]
pub(super) struct Turn {
    step: AtomicU64,
    /// The thread that stands by waits for the next answer to begin.
    asleep: AtomicBool,
    stands_by: Mutex<Option<Thread>>,
    /// A thread stands by, or is about to.
    has_stand_by: AtomicBool,
}

impl Turn {
    /// Begins an answer. `step` is that of the receiver, an even number.
    pub(super) fn begin(&self, step: u64) {
        // Before the load: the thread that stands by sets `asleep` first and then looks at the step.
        self.step.store(step + 1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Ends the answer that began at `step`, and returns the receiver's next step; `None` if another thread has taken the
    /// turn.
    pub(super) fn end(&self, step: u64) -> Option<u64> {
        let ended = self.step.compare_exchange(step + 1, step + 2, Ordering::AcqRel, Ordering::Acquire);
        ended.is_ok().then_some(step + 2)
    }

    /// Returns whether no thread stands by. The caller is to start one then, or to [forget it](Turn::forget_stand_by).
    pub(super) fn needs_stand_by(&self) -> bool {
        !self.has_stand_by.load(Ordering::Relaxed) && !self.has_stand_by.swap(true, Ordering::AcqRel)
    }

    /// Notes that no thread stands by.
    pub(super) fn forget_stand_by(&self) {
        self.has_stand_by.store(false, Ordering::Release);
    }

    /// Wakes the thread that stands by, if there is one.
    pub(super) fn wake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
        if let Some(thread) = &*self.stands_by.lock() {
            thread.unpark();
        }
    }

    /// Stands by. Returns the next step of this thread, which has the turn from then on; `None` once `is_over`, which is
    /// asked again after [`Turn::wake`].
    ///
    /// `before` is called before an attempt to take the turn, and `after_failure` if the answer has ended just then.
    pub(super) fn stand_by(
        &self,
        is_over: impl Fn() -> bool,
        before: impl Fn(),
        after_failure: impl Fn(),
    ) -> Option<u64> {
        *self.stands_by.lock() = Some(thread::current());
        let (mut last, mut looks) = (self.step.load(Ordering::SeqCst), 0);
        while !is_over() {
            if looks < LOOKS_BEFORE_SLEEP {
                thread::park_timeout(INTERVAL);
            } else {
                self.asleep.store(true, Ordering::SeqCst);
                if self.step.load(Ordering::SeqCst) == last && !is_over() {
                    thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
            }
            let step = self.step.load(Ordering::SeqCst);
            if step != last {
                (last, looks) = (step, 0);
            } else if step.is_multiple_of(2) {
                looks = (looks + 1).min(LOOKS_BEFORE_SLEEP);
            } else {
                before();
                if self.step.compare_exchange(step, step + 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    self.forget_stand_by();
                    return Some(step + 1);
                }
                after_failure();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn stand_by(turn: &Arc<Turn>, over: &Arc<AtomicBool>) -> thread::JoinHandle<Option<u64>> {
        let (turn, over) = (turn.clone(), over.clone());
        thread::spawn(move || turn.stand_by(|| over.load(Ordering::SeqCst), || {}, || {}))
    }

    #[test]
    fn an_answer_that_does_not_end_loses_the_turn() {
        let (turn, over) = (Arc::new(Turn::default()), Arc::default());
        turn.begin(0);
        assert_eq!(stand_by(&turn, &over).join().unwrap(), Some(2));
        assert_eq!(turn.end(0), None);
        turn.begin(2);
        assert_eq!(turn.end(2), Some(4));
    }

    #[test]
    fn a_thread_that_stands_by_is_needed_until_one_has_been_started_and_once_it_has_taken_the_turn() {
        let (turn, over) = (Arc::new(Turn::default()), Arc::default());
        assert!(turn.needs_stand_by() && !turn.needs_stand_by());
        // It could not be started.
        turn.forget_stand_by();
        assert!(turn.needs_stand_by() && !turn.needs_stand_by());
        turn.begin(0);
        stand_by(&turn, &over).join().unwrap();
        assert!(turn.needs_stand_by());
    }

    #[test]
    fn a_thread_that_sleeps_takes_the_turn_of_an_answer_that_begins_then() {
        let (turn, over) = (Arc::new(Turn::default()), Arc::default());
        let stands_by = stand_by(&turn, &over);
        while !turn.asleep.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        turn.begin(0);
        assert_eq!(stands_by.join().unwrap(), Some(2));
    }

    #[test]
    fn the_end_of_everything_wakes_a_thread_that_sleeps() {
        let (turn, over) = (Arc::new(Turn::default()), Arc::<AtomicBool>::default());
        let stands_by = stand_by(&turn, &over);
        while !turn.asleep.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        over.store(true, Ordering::SeqCst);
        turn.wake();
        assert_eq!(stands_by.join().unwrap(), None);
    }

    #[test]
    fn answers_that_end_keep_the_turn() {
        let (turn, over) = (Arc::new(Turn::default()), Arc::<AtomicBool>::default());
        let stands_by = stand_by(&turn, &over);
        let mut step = 0;
        while step < 100_000 {
            turn.begin(step);
            match turn.end(step) {
                Some(next) => step = next,
                // This thread was not run for the time of two looks.
                None => return,
            }
        }
        over.store(true, Ordering::SeqCst);
        turn.wake();
        assert_eq!(stands_by.join().unwrap(), None);
    }
}
