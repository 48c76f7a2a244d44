//! The count of what is under way beside the receiver: requests that other threads answer, and closes.
//!
//! While there are any, one of them may hold a lock that an answer of the receiver would wait for.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The count.
#[derive(Debug, Default)]
pub(super) struct Slow(AtomicUsize);

/// Something that has begun, and counts until this is dropped.
#[derive(Debug)]
pub(super) struct UntilDropped<'a>(&'a Slow);

impl Slow {
    /// Returns whether nothing is under way.
    pub(super) fn is_none(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    /// Counts something that begins, up to [`Slow::end`].
    pub(super) fn begin(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Ends something.
    pub(super) fn end(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// Returns a guard of something that has begun, which ends it, also if a panic does.
    pub(super) fn ends(&self) -> UntilDropped<'_> {
        UntilDropped(self)
    }
}

impl Drop for UntilDropped<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use super::*;

    #[test]
    fn what_ends_in_a_panic_counts_no_longer() {
        let slow = Slow::default();
        slow.begin();
        slow.begin();
        drop(slow.ends());
        assert!(!slow.is_none());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _ends = slow.ends();
            resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err() && slow.is_none());
    }
}
