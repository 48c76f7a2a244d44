//! The work line, by which a driver's own threads tell the device's worker that there is work.

use std::fmt;
use std::sync::OnceLock;

/// A work line. Raising it has no effect until the device's core listens.
#[derive(Default)]
pub(crate) struct WorkLine {
    listener: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl WorkLine {
    pub(crate) fn raise(&self) {
        if let Some(listener) = self.listener.get() {
            listener();
        }
    }

    /// Sets the listener. Only the first one has an effect.
    pub(crate) fn listen(&self, listener: impl Fn() + Send + Sync + 'static) {
        let _ = self.listener.set(Box::new(listener));
    }
}

impl fmt::Debug for WorkLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkLine").finish_non_exhaustive()
    }
}
