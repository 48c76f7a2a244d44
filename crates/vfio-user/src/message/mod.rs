//! Messages as plain data: parsed from bytes and written to bytes, without I/O.
//!
//! A message is a [`Header`] and a payload. What follows the header is a [`Request`] or a [`Reply`], and a
//! reply that failed should have only a header. Whatever is parsed came from a peer: lengths and counts are checked
//! before they are used, data is borrowed from the bytes given, and what is copied is never longer than
//! those.
//!
//! Numbers are in the byte order of the machine, as in the kernel's own structures.
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

use std::fmt;

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

/// Bytes that a message may have besides its header and its bulk data: the fixed part of the longest.
const FIXED: usize = 48;

/// Bytes of data that a message may have whatever was agreed: as many as the ranges of a log take.
const MIN_DATA: usize = 4096;

/// What a peer may send at most. A message is never longer than `max_data_xfer_size`, or 4096 bytes if that
/// is more, and 64 bytes for its fixed parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of data in one message; the capability of this name.
    pub max_data_xfer_size: u32,
}

impl Limits {
    /// Bytes of the longest message, with its header.
    pub const fn message(self) -> usize {
        let most = self.max_data_xfer_size as usize;
        HEADER + FIXED + if most < MIN_DATA { MIN_DATA } else { most }
    }
}

impl Default for Limits {
    /// The protocol's own: 1 MiB.
    fn default() -> Limits {
        Limits { max_data_xfer_size: crate::capabilities::Capabilities::default().max_data_xfer_size }
    }
}

/// A command of the protocol or of its extension, by its number.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// VFIO_USER_VERSION: the first message, which agrees on version and capabilities.
    Version = 1,
    /// VFIO_USER_DMA_MAP.
    DmaMap = 2,
    /// VFIO_USER_DMA_UNMAP.
    DmaUnmap = 3,
    /// VFIO_USER_DEVICE_GET_INFO.
    DeviceGetInfo = 4,
    /// VFIO_USER_DEVICE_GET_REGION_INFO.
    DeviceGetRegionInfo = 5,
    /// VFIO_USER_DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds = 6,
    /// VFIO_USER_DEVICE_GET_IRQ_INFO.
    DeviceGetIrqInfo = 7,
    /// VFIO_USER_DEVICE_SET_IRQS.
    DeviceSetIrqs = 8,
    /// VFIO_USER_REGION_READ.
    RegionRead = 9,
    /// VFIO_USER_REGION_WRITE.
    RegionWrite = 10,
    /// VFIO_USER_DMA_READ, from the server to the client.
    DmaRead = 11,
    /// VFIO_USER_DMA_WRITE, from the server to the client.
    DmaWrite = 12,
    /// VFIO_USER_DEVICE_RESET.
    DeviceReset = 13,
    /// VFIO_USER_REGION_WRITE_MULTI.
    RegionWriteMulti = 15,
    /// VFIO_USER_DEVICE_FEATURE.
    DeviceFeature = 16,
    /// VFIO_USER_MIG_DATA_READ.
    MigDataRead = 17,
    /// VFIO_USER_MIG_DATA_WRITE.
    MigDataWrite = 18,
    /// VFIO_USER_MIG_GET_PRECOPY_INFO, which is no command of the text: it is understood where
    /// [`precopy_info`](crate::MigrationExtensions::precopy_info) is agreed on. Its number is the one of the
    /// ioctl VFIO_MIG_GET_PRECOPY_INFO, far from those that later texts may use.
    MigGetPrecopyInfo = 0x3b79,
}

impl Command {
    /// Every command.
    pub const ALL: [Command; 18] = [
        Command::Version,
        Command::DmaMap,
        Command::DmaUnmap,
        Command::DeviceGetInfo,
        Command::DeviceGetRegionInfo,
        Command::DeviceGetRegionIoFds,
        Command::DeviceGetIrqInfo,
        Command::DeviceSetIrqs,
        Command::RegionRead,
        Command::RegionWrite,
        Command::DmaRead,
        Command::DmaWrite,
        Command::DeviceReset,
        Command::RegionWriteMulti,
        Command::DeviceFeature,
        Command::MigDataRead,
        Command::MigDataWrite,
        Command::MigGetPrecopyInfo,
    ];

    /// The number in a header.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The protocol's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Command::Version => "VFIO_USER_VERSION",
            Command::DmaMap => "VFIO_USER_DMA_MAP",
            Command::DmaUnmap => "VFIO_USER_DMA_UNMAP",
            Command::DeviceGetInfo => "VFIO_USER_DEVICE_GET_INFO",
            Command::DeviceGetRegionInfo => "VFIO_USER_DEVICE_GET_REGION_INFO",
            Command::DeviceGetRegionIoFds => "VFIO_USER_DEVICE_GET_REGION_IO_FDS",
            Command::DeviceGetIrqInfo => "VFIO_USER_DEVICE_GET_IRQ_INFO",
            Command::DeviceSetIrqs => "VFIO_USER_DEVICE_SET_IRQS",
            Command::RegionRead => "VFIO_USER_REGION_READ",
            Command::RegionWrite => "VFIO_USER_REGION_WRITE",
            Command::DmaRead => "VFIO_USER_DMA_READ",
            Command::DmaWrite => "VFIO_USER_DMA_WRITE",
            Command::DeviceReset => "VFIO_USER_DEVICE_RESET",
            Command::RegionWriteMulti => "VFIO_USER_REGION_WRITE_MULTI",
            Command::DeviceFeature => "VFIO_USER_DEVICE_FEATURE",
            Command::MigDataRead => "VFIO_USER_MIG_DATA_READ",
            Command::MigDataWrite => "VFIO_USER_MIG_DATA_WRITE",
            Command::MigGetPrecopyInfo => "VFIO_USER_MIG_GET_PRECOPY_INFO",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A number that is no command of the protocol, or of an earlier one (14, VFIO_USER_DIRTY_PAGES).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no command of vfio-user")]
pub struct UnknownCommand(
    /// The number.
    pub u16,
);

impl TryFrom<u16> for Command {
    type Error = UnknownCommand;

    fn try_from(number: u16) -> Result<Command, UnknownCommand> {
        let found = Command::ALL.into_iter().find(|command| command.number() == number);
        found.ok_or(UnknownCommand(number))
    }
}

/// A payload that is no valid one of its command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// There are fewer bytes than the fixed part has, or than its counts announce.
    #[error("the payload has {found} bytes, and {needed} are needed")]
    Short {
        /// Bytes that the payload must have.
        needed: u64,
        /// Bytes it has.
        found: usize,
    },
    /// A count of bytes and the bytes themselves disagree.
    #[error("{count} bytes of data are announced, and {found} are there")]
    Count {
        /// What a field says.
        count: u64,
        /// What follows.
        found: usize,
    },
    /// `argsz` leaves no room for the least reply, or is smaller than the request itself.
    #[error("argsz is {argsz}, and must be at least {least}")]
    Argsz {
        /// What it is.
        argsz: u32,
        /// What it has to be.
        least: u64,
    },
    /// More data than the agreed max_data_xfer_size.
    #[error("{count} bytes of data are more than the {most} of max_data_xfer_size")]
    TooMuch {
        /// What is asked for or sent.
        count: u64,
        /// What was agreed.
        most: u32,
    },
    /// Flags that do not exist, or that exclude one another.
    #[error("flags {0:#x} are not valid")]
    Flags(u32),
    /// A field that has no such value.
    #[error("{field} cannot be {value:#x}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// More ranges than DMA logging takes.
    #[error("{0} ranges are more than DMA logging takes")]
    TooManyRanges(u32),
    /// A capability chain that leads nowhere.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The version's data is no JSON of the protocol's form.
    #[error("the version data is not valid: {0}")]
    Json(serde_json::Error),
}

impl From<serde_json::Error> for Malformed {
    fn from(error: serde_json::Error) -> Malformed {
        Malformed::Json(error)
    }
}

impl Malformed {
    /// What the kernel answers to such a request.
    pub const fn errno(&self) -> Errno {
        match self {
            Malformed::TooManyRanges(_) => Errno::E2BIG,
            _ => Errno::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests;
