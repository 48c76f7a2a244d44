//! Cancelling a migration from another thread, or from a signal's.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use parking_lot::Mutex;

use crate::proto::operation::Event;

/// A handle that cancels a migration. Its clones cancel the same one.
///
/// The source runs on then, and the destination keeps nothing. A migration that has been handed over is not cancelled:
/// it ends as it would have.
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

    /// Cancels. `reason` is for people, on both sides. A migration that has not begun is cancelled when it does.
    pub fn cancel(&self, reason: impl Into<String>) {
        let mut state = self.0.lock();
        let reason = state.reason.get_or_insert(reason.into()).clone();
        if let Some(events) = &state.events {
            // One that is over needs no cancelling.
            let _ = events.send(Event::Cancel(reason));
        }
    }

    /// Returns why it was cancelled, if it was.
    pub fn reason(&self) -> Option<String> {
        self.0.lock().reason.clone()
    }

    /// Lets the handle cancel the migration that takes these events.
    pub(super) fn watch(&self, events: &Sender<Event>) {
        let mut state = self.0.lock();
        if let Some(reason) = &state.reason {
            let _ = events.send(Event::Cancel(reason.clone()));
        }
        state.events = Some(events.clone());
    }
}
