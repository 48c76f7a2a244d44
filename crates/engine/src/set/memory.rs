//! The interface to the memory of a migration: read at the source, written at the destination.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::pagemap::Pagemap;

/// The page size of a migration, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// A piece of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RamRegion {
    /// Guest physical address of the first byte. Devices reach it under the same IOVA.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl RamRegion {
    /// Returns the region of `size` bytes from the guest physical address `start` on.
    pub const fn new(start: u64, size: u64) -> RamRegion {
        RamRegion { start, size }
    }

    /// Returns the number of pages, including a partial last one.
    pub(crate) fn pages(&self) -> usize {
        self.size.div_ceil(PAGE) as usize
    }

    /// Returns the first address after the region.
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Returns the part of this region that lies in another one, if any.
    pub(crate) fn intersection(&self, other: RamRegion) -> Option<RamRegion> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| RamRegion { start, size: end - start })
    }
}

/// The error of an access outside of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at guest address {address:#x} are not memory of this machine")]
#[non_exhaustive]
pub struct RamError {
    /// The first address.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

impl RamError {
    /// Returns the error of an access to `length` bytes at `address`.
    pub const fn new(address: u64, length: u64) -> RamError {
        RamError { address, length }
    }
}

/// A function that reads the next bytes of arriving memory into their place. A break ends the transfer; the function
/// keeps the reason.
pub type Receive<'a> = dyn FnMut(&mut [u8]) -> ControlFlow<()> + 'a;

/// Memory with concurrent writers. A read of bytes that are being written may be torn; such a page is dirty and is sent
/// again.
///
/// [`MappedRam`](super::MappedRam) implements it for mapped files. With the feature `vm-memory`, every
/// `GuestMemoryMmap` of that crate implements it. The methods with a default make a migration faster and keep unused
/// memory unallocated.
///
/// ```
/// use std::sync::Mutex;
/// use whimbrel_engine::{Ram, RamError, RamRegion};
///
/// /// Memory from address 0 on.
/// struct Bytes(Mutex<Vec<u8>>);
///
/// impl Bytes {
///     fn access(
///         &self,
///         address: u64,
///         length: u64,
///         access: impl FnOnce(&mut [u8]),
///     ) -> Result<(), RamError> {
///         let mut bytes = self.0.lock().unwrap();
///         let end = address.saturating_add(length) as usize;
///         let found = bytes.get_mut(address as usize..end);
///         found.map(access).ok_or(RamError::new(address, length))
///     }
/// }
///
/// impl Ram for Bytes {
///     fn regions(&self) -> Vec<RamRegion> {
///         vec![RamRegion::new(0, self.0.lock().unwrap().len() as u64)]
///     }
///
///     fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
///         self.access(address, data.len() as u64, |bytes| data.copy_from_slice(bytes))
///     }
///
///     fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
///         self.access(address, data.len() as u64, |bytes| bytes.copy_from_slice(data))
///     }
///
///     fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
///         self.access(address, length, |bytes| bytes.fill(0))
///     }
/// }
///
/// let memory = Bytes(Mutex::new(vec![0; 0x2000]));
/// memory.write(0x1ffe, b"ok")?;
/// assert!(memory.clear(0x1fff, 2).is_err());
/// # Ok::<(), RamError>(())
/// ```
pub trait Ram: Send + Sync {
    /// Returns the regions, by ascending address.
    fn regions(&self) -> Vec<RamRegion>;

    /// Copies memory out.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError>;

    /// Copies memory in.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError>;

    /// Sets memory to zero. Pages that are already zero are left untouched, so that they stay unallocated, and no pages
    /// are freed, because a device may have pinned them.
    fn clear(&self, address: u64, length: u64) -> Result<(), RamError>;

    /// Returns the first stretch that may hold data in `length` bytes from `address` on, which lie in one region.
    /// `None`: all of it is a hole, which reads as zero and uses no memory.
    ///
    /// `pagemap` finds the holes of anonymous memory. By default everything may hold data.
    fn next_data(&self, address: u64, length: u64, pagemap: &Pagemap) -> Option<RamRegion> {
        let _ = pagemap;
        (length > 0).then(|| RamRegion::new(address, length))
    }

    /// Populates `length` bytes from `address` on, which lie in one region, without changing them, so that writing to
    /// them causes no page faults. Best effort.
    ///
    /// By default it does nothing.
    fn populate(&self, address: u64, length: u64) {
        let _ = (address, length);
    }

    /// Fills memory in place with `receive`, piece by piece in ascending order. There are no other accesses to these
    /// bytes meanwhile: the destination's devices and CPUs are stopped.
    ///
    /// By default the bytes pass through a buffer.
    fn receive_into(&self, address: u64, length: u64, receive: &mut Receive<'_>) -> Result<(), RamError> {
        let mut buffer = vec![0; length.min(BUFFER) as usize];
        let mut at = 0;
        while at < length {
            let place = &mut buffer[..(length - at).min(BUFFER) as usize];
            if receive(place).is_break() {
                break;
            }
            let address = address.checked_add(at).ok_or(RamError { address, length })?;
            self.write(address, place)?;
            at += place.len() as u64;
        }
        Ok(())
    }
}

/// Size of the buffer for memory that cannot be filled in place, in bytes.
const BUFFER: u64 = 64 << 10;

/// Returns whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Blocks allow an early return for pages that differ at once, and vectorise.
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |sum, byte| sum | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_makes_a_page_not_zero() {
        for at in [0, 1, 63, 64, 65, 4094, 4095, 4096, 4099] {
            let mut data = vec![0; 4100];
            assert!(is_zero(&data));
            data[at] = 1;
            assert!(!is_zero(&data), "{at}");
        }
    }

    #[test]
    fn regions_intersect_where_both_are() {
        let region = RamRegion::new;
        assert_eq!(region(10, 10).intersection(region(15, 10)), Some(region(15, 5)));
        assert_eq!(region(10, 10).intersection(region(20, 10)), None);
        assert_eq!(region(10, u64::MAX).intersection(region(0, u64::MAX)), Some(region(10, u64::MAX - 10)));
    }
}
