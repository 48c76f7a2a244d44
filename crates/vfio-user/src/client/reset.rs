//! VFIO_USER_DEVICE_RESET with the effect that users of VFIO expect, also with servers that reset a device in part.

use std::sync::atomic::Ordering;

use whimbrel_protocol::reset::ResetRule;
use whimbrel_protocol::{Errno, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::Result;

use super::connection::Connection;
use super::deviations::Deviation;
use super::feature;
use super::migration_state::state;
use crate::message::{Command, Request};

/// Resets the device: it is in RUNNING afterwards, as after VFIO_DEVICE_RESET.
///
/// libvfio-user refuses to reset a device in STOP or STOP_COPY, and its newest version keeps the migration state. The
/// contents of such a device are discarded by RESUMING, where the reset is possible. Running it first would activate a
/// state that may be active on another host.
pub(super) fn reset(connection: &mut Connection) -> Result<()> {
    match ask(connection) {
        Ok(()) => {}
        Err(refused) if refused.errno() == Some(Errno::EINVAL) => {
            let Ok(State::Stop | State::StopCopy) = state(connection) else { return Err(refused) };
            connection.deviations.tolerate(Deviation::ResetRefused, Command::DeviceReset);
            enter(connection, State::Resuming)?;
            ask(connection)?;
        }
        Err(error) => return Err(error),
    }
    connection.sessions.fetch_add(1, Ordering::AcqRel);
    let says_so = connection.agreed.migration_reset_rule == Some(ResetRule::KeepsPrecopy);
    // A server whose device was never asked about its migration may not know how to answer.
    if connection.has_migration && state(connection)? != State::Running {
        if !says_so {
            connection.deviations.tolerate(Deviation::ResetKeepsState, Command::DeviceReset);
        }
        enter(connection, State::Running)?;
    }
    Ok(())
}

/// Resets the device and leaves the migration to the server's rule: a session ends if the device runs afterwards.
pub(super) fn reset_for_guest(connection: &mut Connection) -> Result<()> {
    ask(connection)?;
    let may_have_session = connection.has_migration || connection.sessions.load(Ordering::Acquire) > 0;
    if may_have_session && state(connection)? == State::Running {
        connection.sessions.fetch_add(1, Ordering::AcqRel);
    }
    Ok(())
}

fn ask(connection: &mut Connection) -> Result<()> {
    connection.ask(|| Command::DeviceReset.to_string(), &Request::DeviceReset, &[]).map(drop)
}

/// Changes the state and discards its data.
fn enter(connection: &mut Connection, to: State) -> Result<()> {
    let what = || format!("{} to {to} for a reset", Feature::MigDeviceState);
    let data = [to.number().to_ne_bytes(), (-1_i32).to_ne_bytes()].concat();
    feature(connection, what, Feature::MigDeviceState, FeatureFlags::SET, &data, 0).map(drop)
}
