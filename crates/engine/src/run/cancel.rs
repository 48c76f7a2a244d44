//! Cancelling a migration from another thread or a signal handler's thread.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use parking_lot::Mutex;

use crate::proto::operation::Event;

/// A handle that cancels a migration. Clones cancel the same migration.
///
/// After that the source continues to run the devices, and the destination keeps nothing. After the handover, a
/// migration is not cancelled: it completes.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    reason: Option<String>,
    events: Option<Sender<Event>>,
}

impl Cancel {
    /// Returns a handle that has not cancelled anything.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Cancels the migration. Both sides show `reason` to operators. A migration that has not begun is cancelled when
    /// it begins.
    pub fn cancel(&self, reason: impl Into<String>) {
        let mut state = self.0.lock();
        let reason = state.reason.get_or_insert(reason.into()).clone();
        if let Some(events) = &state.events {
            // This fails if the migration has ended, and there is nothing to cancel then.
            let _ = events.send(Event::Cancel(reason));
        }
    }

    /// Returns the reason for the cancellation, if there was one.
    pub fn reason(&self) -> Option<String> {
        self.0.lock().reason.clone()
    }

    /// Connects the handle to the migration that receives these events.
    pub(super) fn watch(&self, events: &Sender<Event>) {
        let mut state = self.0.lock();
        if let Some(reason) = &state.reason {
            let _ = events.send(Event::Cancel(reason.clone()));
        }
        state.events = Some(events.clone());
    }
}
