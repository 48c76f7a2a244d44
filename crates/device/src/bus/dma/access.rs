//! One access to memory, as data.

use super::fault::Access;

/// One access to memory, as data: for a driver that leaves its accesses to the core
/// ([`AsyncDma`](crate::AsyncDma)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DmaAccess {
    /// The first address.
    pub iova: u64,
    /// The bytes to write, or those that were read.
    pub data: Vec<u8>,
    /// The kind of access.
    pub access: Access,
    /// The driver's own number, without a meaning for anybody else.
    pub tag: u64,
}

impl DmaAccess {
    /// Returns a read of memory into all of `data`.
    pub const fn read(iova: u64, data: Vec<u8>) -> DmaAccess {
        DmaAccess { iova, data, access: Access::Read, tag: 0 }
    }

    /// Returns a write of `data` to memory.
    pub const fn write(iova: u64, data: Vec<u8>) -> DmaAccess {
        DmaAccess { iova, data, access: Access::Write, tag: 0 }
    }

    /// Sets the driver's own number.
    #[must_use]
    pub const fn tag(mut self, tag: u64) -> DmaAccess {
        self.tag = tag;
        self
    }
}
