//! Devices that migrate through a region: drivers of kernels 5.8 to 5.17 (v1), and of the draft of 2019.
//!
//! [`adapt`] looks for the region (its capability TYPE is 3/1) on a device without migration v2 and gives it the
//! interface of v2: [`Migratable::migration_flags`](crate::Migratable::migration_flags) is STOP_COPY with PRE_COPY,
//! [`Migratable::set_state`](crate::Migratable::set_state) writes `device_state`, and a [`DataFile`](crate::DataFile) transfers the data section. [`whimbrel_protocol::region::User`]
//! decides on the accesses; this module makes them on a real device.
//!
//! # v1 or the draft
//!
//! Both regions have the same type and subtype and do not report their version: the first 32 bytes are the same, and no
//! later access fails reliably in only one of them. So [`adapt`] assumes v1, the version in released kernels, and
//! [`adapt_as`] takes the version from the caller. Treating the draft's region as v1 costs its dirty log: all memory is
//! resent after the stop. The opposite mistake would lose memory, because a v1 device does not report dirty pages; so
//! the draft is never assumed, and a region whose data begin within the 64 bytes of the draft's structure is refused as
//! the draft's.
//!
//! # Where a region is not v2
//!
//! - There are no P2P states.
//! - `device_state` is written once for a change in v1's diagram (such as running to resuming), else step by step along
//!   v2's path.
//! - From resuming the diagram only leads to running. A device that refuses STOP there is left in resuming, where it
//!   does not run either; an invalid state is then detected only when it must run.
//! - [`Migratable::data_size`](crate::Migratable::data_size) is known only while the device is saved.
//! - Dirty pages are reported by the draft's region, or, for v1, by the address space, if it has a log
//!   ([`DmaMap::dirty_log`](crate::DmaMap::dirty_log)).
//! - Data is divided into transactions, which a v1 device must get unchanged: use
//!   [`DataFile::write_piece`](crate::DataFile::write_piece).
//!
//! ```
//! use whimbrel_models::Model;
//! use whimbrel_user::{Device, Local, Migratable, MigrationFlags, SavingRead, State, Version, region};
//!
//! let model: Model = "serial?protocol=v1".parse()?;
//! let mut device: Box<dyn Device> = Box::new(Local::new(model.open("serial 0")?));
//! assert_eq!(device.migration_flags()?, None);
//!
//! let mut device = region::adapt(device)?;
//! assert_eq!(device.migration_flags()?, Some(MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY));
//! assert_eq!(device.region_version(), Some(Version::V1));
//! let mut data = device.go_to(State::StopCopy)?.expect("a new session");
//! let mut buffer = [0; 4096];
//! assert_eq!(data.read(&mut buffer)?, SavingRead::Data(60));
//! assert!(data.ends_transaction());
//! assert_eq!(data.read(&mut buffer)?, SavingRead::End);
//! device.go_to(State::Running)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod half;
mod session;

use whimbrel_protocol::info::{Capability, Region};
use whimbrel_protocol::region::{Version, View};
use whimbrel_uapi::device::{
    VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
};

use self::device::RegionDevice;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::operation::Operation;

/// Maximum number of regions that are searched.
const MAX_REGIONS: u32 = 1024;

/// Returns the device with the interface of migration v2, if it has a v1 migration region and no migration v2; else the
/// unchanged device.
pub fn adapt(device: Box<dyn Device>) -> Result<Box<dyn Device>> {
    adapt_as(device, Version::V1)
}

/// Adapts like [`adapt`], for a region of this version.
pub fn adapt_as(device: Box<dyn Device>, version: Version) -> Result<Box<dyn Device>> {
    match adapt_or_keep(device, version) {
        (device, None) => Ok(device),
        (_, Some(error)) => Err(error),
    }
}

/// Adapts like [`adapt_as`], but returns a device that cannot be adapted unchanged, with the reason.
pub fn adapt_or_keep(mut device: Box<dyn Device>, version: Version) -> (Box<dyn Device>, Option<Error>) {
    match view(&mut *device, version) {
        Ok(None) => (device, None),
        Ok(Some((index, view))) => match RegionDevice::new(device, index, view) {
            Ok(adapted) => (Box::new(adapted), None),
            Err((device, error)) => (device, Some(error)),
        },
        Err(error) => (device, Some(error)),
    }
}

/// Returns the migration region of a device without migration v2, if any.
fn view(device: &mut dyn Device, version: Version) -> Result<Option<(u32, View)>> {
    if device.migration_flags()?.is_some() {
        return Ok(None);
    }
    let Some((index, region)) = find(device)? else { return Ok(None) };
    let view = View::new(version, &region)
        .map_err(|error| Error::answer(device.name(), Operation::RegionInfo(index), error))?;
    Ok(Some((index, view)))
}

/// Returns the region with the capability TYPE of migration, and its index.
fn find(device: &mut dyn Device) -> Result<Option<(u32, Region)>> {
    let migration = Capability::Type {
        region_type: VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
        subtype: VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
    };
    let count = device.info()?.num_regions.min(MAX_REGIONS);
    // Some drivers return an error for an index without a region.
    let mut regions = (0..count).filter_map(|index| Some((index, device.region_info(index).ok()?)));
    Ok(regions.find(|(_, region)| region.capabilities.contains(&migration)))
}
