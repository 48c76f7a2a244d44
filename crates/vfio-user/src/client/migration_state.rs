//! VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: the device state that the server reports.

use whimbrel_protocol::State;
use whimbrel_uapi::feature::Feature;
use whimbrel_user::Result;

use super::connection::Connection;
use super::get;

pub(super) fn state(connection: &mut Connection) -> Result<State> {
    let data: [u8; 8] = get(connection, Feature::MigDeviceState)?;
    connection.has_migration = true;
    let [a, b, c, d, ..] = data;
    match State::try_from(u32::from_ne_bytes([a, b, c, d])) {
        Ok(state) if is_p2p(state) && !connection.agreed.extensions().p2p => {
            let why = format_args!("the device is in {state}, but P2P states were not negotiated");
            Err(connection.invalid_reply(Feature::MigDeviceState, why))
        }
        Ok(state) => Ok(state),
        Err(unknown) => Err(connection.invalid_reply(Feature::MigDeviceState, unknown)),
    }
}

/// Returns whether a state is one that the plain protocol does not use.
pub(super) fn is_p2p(state: State) -> bool {
    matches!(state, State::RunningP2p | State::PreCopyP2p)
}
