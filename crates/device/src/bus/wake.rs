//! The line by which a device says that it has to wake.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::irq::signal;

/// A wake line. Nothing happens when it is raised unless somebody has armed it.
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

    /// Signals `eventfd` whenever the line is raised, in place of one given before.
    pub(crate) fn arm(&self, eventfd: Arc<OwnedFd>) {
        *self.armed.lock() = Some(eventfd);
    }

    pub(crate) fn disarm(&self) {
        *self.armed.lock() = None;
    }
}
