//! Hides from a client of the plain protocol the states RUNNING_P2P and PRE_COPY_P2P, which are "not used" there, and
//! the capabilities of a device, for which VFIO_USER_DEVICE_GET_INFO has no flag.

use whimbrel_device::{Info, MigrationFlags, State};

/// A number that is not a state.
const NO_STATE: u32 = u32::MAX;

/// Treats a request for an unused state as one for an invalid state.
pub(super) fn hide_request(mig_state: &mut [u8]) {
    if let Some(number) = mig_state.first_chunk_mut()
        && matches!(state(*number), Some(State::RunningP2p | State::PreCopyP2p))
    {
        *number = NO_STATE.to_ne_bytes();
    }
}

/// Tells a device that another client, or a failed state change, has left in such a state to run, or to be in
/// pre-copy: it is, but for its transactions with other devices, and the same requests lead on.
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

/// Truncates the reply to the 16 bytes of the specification, without a hint to more.
pub(super) fn hide_capabilities(info: &mut Info) {
    info.capabilities.clear();
}

/// Removes the flag that says that the states are available.
pub(super) fn hide_flag(migration: &mut [u8]) {
    if let Some(bytes) = migration.first_chunk_mut() {
        let flags = u64::from_ne_bytes(*bytes) & !MigrationFlags::P2P.bits();
        *bytes = flags.to_ne_bytes();
    }
}

fn state(number: [u8; 4]) -> Option<State> {
    State::from_number(u32::from_ne_bytes(number))
}
