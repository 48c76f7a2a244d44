//! Operations on a device, for errors.

use std::fmt;

use whimbrel_protocol::State;
use whimbrel_uapi::feature::Feature;
use whimbrel_uapi::ioctl::{self, Request};

/// An operation on a device, formatted with the header's names.
///
/// ```
/// use whimbrel_user::{Operation, State};
///
/// let operation = Operation::ReadRegion { index: 0, offset: 0x10 };
/// assert_eq!(operation.to_string(), "read of region 0 at 0x10");
/// let operation = Operation::SetState(State::StopCopy);
/// assert_eq!(operation.to_string(), "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP_COPY");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// A request without arguments to show.
    Ioctl(Request),
    /// VFIO_DEVICE_GET_REGION_INFO of a region.
    RegionInfo(u32),
    /// VFIO_DEVICE_GET_IRQ_INFO of an index.
    IrqInfo(u32),
    /// VFIO_DEVICE_SET_IRQS of an index.
    SetIrqs(u32),
    /// A read of a region.
    ReadRegion {
        /// The region.
        index: u32,
        /// The offset in the region, in bytes.
        offset: u64,
    },
    /// A write to a region.
    WriteRegion {
        /// The region.
        index: u32,
        /// The offset in the region, in bytes.
        offset: u64,
    },
    /// A mapping of a part of a region.
    MapRegion {
        /// The region.
        index: u32,
        /// The offset in the region, in bytes.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// VFIO_DEVICE_FEATURE, GET or SET of a feature.
    Feature(Feature),
    /// VFIO_DEVICE_FEATURE with PROBE.
    Probe(Feature),
    /// A change of the migration state.
    SetState(State),
    /// A request that maps or unmaps memory.
    Memory {
        /// The request.
        request: Request,
        /// The IOVA.
        iova: u64,
    },
    /// A read of the data file.
    ReadData,
    /// A write to the data file.
    WriteData,
    /// VFIO_MIG_GET_PRECOPY_INFO on the data file.
    PrecopyInfo,
    /// Another operation, by the name that its protocol gives it.
    Other(String),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Ioctl(request) => write!(f, "{request}"),
            Operation::RegionInfo(index) => {
                write!(f, "{} of region {index}", ioctl::VFIO_DEVICE_GET_REGION_INFO)
            }
            Operation::IrqInfo(index) => write!(f, "{} of index {index}", ioctl::VFIO_DEVICE_GET_IRQ_INFO),
            Operation::SetIrqs(index) => write!(f, "{} of index {index}", ioctl::VFIO_DEVICE_SET_IRQS),
            Operation::ReadRegion { index, offset } => write!(f, "read of region {index} at {offset:#x}"),
            Operation::WriteRegion { index, offset } => write!(f, "write to region {index} at {offset:#x}"),
            Operation::MapRegion { index, offset, length } => {
                write!(f, "mmap of {length:#x} bytes at {offset:#x} of region {index}")
            }
            Operation::Feature(feature) => write!(f, "{feature}"),
            Operation::Probe(feature) => write!(f, "PROBE of {feature}"),
            Operation::SetState(state) => write!(f, "{} to {state}", Feature::MigDeviceState),
            Operation::Memory { request, iova } => write!(f, "{request} at {iova:#x}"),
            Operation::ReadData => f.write_str("read of data_fd"),
            Operation::WriteData => f.write_str("write to data_fd"),
            Operation::PrecopyInfo => write!(f, "{}", ioctl::VFIO_MIG_GET_PRECOPY_INFO),
            Operation::Other(name) => f.write_str(name),
        }
    }
}

impl From<Request> for Operation {
    fn from(request: Request) -> Operation {
        Operation::Ioctl(request)
    }
}

impl From<Feature> for Operation {
    fn from(feature: Feature) -> Operation {
        Operation::Feature(feature)
    }
}

impl From<String> for Operation {
    fn from(name: String) -> Operation {
        Operation::Other(name)
    }
}

impl From<&str> for Operation {
    fn from(name: &str) -> Operation {
        Operation::Other(name.to_owned())
    }
}
