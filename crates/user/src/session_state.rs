//! The last known state of a device, for its data file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use whimbrel_protocol::State;

/// The last state that a device was known to be in, shared by the device and its data files.
///
/// It decides whether a read that yields nothing is the end of the state or of what there is now. Whoever implements
/// [`Migratable`](crate::Migratable) sets it at each state change, and hands a clone to each
/// [`DataFile`](crate::DataFile) it opens.
#[derive(Clone, Debug)]
pub struct SessionState(Arc<AtomicU32>);

impl SessionState {
    /// A device in `state`.
    pub fn new(state: State) -> SessionState {
        SessionState(Arc::new(AtomicU32::new(state.number())))
    }

    /// The device has come to `state`.
    pub fn set(&self, state: State) {
        self.0.store(state.number(), Ordering::Release);
    }

    /// The state that was set last.
    pub fn get(&self) -> State {
        // Only numbers of states are stored.
        State::try_from(self.0.load(Ordering::Acquire)).unwrap_or(State::Error)
    }
}

impl Default for SessionState {
    /// A device that has just been opened runs.
    fn default() -> SessionState {
        SessionState::new(State::Running)
    }
}
