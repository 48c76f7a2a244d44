//! The record of what has arrived at the destination, shared by the threads that receive, and the wait for the other lanes.

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::proto::lane_intake::LaneIntake;

/// The shared record.
#[derive(Debug, Default)]
pub(super) struct Inflow {
    state: Mutex<State>,
    /// Signalled when lanes may go on.
    passed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    intake: LaneIntake,
    /// Set while a connection is lost.
    is_broken: bool,
    is_closed: bool,
}

impl Inflow {
    /// Gives the record to `work`.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut LaneIntake) -> T) -> T {
        work(&mut self.state.lock().intake)
    }

    /// Lets lanes go on that have waited for each other.
    pub(super) fn wake(&self) {
        self.passed.notify_all();
    }

    /// Waits until a lane may be read. Returns whether it may.
    pub(super) fn wait(&self, lane: u32) -> bool {
        let mut state: MutexGuard<'_, State> = self.state.lock();
        while !state.is_broken && !state.is_closed && state.intake.is_held(lane) {
            self.passed.wait(&mut state);
        }
        !state.is_broken && !state.is_closed
    }

    /// Ends all waits, because a connection is lost: lanes are not read any more.
    pub(super) fn interrupt(&self) {
        self.state.lock().is_broken = true;
        self.passed.notify_all();
    }

    /// Continues on other connections: see [`LaneIntake::resume`].
    pub(super) fn resume(&self) -> Vec<u64> {
        let mut state = self.state.lock();
        state.is_broken = false;
        state.intake.resume()
    }

    /// Ends all waits permanently.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.passed.notify_all();
    }
}
