//! What a client of the plain protocol does not see: the states RUNNING_P2P and PRE_COPY_P2P, which are "not
//! used" there, and the capabilities of a device, for which VFIO_USER_DEVICE_GET_INFO has no flag.

use whimbrel_device::{Info, MigrationFlags, State};

/// A number that is no state.
const NO_STATE: u32 = u32::MAX;

/// A request for a state that is not used is one for a state that there is not.
pub(super) fn hide_request(mig_state: &mut [u8]) {
    if let Some(number) = mig_state.first_chunk_mut()
        && matches!(state(*number), Some(State::RunningP2p | State::PreCopyP2p))
    {
        *number = NO_STATE.to_ne_bytes();
    }
}

/// A device that another client, or a change of state that failed, has left there is told to run, or to be in
/// pre-copy: it does, but for its transactions with other devices, and the same requests lead on.
pub(super) fn hide_state(mig_state: &mut [u8]) {
    if let Some(number) = mig_state.first_chunk_mut() {
        let seen = match state(*number) {
            Some(State::RunningP2p) => State::Running,
            Some(State::PreCopyP2p) => State::PreCopy,
            _ => return,
        };
        *number = seen.number().to_ne_bytes();
    }
}

/// The text's reply is of 16 bytes and says nothing of more.
pub(super) fn hide_capabilities(info: &mut Info) {
    info.capabilities.clear();
}

/// The flag says that the states can be used.
pub(super) fn hide_flag(migration: &mut [u8]) {
    if let Some(bytes) = migration.first_chunk_mut() {
        let flags = u64::from_ne_bytes(*bytes) & !MigrationFlags::P2P.bits();
        *bytes = flags.to_ne_bytes();
    }
}

fn state(number: [u8; 4]) -> Option<State> {
    State::from_number(u32::from_ne_bytes(number))
}
