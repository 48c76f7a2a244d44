//! The payload of the reply to each command that was done.

use whimbrel_uapi::migration::PrecopyInfo;

use super::fields::Fields;
use super::{
    Command, DeviceFeature, DeviceInfoReply, DmaAccess, DmaUnmapReply, IrqInfoReply, Limits, Malformed,
    MessageBuffer, RegionAccess, RegionInfoReply, RegionIoFdsReply, Version, migration_data,
};

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply<'a> {
    /// To VFIO_USER_VERSION: the agreed version and capabilities.
    Version(Version),
    /// To VFIO_USER_DMA_MAP.
    DmaMap,
    /// To VFIO_USER_DMA_UNMAP.
    DmaUnmap(DmaUnmapReply<'a>),
    /// To VFIO_USER_DEVICE_GET_INFO.
    DeviceGetInfo(DeviceInfoReply),
    /// To VFIO_USER_DEVICE_GET_REGION_INFO.
    DeviceGetRegionInfo(RegionInfoReply),
    /// To VFIO_USER_DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds(RegionIoFdsReply),
    /// To VFIO_USER_DEVICE_GET_IRQ_INFO.
    DeviceGetIrqInfo(IrqInfoReply),
    /// To VFIO_USER_DEVICE_SET_IRQS.
    DeviceSetIrqs,
    /// To VFIO_USER_REGION_READ, with as much data as its count says.
    RegionRead(RegionAccess, &'a [u8]),
    /// To VFIO_USER_REGION_WRITE: the part written.
    RegionWrite(RegionAccess),
    /// To VFIO_USER_DMA_READ.
    DmaRead {
        /// First IOVA.
        iova: u64,
        /// The data read.
        data: &'a [u8],
    },
    /// To VFIO_USER_DMA_WRITE.
    DmaWrite(DmaAccess),
    /// To VFIO_USER_DEVICE_RESET.
    DeviceReset,
    /// To VFIO_USER_REGION_WRITE_MULTI.
    RegionWriteMulti {
        /// The number of writes done.
        completed: u64,
    },
    /// To VFIO_USER_DEVICE_FEATURE.
    DeviceFeature(DeviceFeature<'a>),
    /// To VFIO_USER_MIG_DATA_READ.
    MigDataRead {
        /// The next bytes of the device's state. A short read is the end; with
        /// [`read_end`](crate::MigrationExtensions::read_end) only an empty one is.
        data: &'a [u8],
    },
    /// To VFIO_USER_MIG_DATA_WRITE.
    MigDataWrite,
    /// To VFIO_USER_MIG_GET_PRECOPY_INFO.
    MigGetPrecopyInfo(PrecopyInfo),
}

impl<'a> Reply<'a> {
    /// Reads what follows the header of the reply to `command`.
    pub fn parse(command: Command, payload: &'a [u8], limits: Limits) -> Result<Reply<'a>, Malformed> {
        Ok(match command {
            Command::Version => Reply::Version(Version::parse(payload)?),
            Command::DmaMap => Reply::DmaMap,
            Command::DmaUnmap => Reply::DmaUnmap(DmaUnmapReply::parse(payload, limits)?),
            Command::DeviceGetInfo => Reply::DeviceGetInfo(DeviceInfoReply::parse(payload)?),
            Command::DeviceGetRegionInfo => Reply::DeviceGetRegionInfo(RegionInfoReply::parse(payload)?),
            Command::DeviceGetRegionIoFds => Reply::DeviceGetRegionIoFds(RegionIoFdsReply::parse(payload)?),
            Command::DeviceGetIrqInfo => Reply::DeviceGetIrqInfo(IrqInfoReply::parse(payload)?),
            Command::DeviceSetIrqs => Reply::DeviceSetIrqs,
            Command::RegionRead => {
                let (access, data) = RegionAccess::parse_with_data(payload, limits)?;
                Reply::RegionRead(access, data)
            }
            Command::RegionWrite => Reply::RegionWrite(RegionAccess::parse(payload, limits)?),
            Command::DmaRead => {
                let (iova, data) = DmaAccess::parse_with_data(payload, limits)?;
                Reply::DmaRead { iova, data }
            }
            Command::DmaWrite => Reply::DmaWrite(DmaAccess::parse_written(payload, limits)?),
            Command::DeviceReset => Reply::DeviceReset,
            Command::RegionWriteMulti => {
                Reply::RegionWriteMulti { completed: Fields::of(payload, 8)?.u64()? }
            }
            Command::DeviceFeature => Reply::DeviceFeature(DeviceFeature::parse(payload)?),
            Command::MigDataRead => {
                Reply::MigDataRead { data: migration_data::parse_read_data(payload, limits)? }
            }
            Command::MigDataWrite => Reply::MigDataWrite,
            Command::MigGetPrecopyInfo => {
                Reply::MigGetPrecopyInfo(migration_data::parse_precopy_info(payload)?)
            }
        })
    }

    /// Returns the command of the reply.
    pub const fn command(&self) -> Command {
        match self {
            Reply::Version(_) => Command::Version,
            Reply::DmaMap => Command::DmaMap,
            Reply::DmaUnmap(_) => Command::DmaUnmap,
            Reply::DeviceGetInfo(_) => Command::DeviceGetInfo,
            Reply::DeviceGetRegionInfo(_) => Command::DeviceGetRegionInfo,
            Reply::DeviceGetRegionIoFds(_) => Command::DeviceGetRegionIoFds,
            Reply::DeviceGetIrqInfo(_) => Command::DeviceGetIrqInfo,
            Reply::DeviceSetIrqs => Command::DeviceSetIrqs,
            Reply::RegionRead(..) => Command::RegionRead,
            Reply::RegionWrite(_) => Command::RegionWrite,
            Reply::DmaRead { .. } => Command::DmaRead,
            Reply::DmaWrite(_) => Command::DmaWrite,
            Reply::DeviceReset => Command::DeviceReset,
            Reply::RegionWriteMulti { .. } => Command::RegionWriteMulti,
            Reply::DeviceFeature(_) => Command::DeviceFeature,
            Reply::MigDataRead { .. } => Command::MigDataRead,
            Reply::MigDataWrite => Command::MigDataWrite,
            Reply::MigGetPrecopyInfo(_) => Command::MigGetPrecopyInfo,
        }
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        match self {
            Reply::Version(version) => version.put(out),
            Reply::DmaUnmap(unmap) => unmap.put(out),
            Reply::DeviceGetInfo(info) => info.put(out),
            Reply::DeviceGetRegionInfo(region) => region.put(out),
            Reply::DeviceGetRegionIoFds(fds) => fds.put(out),
            Reply::DeviceGetIrqInfo(irq) => irq.put(out),
            Reply::RegionRead(access, data) => {
                access.put(out);
                out.put(data);
            }
            Reply::RegionWrite(access) => access.put(out),
            Reply::DmaRead { iova, data } => {
                DmaAccess { iova: *iova, count: data.len() as u64 }.put(out);
                out.put(data);
            }
            Reply::DmaWrite(access) => access.put(out),
            Reply::RegionWriteMulti { completed } => out.put_u64(*completed),
            Reply::DeviceFeature(feature) => feature.put(out),
            Reply::MigDataRead { data } => migration_data::put_data(data, out),
            Reply::MigGetPrecopyInfo(info) => migration_data::put_precopy_info(info, out),
            Reply::DmaMap | Reply::DeviceSetIrqs | Reply::DeviceReset | Reply::MigDataWrite => {}
        }
    }
}
