//! The wake line, by which a sleeping device requests to be woken.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::irq::signal;

/// A wake line. Raising it has no effect unless it is armed.
#[derive(Debug, Default)]
pub(crate) struct WakeLine {
    armed: Mutex<Option<Arc<OwnedFd>>>,
}

impl WakeLine {
    pub(crate) fn raise(&self) {
        if let Some(eventfd) = &*self.armed.lock() {
            signal(eventfd);
        }
    }

    /// Sets the eventfd to signal when the line is raised, in place of an earlier one.
    pub(crate) fn arm(&self, eventfd: Arc<OwnedFd>) {
        *self.armed.lock() = Some(eventfd);
    }

    pub(crate) fn disarm(&self) {
        *self.armed.lock() = None;
    }
}
