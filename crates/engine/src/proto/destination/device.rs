//! A device of the destination, as far as the machine knows it.

use whimbrel_protocol::MigrationFlags;

use crate::error::Error;
use crate::proto::identity::DeviceIdentity;

/// A device of the migration.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) has_p2p: bool,
    /// Set if it has received a request that a reset must undo.
    pub(super) touched: bool,
    /// Set if it was asked to run.
    pub(super) start_asked: bool,
    /// Set if it runs.
    pub(super) runs: bool,
    /// Set if it is certain that no received state is left in it.
    pub(super) was_reset: bool,
    /// Set if it is known to be stopped.
    pub(super) is_stopped: bool,
    /// Set if a call into its driver does not return.
    pub(super) stuck: bool,
    /// The error of a reset that failed.
    pub(super) reset_failed: Option<Error>,
}

impl Device {
    /// Returns a device that has received no request yet.
    pub(super) fn new(identity: &DeviceIdentity) -> Device {
        let flags = MigrationFlags::from_bits_truncate(identity.migration_flags);
        Device {
            name: identity.name.clone(),
            has_p2p: flags.contains(MigrationFlags::P2P),
            touched: false,
            start_asked: false,
            runs: false,
            was_reset: false,
            is_stopped: true,
            stuck: false,
            reset_failed: None,
        }
    }
}
