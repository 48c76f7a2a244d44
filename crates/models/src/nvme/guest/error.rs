//! The errors of the guest's driver.

use super::Completion;

/// An error of a [`GuestDriver`](super::GuestDriver), on a platform whose accesses fail with `E`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError<E> {
    /// An access to a register or to memory failed.
    #[error("cannot access the controller or its memory")]
    Access(#[source] E),
    /// The memory is too small, or not aligned to pages.
    #[error("the driver needs memory of {needed} bytes at a multiple of 4096")]
    Memory {
        /// The bytes that are needed.
        needed: u64,
    },
    /// The controller did not become ready, or not ready, within its own limit.
    #[error("the controller's status did not become {expected:#x} in time: it is {status:#x}")]
    NotReady {
        /// The bits of CSTS that were expected.
        expected: u32,
        /// CSTS.
        status: u32,
    },
    /// The controller reports a fatal error.
    #[error("the controller has failed (CSTS.CFS): status {0:#x}")]
    Failed(u32),
    /// A command was not completed in time.
    #[error("a command on queue {0} was not completed in time")]
    Timeout(u16),
    /// The submission queue has no free entry.
    #[error("submission queue {0} is full")]
    Full(u16),
    /// The driver has no such queue.
    #[error("queue {0} does not exist")]
    NoQueue(u16),
    /// A completion is that of no command in flight.
    #[error("unexpected completion {0:?}")]
    Unexpected(Completion),
    /// A command of the driver's own failed.
    #[error("command {opcode:#x} failed: {completion:?}")]
    Command {
        /// The opcode.
        opcode: u8,
        /// Its completion.
        completion: Completion,
    },
}
