//! The line by which a device says that it has to wake.

use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::irq::signal;

/// A wake line. Nothing happens when it is raised unless somebody has armed it.
#[derive(Debug, Default)]
pub(crate) struct WakeLine {
    armed: Mutex<Option<Arc<EventFd>>>,
}

impl WakeLine {
    pub(crate) fn raise(&self) {
        if let Some(eventfd) = &*self.armed.lock() {
            signal(eventfd);
        }
    }

    /// Signals `eventfd` whenever the line is raised, in place of one given before.
    pub(crate) fn arm(&self, eventfd: Arc<EventFd>) {
        *self.armed.lock() = Some(eventfd);
    }

    pub(crate) fn disarm(&self) {
        *self.armed.lock() = None;
    }
}
