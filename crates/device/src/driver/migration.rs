//! The migration half of a driver: single arcs, and reads and writes of its state.

use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::Context;

/// The migration half of a driver.
///
/// The core asks only for arcs that [`whimbrel_protocol::fsm`] gives for [`Migration::flags`], from the state
/// the device is in. It keeps the state itself.
pub trait Migration {
    /// Returns the migration features, at least STOP_COPY. The answer never changes.
    fn flags(&self) -> MigrationFlags;

    /// Executes one arc completely before it returns.
    ///
    /// Entering a saving state from outside, or RESUMING, begins a data session; leaving them ends it. On the
    /// arc RESUMING to STOP the data written is judged: EINVAL if it is short or wrong in any way, and then
    /// the device stays in RESUMING until it is reset.
    fn arc(&mut self, context: &Context, from: State, to: State) -> Result<(), ArcError>;

    /// An estimate in bytes of what STOP_COPY will yield, in any state.
    fn data_size(&mut self, context: &Context) -> Result<u64, Errno>;

    /// Reads the next bytes of the device's state, at least one, in order. 0 is the end: for good in
    /// STOP_COPY, for now in PRE_COPY and PRE_COPY_P2P, where the core answers ENOMSG as the header says.
    fn read(&mut self, context: &Context, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Takes the next bytes of a state to load, in any segmentation, and returns how many were taken.
    ///
    /// Data that cannot be right is refused with EINVAL as soon as it is seen, data past the end with ENOMEM.
    fn write(&mut self, context: &Context, data: &[u8]) -> Result<usize, Errno>;

    /// Returns the amount of data that can be read now; called in PRE_COPY and PRE_COPY_P2P only.
    fn precopy(&mut self, context: &Context) -> Result<PrecopyReport, Errno> {
        let _ = context;
        Ok(PrecopyReport::default())
    }

    /// The user understands [`PrecopyReport::reinit`] from now on.
    fn enable_precopy_info_v2(&mut self, context: &Context) -> Result<(), Errno> {
        let _ = context;
        Ok(())
    }
}
