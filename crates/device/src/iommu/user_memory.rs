//! The memory of a process as an IOMMU needs it: the parts that can be mapped for devices.

use whimbrel_memory::Memory;
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

/// An address that the process cannot access. The kernel returns EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot access address {0:#x}")]
#[non_exhaustive]
pub struct Fault(
    /// The first address that faulted.
    pub u64,
);

impl Fault {
    /// Returns a fault at this address.
    pub const fn new(address: u64) -> Fault {
        Fault(address)
    }
}

impl From<Fault> for Errno {
    fn from(_: Fault) -> Errno {
        Errno::EFAULT
    }
}

/// A process whose memory can be mapped for devices. Implemented for every [`Process`](crate::Process).
pub trait UserMemory {
    /// Returns the shared memory behind `size` bytes from `vaddr`, as consecutive pieces of that total length, writable
    /// if `rights` has WRITE. Devices keep the pieces while they are mapped.
    fn pieces(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault>;
}
