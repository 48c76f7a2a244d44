//! The payload of each command.

use whimbrel_uapi::migration::PrecopyInfo;

use super::device::{self, parse_indexed, put_indexed};
use super::{
    Command, DeviceFeature, DmaAccess, DmaMap, DmaUnmap, Limits, Malformed, MessageBuffer, RegionAccess,
    SetIrqs, Version, WriteMulti, migration_data,
};

/// A command with its arguments. `argsz` is the size of the sender's buffer for the reply's payload, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request<'a> {
    /// VFIO_USER_VERSION.
    Version(Version),
    /// VFIO_USER_DMA_MAP.
    DmaMap(DmaMap),
    /// VFIO_USER_DMA_UNMAP.
    DmaUnmap(DmaUnmap),
    /// VFIO_USER_DEVICE_GET_INFO.
    DeviceGetInfo {
        /// Room for the reply.
        argsz: u32,
    },
    /// VFIO_USER_DEVICE_GET_REGION_INFO.
    DeviceGetRegionInfo {
        /// Room for the reply.
        argsz: u32,
        /// Index of the region.
        index: u32,
    },
    /// VFIO_USER_DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds {
        /// Room for the reply.
        argsz: u32,
        /// Index of the region.
        index: u32,
    },
    /// VFIO_USER_DEVICE_GET_IRQ_INFO.
    DeviceGetIrqInfo {
        /// Room for the reply.
        argsz: u32,
        /// Index of the interrupts.
        index: u32,
    },
    /// VFIO_USER_DEVICE_SET_IRQS.
    DeviceSetIrqs(SetIrqs<'a>),
    /// VFIO_USER_REGION_READ.
    RegionRead(RegionAccess),
    /// VFIO_USER_REGION_WRITE, with as much data as its count says.
    RegionWrite(RegionAccess, &'a [u8]),
    /// VFIO_USER_DMA_READ.
    DmaRead(DmaAccess),
    /// VFIO_USER_DMA_WRITE.
    DmaWrite {
        /// First IOVA.
        iova: u64,
        /// The bytes to write.
        data: &'a [u8],
    },
    /// VFIO_USER_DEVICE_RESET.
    DeviceReset,
    /// VFIO_USER_REGION_WRITE_MULTI.
    RegionWriteMulti(WriteMulti<'a>),
    /// VFIO_USER_DEVICE_FEATURE.
    DeviceFeature(DeviceFeature<'a>),
    /// VFIO_USER_MIG_DATA_READ.
    MigDataRead {
        /// Bytes asked for.
        size: u32,
    },
    /// VFIO_USER_MIG_DATA_WRITE.
    MigDataWrite {
        /// The next bytes of the device's state.
        data: &'a [u8],
    },
    /// VFIO_USER_MIG_GET_PRECOPY_INFO. What it asks is in `argsz` and `flags`, and judged by the device.
    MigGetPrecopyInfo(PrecopyInfo),
}

impl<'a> Request<'a> {
    /// Reads what follows the header of a command. Bytes after what the command needs are ignored, except
    /// where they are data.
    pub fn parse(command: Command, payload: &'a [u8], limits: Limits) -> Result<Request<'a>, Malformed> {
        Ok(match command {
            Command::Version => Request::Version(Version::parse(payload)?),
            Command::DmaMap => Request::DmaMap(DmaMap::parse(payload)?),
            Command::DmaUnmap => Request::DmaUnmap(DmaUnmap::parse(payload, limits)?),
            Command::DeviceGetInfo => Request::DeviceGetInfo { argsz: device::parse_info(payload)? },
            Command::DeviceGetRegionInfo => {
                let (argsz, index) = parse_indexed(payload, device::REGION)?;
                Request::DeviceGetRegionInfo { argsz, index }
            }
            Command::DeviceGetRegionIoFds => {
                let (argsz, index) = parse_indexed(payload, device::IO_FDS)?;
                Request::DeviceGetRegionIoFds { argsz, index }
            }
            Command::DeviceGetIrqInfo => {
                let (argsz, index) = parse_indexed(payload, device::IRQ)?;
                Request::DeviceGetIrqInfo { argsz, index }
            }
            Command::DeviceSetIrqs => Request::DeviceSetIrqs(SetIrqs::parse(payload)?),
            Command::RegionRead => Request::RegionRead(RegionAccess::parse(payload, limits)?),
            Command::RegionWrite => {
                let (access, data) = RegionAccess::parse_with_data(payload, limits)?;
                Request::RegionWrite(access, data)
            }
            Command::DmaRead => Request::DmaRead(DmaAccess::parse(payload, limits)?),
            Command::DmaWrite => {
                let (iova, data) = DmaAccess::parse_with_data(payload, limits)?;
                Request::DmaWrite { iova, data }
            }
            Command::DeviceReset => Request::DeviceReset,
            Command::RegionWriteMulti => Request::RegionWriteMulti(WriteMulti::parse(payload)?),
            Command::DeviceFeature => Request::DeviceFeature(DeviceFeature::parse(payload)?),
            Command::MigDataRead => {
                Request::MigDataRead { size: migration_data::parse_read(payload, limits)? }
            }
            Command::MigDataWrite => {
                Request::MigDataWrite { data: migration_data::parse_data(payload, limits)? }
            }
            Command::MigGetPrecopyInfo => {
                Request::MigGetPrecopyInfo(migration_data::parse_precopy_info(payload)?)
            }
        })
    }

    /// Its command.
    pub const fn command(&self) -> Command {
        match self {
            Request::Version(_) => Command::Version,
            Request::DmaMap(_) => Command::DmaMap,
            Request::DmaUnmap(_) => Command::DmaUnmap,
            Request::DeviceGetInfo { .. } => Command::DeviceGetInfo,
            Request::DeviceGetRegionInfo { .. } => Command::DeviceGetRegionInfo,
            Request::DeviceGetRegionIoFds { .. } => Command::DeviceGetRegionIoFds,
            Request::DeviceGetIrqInfo { .. } => Command::DeviceGetIrqInfo,
            Request::DeviceSetIrqs(_) => Command::DeviceSetIrqs,
            Request::RegionRead(_) => Command::RegionRead,
            Request::RegionWrite(..) => Command::RegionWrite,
            Request::DmaRead(_) => Command::DmaRead,
            Request::DmaWrite { .. } => Command::DmaWrite,
            Request::DeviceReset => Command::DeviceReset,
            Request::RegionWriteMulti(_) => Command::RegionWriteMulti,
            Request::DeviceFeature(_) => Command::DeviceFeature,
            Request::MigDataRead { .. } => Command::MigDataRead,
            Request::MigDataWrite { .. } => Command::MigDataWrite,
            Request::MigGetPrecopyInfo(_) => Command::MigGetPrecopyInfo,
        }
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        match self {
            Request::Version(version) => version.put(out),
            Request::DmaMap(map) => map.put(out),
            Request::DmaUnmap(unmap) => unmap.put(out),
            Request::DeviceGetInfo { argsz } => device::put_info(*argsz, out),
            Request::DeviceGetRegionInfo { argsz, index } => {
                put_indexed(*argsz, *index, device::REGION, out);
            }
            Request::DeviceGetRegionIoFds { argsz, index } => {
                put_indexed(*argsz, *index, device::IO_FDS, out);
            }
            Request::DeviceGetIrqInfo { argsz, index } => put_indexed(*argsz, *index, device::IRQ, out),
            Request::DeviceSetIrqs(set) => set.put(out),
            Request::RegionRead(access) => access.put(out),
            Request::RegionWrite(access, data) => {
                access.put(out);
                out.put(data);
            }
            Request::DmaRead(access) => access.put(out),
            Request::DmaWrite { iova, data } => {
                DmaAccess { iova: *iova, count: data.len() as u64 }.put(out);
                out.put(data);
            }
            Request::DeviceReset => {}
            Request::RegionWriteMulti(writes) => writes.put(out),
            Request::DeviceFeature(feature) => feature.put(out),
            Request::MigDataRead { size } => migration_data::put_read(*size, out),
            Request::MigDataWrite { data } => migration_data::put_data(data, out),
            Request::MigGetPrecopyInfo(info) => migration_data::put_precopy_info(info, out),
        }
    }
}
