//! The part of a device's interface that a migration needs.

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::Info;
use whimbrel_protocol::region::Version;
use whimbrel_protocol::reset::ResetRule;
use whimbrel_protocol::{MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};

use crate::data_file::DataFile;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::setup::DeviceSetup;

/// The holder of a device that another process holds, if that process cannot be identified. It equals no holder, not even
/// itself.
pub const UNKNOWN_HOLDER: &str = "unknown";

/// The migration interface of a device: state, data sessions, features and reset.
///
/// Requests have the meaning defined by the header. A failed request changes nothing beyond what the header allows, and
/// never affects an open [`DataFile`], which belongs to the caller.
pub trait Migratable: Send {
    /// Returns the name for errors and reports.
    fn name(&self) -> &str;

    /// VFIO_DEVICE_GET_INFO.
    fn info(&mut self) -> Result<Info>;

    /// Returns all that is known of the device before any state moves. The default, for a device whose regions are out
    /// of reach, lacks the identity in the configuration space and the driver's description of its data.
    fn identity(&mut self) -> Result<Identity> {
        let (info, flags) = (self.info()?, self.migration_flags()?);
        Ok(Identity::new(self.name(), &info, flags, self.region_version()))
    }

    /// VFIO_DEVICE_RESET: the device is in RUNNING afterwards, and its session is over, whatever the rule of its driver
    /// side ([`Migratable::reset_rule`]).
    fn reset(&mut self) -> Result<()>;

    /// Returns what the driver side makes of a reset in the middle of a migration, by another user or for a guest. `None`
    /// if it does not say so. The default is the kernel's rule.
    fn reset_rule(&self) -> Option<ResetRule> {
        Some(ResetRule::EndsMigration)
    }

    /// VFIO_DEVICE_FEATURE with PROBE: returns whether the device has the feature in these directions (GET, SET or
    /// both).
    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool>;

    /// Returns the device's migration features; `None` for a device that cannot migrate.
    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>>;

    /// Returns the current state.
    fn state(&mut self) -> Result<State>;

    /// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET: the request alone, which returns the data file if it opened a session.
    /// [`Migratable::go_to`] does not take a driver's word for it.
    ///
    /// After an error the device may be in any state on the path: query it with [`Migratable::state`]. Only
    /// [`Migratable::reset`] leaves ERROR.
    fn set_state(&mut self, state: State) -> Result<Option<DataFile>>;

    /// Brings the device to a state as [`Migratable::set_state`] does, and makes sure with [`Migratable::state`] that it is
    /// there.
    ///
    /// A driver that answers without an error, and has the device somewhere else, breaks the header's rules. A user that
    /// takes its word reads the end of what there is now as the end of the state, or says of a stopped device that it
    /// runs.
    fn go_to(&mut self, state: State) -> Result<Option<DataFile>> {
        let opened = self.set_state(state)?;
        let found = self.state()?;
        if found != state {
            return Err(Error::NotReached { device: self.name().to_string(), state, found });
        }
        Ok(opened)
    }

    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: returns the estimated size of the data in STOP_COPY, in bytes.
    fn data_size(&mut self) -> Result<u64>;

    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: opts in to REINIT. Returns `false` if the driver side does not support
    /// it.
    fn enable_precopy_info_v2(&mut self) -> Result<bool>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START over `ranges`; returns the page size of the log in bytes.
    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
    fn dma_logging_stop(&mut self) -> Result<()>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: sets the bits of the pages written since the last report.
    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()>;

    /// Returns what belongs to the device's owner and not to the driver's migration data: a PCI device's configuration
    /// space, and which interrupts are armed. Save it once the device is in a state in which it does not run, and its
    /// owner no longer writes to it.
    ///
    /// `None` for a device without a configuration space; the default, for a device whose regions are out of reach.
    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        Ok(None)
    }

    /// Restores the setup of another device of the same kind: BARs, then capabilities, then the command register with bus
    /// master.
    ///
    /// Restore it once the migration data is loaded and the device is in STOP, before it runs: DMA and interrupts of a
    /// device that continues depend on it. After a reset, restore it at once. Interrupts keep their eventfds, and none
    /// is armed: arm them first, for vfio-pci ignores writes that enable MSI or MSI-X before.
    ///
    /// The default, for a device whose regions are out of reach, does nothing.
    fn restore_setup(&mut self, setup: &DeviceSetup) -> Result<()> {
        let _ = setup;
        Ok(())
    }

    /// Returns the holder of the device's state, such as the process that serves it, in words that tell it apart from any
    /// other, also after a restart. A device that another holder has later may have lost its state.
    ///
    /// `None`, the default, for a device without a holder of its own: its state ends with this process. A holder that
    /// cannot be told from others is [`UNKNOWN_HOLDER`].
    fn holder(&self) -> Option<String> {
        None
    }

    /// Returns the version of the migration region through which the device migrates; `None` for a device with
    /// migration v2, and for one that was not [adapted](crate::region::adapt).
    fn region_version(&self) -> Option<Version> {
        None
    }
}
