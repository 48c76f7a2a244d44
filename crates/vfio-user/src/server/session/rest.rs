//! Bringing a serving thread to rest between two messages, so that its client can be handed to another process.
//!
//! The thread looks whether it is wanted at each message, and, because a read of its socket ends by itself
//! after a while, also when none comes. It costs no system call.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// How long a read of a client's socket waits before the thread looks. A client that sends nothing waits for
/// nothing, so that it does not see it.
pub(in crate::server) const LOOK: Duration = Duration::from_millis(100);

const RUNS: u8 = 0;
const WANTED: u8 = 1;
const RESTS: u8 = 2;

/// What a serving thread and who wants it to rest know of each other.
#[derive(Debug, Default)]
pub(in crate::server) struct Rest(AtomicU8);

impl Rest {
    /// The thread shall rest.
    #[cfg(feature = "takeover")]
    pub(super) fn want(&self) {
        self.0.store(WANTED, Ordering::Release);
    }

    /// For the thread: whether it shall. Relaxed, as it is asked for each message: the next look sees it.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WANTED
    }

    /// For the thread: it is about to rest. `false` if it is wanted no longer.
    pub(super) fn begin(&self) -> bool {
        self.0.compare_exchange(WANTED, RESTS, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// It rests no more, and can be wanted again.
    pub(super) fn end(&self) {
        self.0.store(RUNS, Ordering::Release);
    }

    /// It need not. `false` if the thread rests already.
    #[cfg(feature = "takeover")]
    pub(super) fn withdraw(&self) -> bool {
        self.0.compare_exchange(WANTED, RUNS, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_rests_only_as_long_as_it_is_wanted() {
        let rest = Rest::default();
        assert!(!rest.is_wanted() && !rest.begin(), "nobody wants it");
        rest.want();
        assert!(rest.is_wanted());
        assert!(rest.withdraw());
        assert!(!rest.begin(), "no longer");
        rest.want();
        assert!(rest.begin());
        assert!(!rest.is_wanted(), "it does already");
        assert!(!rest.withdraw(), "it does already");
    }
}
