//! Messages as plain data: parsed from bytes and written to bytes, without I/O.
//!
//! A message is a [`Header`] and a payload. The payload is a [`Request`] or a [`Reply`]; a failed reply should have
//! only a header. All input comes from a peer: lengths and counts are checked before use, data is borrowed from the
//! input, and a copy is never longer than the input.
//!
//! Numbers have the byte order of the machine, as in the kernel's structures.
//!
//! ```
//! use whimbrel_vfio_user::message::{
//!     Command, Deframer, Kind, Limits, MessageBuffer, RegionAccess, Request,
//! };
//!
//! let limits = Limits::default();
//! let asked = Request::RegionRead(RegionAccess { offset: 0x10, region: 0, count: 4 });
//! let mut out = MessageBuffer::new();
//! out.request(7, false, &asked);
//!
//! let mut deframer = Deframer::new(limits);
//! // Bytes may come in any pieces.
//! for byte in out.as_bytes() {
//!     deframer.room()?[0] = *byte;
//!     deframer.filled(1);
//! }
//! let message = deframer.next_message()?.expect("all of it is there");
//! assert_eq!(message.header.id, 7);
//! assert_eq!(message.header.kind, Kind::Command { no_reply: false });
//! let command = Command::try_from(message.header.command)?;
//! assert_eq!(Request::parse(command, message.payload, limits)?, asked);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![expect(
    clippy::exhaustive_structs,
    reason = "each is the layout of a message, which the specification fixes"
)]

mod buffer;
mod deframer;
mod device;
mod dma;
mod feature;
mod fields;
mod header;
mod irqs;
mod migration_data;
mod region;
mod reply;
mod request;
mod version;

use whimbrel_protocol::Errno;
use whimbrel_protocol::info::ChainError;

pub use self::buffer::MessageBuffer;
pub use self::deframer::{Deframer, Message};
pub use self::device::{
    DeviceInfoReply, IoFdKind, IrqInfoReply, RegionInfoReply, RegionIoFdsReply, SubRegion,
};
pub use self::dma::{BitmapRequest, DirtyBitmap, DmaAccess, DmaAccessModes, DmaMap, DmaUnmap, DmaUnmapReply};
pub use self::feature::{DeviceFeature, LoggingReport, LoggingStart};
pub use self::header::{FrameError, FrameProblem, HEADER, Header, Kind};
pub use self::irqs::SetIrqs;
#[cfg(feature = "client")]
pub(crate) use self::migration_data::DataHead;
pub use self::region::{RegionAccess, WriteMulti, WriteOne};
pub use self::reply::Reply;
pub use self::request::Request;
pub use self::version::Version;

/// Maximum bytes of a message beside its header and its bulk data: the longest fixed part.
const FIXED: usize = 48;

/// Bytes of data that a message may always have, whatever was agreed: enough for the ranges of a log.
const MIN_DATA: usize = 4096;

/// The limits for messages from a peer. A message has at most `max_data_xfer_size` bytes (4096 if that is less) and
/// 64 bytes for its fixed parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum bytes of data in one message; the capability of this name.
    pub max_data_xfer_size: u32,
}

impl Limits {
    /// Returns limits for messages with this much data.
    pub const fn new(max_data_xfer_size: u32) -> Limits {
        Limits { max_data_xfer_size }
    }

    /// Returns the length of the longest message in bytes, with its header.
    pub const fn message(self) -> usize {
        let most = self.max_data_xfer_size as usize;
        HEADER + FIXED + if most < MIN_DATA { MIN_DATA } else { most }
    }
}

impl Default for Limits {
    /// The protocol's default: 1 MiB.
    fn default() -> Limits {
        Limits::new(crate::capabilities::Capabilities::default().max_data_xfer_size)
    }
}

whimbrel_uapi::numbered_enum! {
    /// A command of the protocol or of our extension, by its number.
    #[repr(u16)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    #[non_exhaustive]
    pub enum Command: u16 {
        /// VFIO_USER_VERSION: the first message, which agrees on version and capabilities.
        Version = 1 => "VFIO_USER_VERSION",
        /// VFIO_USER_DMA_MAP.
        DmaMap = 2 => "VFIO_USER_DMA_MAP",
        /// VFIO_USER_DMA_UNMAP.
        DmaUnmap = 3 => "VFIO_USER_DMA_UNMAP",
        /// VFIO_USER_DEVICE_GET_INFO.
        DeviceGetInfo = 4 => "VFIO_USER_DEVICE_GET_INFO",
        /// VFIO_USER_DEVICE_GET_REGION_INFO.
        DeviceGetRegionInfo = 5 => "VFIO_USER_DEVICE_GET_REGION_INFO",
        /// VFIO_USER_DEVICE_GET_REGION_IO_FDS.
        DeviceGetRegionIoFds = 6 => "VFIO_USER_DEVICE_GET_REGION_IO_FDS",
        /// VFIO_USER_DEVICE_GET_IRQ_INFO.
        DeviceGetIrqInfo = 7 => "VFIO_USER_DEVICE_GET_IRQ_INFO",
        /// VFIO_USER_DEVICE_SET_IRQS.
        DeviceSetIrqs = 8 => "VFIO_USER_DEVICE_SET_IRQS",
        /// VFIO_USER_REGION_READ.
        RegionRead = 9 => "VFIO_USER_REGION_READ",
        /// VFIO_USER_REGION_WRITE.
        RegionWrite = 10 => "VFIO_USER_REGION_WRITE",
        /// VFIO_USER_DMA_READ, from the server to the client.
        DmaRead = 11 => "VFIO_USER_DMA_READ",
        /// VFIO_USER_DMA_WRITE, from the server to the client.
        DmaWrite = 12 => "VFIO_USER_DMA_WRITE",
        /// VFIO_USER_DEVICE_RESET.
        DeviceReset = 13 => "VFIO_USER_DEVICE_RESET",
        /// VFIO_USER_REGION_WRITE_MULTI.
        RegionWriteMulti = 15 => "VFIO_USER_REGION_WRITE_MULTI",
        /// VFIO_USER_DEVICE_FEATURE.
        DeviceFeature = 16 => "VFIO_USER_DEVICE_FEATURE",
        /// VFIO_USER_MIG_DATA_READ.
        MigDataRead = 17 => "VFIO_USER_MIG_DATA_READ",
        /// VFIO_USER_MIG_DATA_WRITE.
        MigDataWrite = 18 => "VFIO_USER_MIG_DATA_WRITE",
        /// VFIO_USER_MIG_GET_PRECOPY_INFO, which the specification does not have: available if
        /// [`precopy_info`](crate::MigrationExtensions::precopy_info) is agreed on. Its number is that of the ioctl
        /// VFIO_MIG_GET_PRECOPY_INFO, far from those that later versions may use.
        MigGetPrecopyInfo = 0x3b79 => "VFIO_USER_MIG_GET_PRECOPY_INFO",
    }
}

/// A number that is not a command of the current protocol; 14 (VFIO_USER_DIRTY_PAGES) was one in earlier versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown vfio-user command {0}")]
#[non_exhaustive]
pub struct UnknownCommand(
    /// The number.
    pub u16,
);

impl TryFrom<u16> for Command {
    type Error = UnknownCommand;

    fn try_from(number: u16) -> Result<Command, UnknownCommand> {
        Command::from_number(number).ok_or(UnknownCommand(number))
    }
}

/// An invalid payload.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The payload is shorter than its fixed part, or than its counts announce.
    #[error("payload of {found} bytes is too short: expected {needed}")]
    Short {
        /// Bytes that the payload needs.
        needed: u64,
        /// Bytes of the payload.
        found: usize,
    },
    /// A count does not match the bytes of data.
    #[error("count is {count}, but the message has {found} bytes of data")]
    Count {
        /// The count in the field.
        count: u64,
        /// Bytes of data.
        found: usize,
    },
    /// `argsz` is too small for the smallest reply, or for the request itself.
    #[error("argsz {argsz} is too small: expected at least {least}")]
    Argsz {
        /// The value in the message.
        argsz: u32,
        /// The smallest valid value.
        least: u64,
    },
    /// More data than the agreed max_data_xfer_size.
    #[error("{count} bytes of data exceed max_data_xfer_size {most}")]
    TooMuch {
        /// Bytes requested or sent.
        count: u64,
        /// The agreed limit.
        most: u32,
    },
    /// Flags that are unknown or exclude one another.
    #[error("invalid flags {0:#x}")]
    Flags(u32),
    /// A field with an invalid value.
    #[error("invalid {field} {value:#x}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// The value in the message.
        value: u64,
    },
    /// More ranges than DMA logging accepts.
    #[error("too many ranges for DMA logging: {0}")]
    TooManyRanges(u32),
    /// An invalid capability chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The version data is not valid JSON of the protocol's format.
    #[error("invalid version data: {0}")]
    Json(serde_json::Error),
}

impl From<serde_json::Error> for Malformed {
    fn from(error: serde_json::Error) -> Malformed {
        Malformed::Json(error)
    }
}

impl Malformed {
    /// Returns the errno that the kernel has for such a request.
    pub const fn errno(&self) -> Errno {
        match self {
            Malformed::TooManyRanges(_) => Errno::E2BIG,
            _ => Errno::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests;
