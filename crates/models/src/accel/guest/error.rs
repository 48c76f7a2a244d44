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
    /// The device is another one, or has a version that this driver does not know.
    #[error("unknown device: ID {id:#010x}, version {version}")]
    NotAnEngine {
        /// The ID register.
        id: u32,
        /// The version register.
        version: u32,
    },
    /// The engine did not accept the rings.
    #[error(
        "the engine refused rings of {} entries at {:#x} and {:#x}",
        .0.entries, .0.submissions, .0.completions
    )]
    RingsRefused(Rings),
    /// The submission ring has no free entry.
    #[error("the submission ring is full")]
    Full,
    /// A completion other than the next one was in its entry of the ring.
    #[error("expected completion {expected}, found completion {} of index {}", completion.sequence, completion.index)]
    Misplaced {
        /// The sequence number of the next completion.
        expected: u64,
        /// The entry's contents.
        completion: Completion,
    },
}
