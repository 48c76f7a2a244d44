//! The errors of the guest's driver.

use super::Rings;
use crate::accel::queue::Completion;

/// An error of a [`GuestDriver`](super::GuestDriver), on a platform whose accesses fail with `E`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError<E> {
    /// An access to a register or to memory failed.
    #[error("cannot access the engine or its memory")]
    Access(#[source] E),
    /// The device is not an `accel` engine, or has an unknown version.
    #[error("not an accel engine, or an unknown version: ID {id:#010x}, version {version}")]
    NotAnEngine {
        /// The ID register.
        id: u32,
        /// The version register.
        version: u32,
    },
    /// The engine rejected the rings.
    #[error(
        "the engine rejected rings of {} entries at {:#x} (submissions) and {:#x} (completions)",
        .0.entries, .0.submissions, .0.completions
    )]
    RingsRefused(Rings),
    /// The submission ring has no free entry.
    #[error("the submission ring is full")]
    Full,
    /// The ring's next entry contains a completion out of sequence.
    #[error("expected completion {expected}, found completion {} for index {}", completion.sequence, completion.index)]
    Misplaced {
        /// The sequence number of the next completion.
        expected: u64,
        /// The entry's contents.
        completion: Completion,
    },
}
