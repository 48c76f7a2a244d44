//! The memory of a process as an IOMMU needs it: the parts that can be mapped for devices, and the memory behind a
//! mapping of it.

use std::sync::Arc;
use std::time::Instant;

use whimbrel_memory::{Memory, RemoteMemory};
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::bus::dma::{DmaSpace, MappingLog};

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

    /// Returns access to `size` bytes from `vaddr` that cannot be mapped into this process, at the addresses of the
    /// process that has them. Devices keep it while it is mapped.
    fn remote(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Arc<dyn RemoteMemory>, Fault>;
}

/// The memory behind a part of a mapping.
#[derive(Clone, Debug)]
pub(crate) enum UserPiece {
    /// Mapped into this process too.
    Shared(Memory),
    /// Accessed at its addresses in the process that has it.
    Remote(RemotePiece),
}

/// A part of the memory of another process.
#[derive(Clone, Debug)]
pub(crate) struct RemotePiece {
    memory: Arc<dyn RemoteMemory>,
    vaddr: u64,
    size: u64,
    writable: bool,
}

/// Remote memory that a device accesses by IOVA.
#[derive(Debug)]
struct AtIova {
    memory: Arc<dyn RemoteMemory>,
    /// Address in the process of IOVA 0, modulo 2^64.
    base: u64,
}

impl UserPiece {
    /// Returns the memory behind `size` bytes from `vaddr` of a process: shared if all of it is, else remote.
    pub(crate) fn all(
        process: &(impl UserMemory + ?Sized),
        vaddr: u64,
        size: u64,
        rights: DmaMapFlags,
    ) -> Result<Vec<UserPiece>, Fault> {
        match process.pieces(vaddr, size, rights) {
            Ok(pieces) => Ok(pieces.into_iter().map(UserPiece::Shared).collect()),
            Err(fault) => UserPiece::remote(process, vaddr, size, rights).map_err(|_| fault),
        }
    }

    /// Returns remote memory.
    pub(crate) fn remote(
        process: &(impl UserMemory + ?Sized),
        vaddr: u64,
        size: u64,
        rights: DmaMapFlags,
    ) -> Result<Vec<UserPiece>, Fault> {
        let memory = process.remote(vaddr, size, rights)?;
        let writable = rights.contains(DmaMapFlags::WRITE);
        Ok(vec![UserPiece::Remote(RemotePiece { memory, vaddr, size, writable })])
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            UserPiece::Shared(memory) => memory.size(),
            UserPiece::Remote(piece) => piece.size,
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        match self {
            UserPiece::Shared(memory) => memory.is_writable(),
            UserPiece::Remote(piece) => piece.writable,
        }
    }

    /// Returns `size` bytes from `offset` on; `None` if they do not all lie within, or if `size` is 0.
    pub(crate) fn part(&self, offset: u64, size: u64) -> Option<UserPiece> {
        match self {
            UserPiece::Shared(memory) => memory.part(offset, size).map(UserPiece::Shared),
            UserPiece::Remote(piece) => {
                let within = offset.checked_add(size).is_some_and(|end| end <= piece.size);
                let vaddr = piece.vaddr.wrapping_add(offset);
                (size > 0 && within).then(|| UserPiece::Remote(RemotePiece { vaddr, size, ..piece.clone() }))
            }
        }
    }

    /// Maps all of it at `iova` for a device, whose writes are marked in `log` in addition to the device's log.
    pub(crate) fn map(
        self,
        space: &DmaSpace,
        iova: u64,
        rights: DmaMapFlags,
        log: Option<MappingLog>,
    ) -> Result<(), Errno> {
        match self {
            UserPiece::Shared(memory) => space.map_logged(iova, rights, memory, log),
            UserPiece::Remote(RemotePiece { memory, vaddr, size, .. }) => {
                let at_iova = AtIova { memory, base: vaddr.wrapping_sub(iova) };
                space.map_remote_logged(iova, size, rights, Arc::new(at_iova), log)
            }
        }
    }
}

impl RemoteMemory for AtIova {
    fn read(&self, iova: u64, data: &mut [u8], deadline: Instant) -> Result<(), Errno> {
        self.memory.read(self.base.wrapping_add(iova), data, deadline)
    }

    fn write(&self, iova: u64, data: &[u8], deadline: Instant) -> Result<(), Errno> {
        self.memory.write(self.base.wrapping_add(iova), data, deadline)
    }

    fn may_outlive_mapping(&self) -> bool {
        self.memory.may_outlive_mapping()
    }
}
