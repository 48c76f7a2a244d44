//! The migration half of a driver: single arcs, and reads and writes of its state.

use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::Context;

/// The migration half of a driver.
///
/// The core requests only arcs that [`whimbrel_protocol::fsm`] returns for [`Migration::flags`] and the current state,
/// which the core keeps.
pub trait Migration {
    /// Returns the migration features, at least STOP_COPY. The result never changes.
    fn flags(&self) -> MigrationFlags;

    /// Returns the model, the version of its migration data, and the settings that source and destination must have in
    /// common, so that a user can refuse a destination before any data moves. The result never changes while the device
    /// is open. `None`, the default, leaves the judgement to [`Migration::write`].
    fn compatibility(&mut self) -> Option<Compatibility> {
        None
    }

    /// Executes one arc completely before it returns.
    ///
    /// Entering a saving state from outside, or RESUMING, begins a data session; leaving them ends it. The arc RESUMING
    /// to STOP checks the data written: EINVAL if it is incomplete or invalid, and then the device stays in RESUMING
    /// until it is reset.
    fn arc(&mut self, context: &Context, from: State, to: State) -> Result<(), ArcError>;

    /// Returns the state that the device is in after [`Migration::arc`] to `to` succeeded: `to`.
    ///
    /// A driver that returns another state breaks the header's rule that a device is fully in the new state before the
    /// request succeeds: the request succeeds, opens no data session, and GET reports that state. Only
    /// [`wrap::fault`](crate::wrap::fault) does so, to show what users make of it.
    fn arrived(&mut self, to: State) -> State {
        to
    }

    /// Returns the estimated size of the data in STOP_COPY, in bytes, in any state.
    fn data_size(&mut self, context: &Context) -> Result<u64, Errno>;

    /// Reads the next bytes of the device's state, at least one, in order. 0 is the final end in STOP_COPY, and a
    /// temporary end in PRE_COPY and PRE_COPY_P2P, which the core reports as [`Migration::temporary_end`].
    fn read(&mut self, context: &Context, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Returns the answer to a read at the temporary end of pre-copy: ENOMSG, as the header says. Some kernel drivers
    /// (mtty, qat, hisi_acc) return 0. The result never changes.
    fn temporary_end(&self) -> Result<usize, Errno> {
        Err(Errno::ENOMSG)
    }

    /// Takes the next bytes of a state to load, in pieces of any size, and returns the number accepted.
    ///
    /// Invalid data should fail with EINVAL at once, data past the end with ENOMEM.
    fn write(&mut self, context: &Context, data: &[u8]) -> Result<usize, Errno>;

    /// Returns the amount of data that can be read now; called in PRE_COPY and PRE_COPY_P2P only.
    fn precopy(&mut self, context: &Context) -> Result<PrecopyReport, Errno> {
        let _ = context;
        Ok(PrecopyReport::default())
    }

    /// Handles the user's opt-in to [`PrecopyReport::reinit`].
    fn enable_precopy_info_v2(&mut self, context: &Context) -> Result<(), Errno> {
        let _ = context;
        Ok(())
    }
}
