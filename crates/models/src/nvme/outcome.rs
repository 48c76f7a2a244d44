//! The next step of a command, as its rules decide it.

use super::image::Operation;

/// The next step of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has succeeded, with dword 0 of its completion.
    Complete(u32),
    /// It succeeds once the host has this data.
    ToHost(Vec<u8>),
    /// It needs this much data from the host.
    FromHost { bytes: u64 },
    /// It needs the image.
    Image(Operation),
    /// It completes at some later time.
    Waits,
    /// It succeeds, and the commands of this submission queue end with it.
    DeleteSubmissionQueue(u16),
    /// It has succeeded, and nothing more is posted to this completion queue.
    DeletedCompletionQueue(u16),
}
