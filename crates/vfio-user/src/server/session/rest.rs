//! Brings a serving thread to rest between two messages, so that its client can be handed to another process.
//!
//! The thread checks for this at each message, and also at each read timeout of its socket, so that an idle client
//! does not delay it. The check costs no system call.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// The read timeout of a client's socket, after which the thread checks. An idle client waits for nothing, so it does
/// not notice.
pub(in crate::server) const LOOK: Duration = Duration::from_millis(100);

const RUNS: u8 = 0;
const WANTED: u8 = 1;
const RESTS: u8 = 2;

/// The reasons why a client is not at rest.
#[cfg(feature = "takeover")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotParked {
    /// The server is being stopped.
    Stopped,
    /// The client reads no answers, or the device is busy with its request.
    Busy,
}

/// The state shared by a serving thread and a thread that needs it to rest.
#[derive(Debug, Default)]
pub(in crate::server) struct Rest(AtomicU8);

impl Rest {
    /// Tells the thread that it must rest.
    #[cfg(feature = "takeover")]
    pub(super) fn want(&self) {
        self.0.store(WANTED, Ordering::Release);
    }

    /// For the serving thread: returns whether it must rest. Relaxed, as it is called for each message: the next call
    /// sees it.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WANTED
    }

    /// For the serving thread: it is about to rest. Returns `false` if that is no longer requested.
    pub(super) fn begin(&self) -> bool {
        self.0.compare_exchange(WANTED, RESTS, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the rest, after which the next one can be requested.
    pub(super) fn end(&self) {
        self.0.store(RUNS, Ordering::Release);
    }

    /// Withdraws the request. Returns `false` if the thread rests already.
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
