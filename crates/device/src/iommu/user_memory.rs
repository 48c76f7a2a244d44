//! The memory of a process, as far as an IOMMU needs it: what can be mapped for devices.

use whimbrel_memory::Memory;
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

/// An address the process cannot access. The kernel answers EFAULT.
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

/// A process whose memory can be mapped for devices. Every [`Process`](crate::Process) is one.
pub trait UserMemory {
    /// The shared memory behind `size` bytes from `vaddr`, in pieces that follow one another and are as long together,
    /// writable if `rights` has WRITE. Devices that it is mapped for keep the pieces.
    fn pieces(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault>;
}
