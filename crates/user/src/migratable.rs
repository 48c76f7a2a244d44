//! The part of a device that a migration needs.

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::Info;
use whimbrel_protocol::region::Version;
use whimbrel_protocol::{MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};

use crate::data_file::DataFile;
use crate::error::Result;

/// A device that can be asked about its migration: its state, its data sessions, its features and its reset.
///
/// Requests have the meaning defined by the header. A failed request changes nothing beyond what the header allows, and
/// never affects an open [`DataFile`], which belongs to the caller.
pub trait Migratable: Send {
    /// Returns the name for errors and reports.
    fn name(&self) -> &str;

    /// VFIO_DEVICE_GET_INFO.
    fn info(&mut self) -> Result<Info>;

    /// VFIO_DEVICE_RESET.
    fn reset(&mut self) -> Result<()>;

    /// VFIO_DEVICE_FEATURE with PROBE: whether the device has the feature in these directions (GET, SET or both).
    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool>;

    /// The migration features that the device supports; `None` for a device that cannot migrate.
    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>>;

    /// Returns the current state.
    fn state(&mut self) -> Result<State>;

    /// Brings the device to a state, and returns the data file if this opened a session.
    ///
    /// After an error the device may be in any state on the way; [`Migratable::state`] tells. From ERROR only
    /// [`Migratable::reset`] leads out.
    fn set_state(&mut self, state: State) -> Result<Option<DataFile>>;

    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: an estimate in bytes of the data that STOP_COPY will yield.
    fn data_size(&mut self) -> Result<u64>;

    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: opts into REINIT. `false` if the driver side does not know it.
    fn enable_precopy_info_v2(&mut self) -> Result<bool>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START over `ranges`; returns the page size of the log in bytes.
    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
    fn dma_logging_stop(&mut self) -> Result<()>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: sets the bits of the pages written since the last report.
    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()>;

    /// The version of the migration region through which the device is migrated; `None` for a device with migration
    /// v2, and for one that has not been [adapted](crate::region::adapt).
    fn region_version(&self) -> Option<Version> {
        None
    }
}
