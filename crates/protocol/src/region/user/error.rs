//! Why something asked of a region did not come about.

use super::super::Phase;
use crate::Errno;

/// A request to a device with a migration region that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// An access failed. The state the device is in has not changed.
    #[error("{access} of {field} in the migration region failed: {errno}")]
    Access {
        /// `read` or `write`.
        access: &'static str,
        /// The field, or `the data section`.
        field: &'static str,
        /// What the device answered.
        errno: Errno,
    },
    /// The device did not change its state. `now` is what it says it is doing since; with the draft nobody
    /// knows until the state is asked for.
    #[error(
        "the device did not go to {to}: {errno}{}",
        now.map_or(String::new(), |now| format!(", it is in {now}"))
    )]
    Refused {
        /// What was asked for.
        to: Phase,
        /// What the write answered.
        errno: Errno,
        /// What the device is doing now.
        now: Option<Phase>,
    },
    /// The device is in v1's error state: only a reset (VFIO_DEVICE_RESET) leads out.
    #[error(
        "the device is in the error state{}; only a reset leads out",
        errno.map_or(String::new(), |errno| format!(" ({errno})"))
    )]
    NeedsReset {
        /// What the write answered that brought the device there; `None` if it was there before.
        errno: Option<Errno>,
    },
    /// Neither did the device change its state nor does it tell which it is in.
    #[error("the device did not go to {to} ({errno}) and does not tell its state ({reading}); reset it")]
    Unknown {
        /// What was asked for.
        to: Phase,
        /// What the write answered.
        errno: Errno,
        /// What the read after it answered.
        reading: Errno,
    },
    /// The register holds what is no state.
    #[error("the device says its device_state is {0:#x}, which is no state")]
    State(u32),
    /// Data would lie outside the data section.
    #[error("the device says {bytes} bytes lie at {offset:#x} of a migration region of {size:#x} bytes")]
    Outside {
        /// What `data_offset` says.
        offset: u64,
        /// How many bytes would be there; 0 if it was not asked yet.
        bytes: u64,
        /// Size of the region.
        size: u64,
    },
    /// Mapped data does not begin at a page, as v1 requires.
    #[error("the device says its data lie at {0:#x}, in a mapped part and not at a page")]
    Unaligned(u64),
    /// `data_offset` changed between two reads of one iteration.
    #[error("the device moved its data from {first:#x} to {second:#x} while it was read")]
    Moved {
        /// The first answer.
        first: u64,
        /// The second.
        second: u64,
    },
    /// A transaction, or a bitmap, is larger than the user is ready to hold.
    #[error("the device offers {bytes} bytes at once, more than the {most} this user takes")]
    TooLarge {
        /// What it offers.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// A transaction does not fit the data section here. To cut it would break the rule that it has the size
    /// it had at the source.
    #[error("a transaction of {bytes} bytes does not fit the {room} bytes of the destination's data section")]
    NoRoom {
        /// Bytes of the transaction.
        bytes: u64,
        /// Bytes of the data section.
        room: u64,
    },
    /// The device says that data is left and gives none, while it is stopped: it would for ever.
    #[error("the device says {0} bytes are pending in stop-and-copy and gives none")]
    Stalled(u64),
    /// An earlier transaction was not taken: the state that the device holds is not whole.
    #[error("an earlier transaction was not taken by the device: reset it and begin anew")]
    NotWhole,
    /// The bitmap speaks of more pages than were asked about.
    #[error("the device answers for {copied} pages of {total}")]
    Copied {
        /// What `copied_pfns` says.
        copied: u64,
        /// What was asked about.
        total: u64,
    },
    /// A buffer of device data is open; it must be read to its end before dirty pages are asked about.
    #[error("a buffer of device data has not been read to its end")]
    BufferOpen,
    /// The region follows v1, whose dirty pages are the container's to tell.
    #[error("a v1 region does not tell dirty pages")]
    NoDirtyPages,
    /// There is nothing to carry out.
    #[error("no request has begun")]
    NoRequest,
    /// The caller answered with another number of bytes than was asked for.
    #[error("{got} bytes were answered where {asked} were asked for")]
    Answer {
        /// Bytes asked for.
        asked: usize,
        /// Bytes answered.
        got: usize,
    },
}
