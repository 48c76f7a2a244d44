//! Devices that migrate through a region: drivers of kernels 5.8 to 5.17 (v1), and those of the draft of 2019.
//!
//! [`adapt`] looks for the region (its capability TYPE is 3/1) on a device without migration v2 and makes it move as one
//! with it: [`Device::migration_flags`] is STOP_COPY with PRE_COPY, [`Device::set_state`] writes `device_state`, and a
//! [`DataFile`](crate::DataFile) carries what lies in the data section. Which accesses that takes is decided by
//! [`whimbrel_protocol::region::User`]; here they meet a real device.
//!
//! # v1 or the draft
//!
//! Both regions have the same type and subtype, and nothing in them says which text the device follows: the first 32
//! bytes are the same, and no access behind them is an error in one and none in the other on every device. So
//! [`adapt`] takes a region for v1, which is what kernels had, and [`adapt_as`] takes the caller's word. To take the
//! draft's region for one of v1 costs its log of dirty pages: all memory is sent again once the device has stopped. The
//! other way round, a v1 device could be believed that says nothing of its dirty pages, and memory would be lost; hence no
//! guess leads there, and a region that cannot be the draft's is refused: one whose data begin within the 64 bytes of the
//! draft's structure.
//!
//! # Where a region is not v2
//!
//! - There are no P2P states.
//! - `device_state` is written once where v1's text draws the change (from running to resuming, say), else step by step
//!   along v2's path.
//! - From resuming the text draws no change but to running. A device that refuses STOP there is left in resuming, where
//!   it does not work either; whether it takes its state is then known only when it is to run.
//! - [`Device::data_size`] is known only while the device is saved.
//! - Dirty pages are told by the draft's region, or, for v1, by what the device's memory is mapped through, where that
//!   can tell ([`Device::has_memory_log`]).
//! - Data come in transactions. A v1 device is to get them as they were given, which
//!   [`DataFile::write_piece`](crate::DataFile::write_piece) is for.
//!
//! ```
//! use whimbrel_models::Model;
//! use whimbrel_user::{Device, Local, MigrationFlags, SavingRead, State, Version, region};
//!
//! let model: Model = "serial?protocol=v1".parse()?;
//! let mut device: Box<dyn Device> = Box::new(Local::new(model.open("serial 0")?.device));
//! assert_eq!(device.migration_flags()?, None);
//!
//! let mut device = region::adapt(device)?;
//! assert_eq!(device.migration_flags()?, Some(MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY));
//! assert_eq!(device.region_version(), Some(Version::V1));
//! let mut data = device.set_state(State::StopCopy)?.expect("a new session");
//! let mut buffer = [0; 4096];
//! assert_eq!(data.read(State::StopCopy, &mut buffer)?, SavingRead::Data(60));
//! assert!(data.ends_transaction());
//! assert_eq!(data.read(State::StopCopy, &mut buffer)?, SavingRead::End);
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

/// As many regions of a device are looked at.
const MOST_REGIONS: u32 = 1024;

/// The device as one of migration v2, if it has no such migration itself and a migration region; else the device as it
/// is. The region is taken for one of v1.
pub fn adapt(device: Box<dyn Device>) -> Result<Box<dyn Device>> {
    adapt_as(device, Version::V1)
}

/// As [`adapt`], for a region that follows this text.
pub fn adapt_as(device: Box<dyn Device>, version: Version) -> Result<Box<dyn Device>> {
    match adapt_or_keep(device, version) {
        (device, None) => Ok(device),
        (_, Some(error)) => Err(error),
    }
}

/// As [`adapt_as`], to look at a device whatever is wrong with it: one that cannot be adapted comes back as it is, with
/// the reason.
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

/// The migration region of a device without migration v2, if there is one.
fn view(device: &mut dyn Device, version: Version) -> Result<Option<(u32, View)>> {
    if device.migration_flags()?.is_some() {
        return Ok(None);
    }
    let Some((index, region)) = find(device)? else { return Ok(None) };
    let view = View::new(version, &region).map_err(|error| Error::Answer {
        device: device.name().to_string(),
        request: format!("VFIO_DEVICE_GET_REGION_INFO of region {index}"),
        what: error.to_string(),
    })?;
    Ok(Some((index, view)))
}

/// The region with the capability TYPE of migration, and its index.
fn find(device: &mut dyn Device) -> Result<Option<(u32, Region)>> {
    let migration = Capability::Type {
        region_type: VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
        subtype: VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
    };
    let count = device.info()?.num_regions.min(MOST_REGIONS);
    // An index whose region is not there is answered with an error by some drivers.
    let mut regions = (0..count).filter_map(|index| Some((index, device.region_info(index).ok()?)));
    Ok(regions.find(|(_, region)| region.capabilities.contains(&migration)))
}
