//! The settings that a server forgets with its client: what the client tells the next server.

use whimbrel_protocol::State;

use super::dirty_log::RunningLog;
use super::doorbells::Doorbells;
use super::interrupts::Interrupts;

/// The settings of a connection, beside its memory. They are recorded as the server accepts them.
#[derive(Debug, Default)]
pub(in crate::client) struct Kept {
    pub(in crate::client) interrupts: Interrupts,
    pub(in crate::client) log: Option<RunningLog>,
    pub(in crate::client) doorbells: Doorbells,
    /// The migration of the device, as far as the client knows.
    pub(in crate::client) migration: Migration,
}

/// A migration of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::client) enum Migration {
    /// The device is in RUNNING.
    #[default]
    None,
    /// The device may be in another state, so it cannot go on at another server.
    UnderWay,
    /// The server crashed during a migration. The device reports ERROR until it is reset.
    Lost,
}

impl Migration {
    /// Records a state change before it is requested: from then on the device may be in that state.
    pub(in crate::client) fn requested(&mut self, state: State) {
        if *self == Migration::None && state != State::Running {
            *self = Migration::UnderWay;
        }
    }

    /// Records the state that the server has confirmed.
    pub(in crate::client) fn confirmed(&mut self, state: State) {
        if *self != Migration::Lost {
            *self = if state == State::Running { Migration::None } else { Migration::UnderWay };
        }
    }

    /// Returns what is left of a migration after a crash.
    pub(super) fn after_crash(self) -> Migration {
        if self == Migration::None { Migration::None } else { Migration::Lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_may_not_run_is_lost_with_its_server_until_it_is_reset() {
        let mut migration = Migration::None;
        assert_eq!(migration.after_crash(), Migration::None);
        // Refused or lost on its way: it may be there all the same.
        migration.requested(State::StopCopy);
        assert_eq!(migration.after_crash(), Migration::Lost);
        migration.requested(State::Running);
        assert_eq!(migration.after_crash(), Migration::Lost, "it may have run");
        migration.confirmed(State::Running);
        assert_eq!(migration.after_crash(), Migration::None);
        for state in [State::Stop, State::RunningP2p, State::PreCopy, State::Resuming, State::Error] {
            migration.confirmed(state);
            assert_eq!(migration.after_crash(), Migration::Lost, "{state}");
        }
        let mut lost = Migration::Lost;
        lost.confirmed(State::Running);
        assert_eq!(lost, Migration::Lost);
        assert_eq!(lost.after_crash(), Migration::Lost, "also by the next crash");
    }
}
