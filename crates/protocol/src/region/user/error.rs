//! Errors of a request to a migration region.

use super::super::Phase;
use crate::Errno;

/// A failed request to a device with a migration region.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// An access failed. The device's state has not changed.
    #[error("{access} of {field} in the migration region failed: {errno}")]
    Access {
        /// `read` or `write`.
        access: &'static str,
        /// The field, or `the data section`.
        field: &'static str,
        /// The device's answer.
        errno: Errno,
    },
    /// The device did not change its state. `now` is its phase afterwards, which is unknown for the draft
    /// until it is read.
    #[error(
        "changing the device to {to} failed: {errno}{}",
        now.map_or(String::new(), |now| format!("; it is in {now}"))
    )]
    Refused {
        /// The requested phase.
        to: Phase,
        /// The errno of the write.
        errno: Errno,
        /// The device's phase now, if known.
        now: Option<Phase>,
    },
    /// The device is in v1's error state: only a reset (VFIO_DEVICE_RESET) leads out.
    #[error(
        "the device is in the error state{}; reset it to recover",
        errno.map_or(String::new(), |errno| format!(" ({errno})"))
    )]
    NeedsReset {
        /// The errno of the write that caused the error state; `None` if the device was in it before.
        errno: Option<Errno>,
    },
    /// The device did not change its state, and its state cannot be read.
    #[error(
        "changing the device to {to} failed: {errno}; reading its state failed: {reading}; reset it to recover"
    )]
    Unknown {
        /// The requested phase.
        to: Phase,
        /// The errno of the write.
        errno: Errno,
        /// The errno of the read after the write.
        reading: Errno,
    },
    /// The register holds an invalid state.
    #[error("the device reports an invalid device_state: {0:#x}")]
    State(u32),
    /// Data would lie outside the data section.
    #[error(
        "the device places {bytes} bytes at {offset:#x}, outside its migration region of {size:#x} bytes"
    )]
    Outside {
        /// The value of `data_offset`.
        offset: u64,
        /// Number of bytes there; 0 if not known yet.
        bytes: u64,
        /// Size of the region.
        size: u64,
    },
    /// Mapped data does not begin at a page boundary, as v1 requires.
    #[error("the device places mapped data at {0:#x}, which is not page-aligned")]
    Unaligned(u64),
    /// `data_offset` changed between two reads of one iteration.
    #[error("the device moved its data from {first:#x} to {second:#x} during a read")]
    Moved {
        /// The first answer.
        first: u64,
        /// The second.
        second: u64,
    },
    /// A transaction or a bitmap exceeds the user's limit.
    #[error("the device offers {bytes} bytes at once, more than the limit of {most}")]
    TooLarge {
        /// The offered size in bytes.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// A transaction does not fit the data section. Splitting it would violate the rule that it keeps the
    /// size it had at the source.
    #[error("a transaction of {bytes} bytes does not fit the {room} bytes of the destination's data section")]
    NoRoom {
        /// Bytes of the transaction.
        bytes: u64,
        /// Bytes of the data section.
        room: u64,
    },
    /// The stopped device reports pending data and gives none, so the request would never end.
    #[error("the device reports {0} pending bytes in stop-and-copy and gives none")]
    Stalled(u64),
    /// The device did not accept an earlier transaction: its state is incomplete.
    #[error("the device did not accept an earlier transaction; reset it and start over")]
    NotWhole,
    /// The bitmap covers more pages than the query asked about.
    #[error("the device's dirty bitmap covers {copied} pages, more than the {total} asked about")]
    Copied {
        /// The value of `copied_pfns`.
        copied: u64,
        /// Number of pages asked about.
        total: u64,
    },
    /// A buffer of device data is open; it must be read to its end before a query of dirty pages.
    #[error("a buffer of device data has not been read to its end")]
    BufferOpen,
    /// The region follows v1, where the container reports dirty pages.
    #[error("a v1 region does not report dirty pages")]
    NoDirtyPages,
    /// No request is in progress.
    #[error("no request is in progress")]
    NoRequest,
    /// The caller answered with a different number of bytes than requested.
    #[error("the caller answered with {got} bytes instead of {asked}")]
    Answer {
        /// Bytes requested.
        asked: usize,
        /// Bytes answered.
        got: usize,
    },
}
