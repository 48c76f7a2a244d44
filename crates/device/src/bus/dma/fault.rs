//! DMA faults: accesses without a mapping or with an error.

use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

/// An access without a mapping that allows it, or one that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DMA {access} of {length} bytes at IOVA {iova:#x} failed: {cause}")]
#[non_exhaustive]
pub struct DmaFault {
    /// First address of the access.
    pub iova: u64,
    /// Bytes of the access.
    pub length: u64,
    /// The kind of access.
    pub access: Access,
    /// The reason.
    pub cause: FaultCause,
}

impl DmaFault {
    /// Returns a fault of an access to `length` bytes from `iova`.
    pub const fn new(iova: u64, length: u64, access: Access, cause: FaultCause) -> DmaFault {
        DmaFault { iova, length, access, cause }
    }
}

/// The reason for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultCause {
    /// Not all of it is mapped with that right. Nothing was read or written.
    #[error("not mapped with this access right")]
    NotMapped,
    /// The owner of the memory refused or cannot be reached. Part of a write may have been done.
    #[error("remote memory access failed: {0}")]
    Remote(Errno),
    /// The mapped file was truncated. The data read is undefined.
    #[error("the mapped file was truncated")]
    Lost,
}

/// A kind of access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "memory is read or written")]
pub enum Access {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
        })
    }
}

impl Access {
    pub(super) const fn right(self) -> DmaMapFlags {
        match self {
            Access::Read => DmaMapFlags::READ,
            Access::Write => DmaMapFlags::WRITE,
        }
    }
}
