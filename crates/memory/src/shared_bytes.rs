//! Bytes that others may access at the same time.
#![allow(unsafe_code)]

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};

/// A view of memory that other threads and processes may read and write at any time. There is never a reference to the
/// bytes: every access copies them.
///
/// ```
/// use whimbrel_memory::SharedBytes;
///
/// let mut memory = [0_u64; 2];
/// let bytes = SharedBytes::from(zerocopy::IntoBytes::as_mut_bytes(&mut memory));
/// bytes.part(1, 3).expect("it lies within").copy_from(b"abc");
/// let mut found = [0; 4];
/// bytes.copy_to(&mut found);
/// assert_eq!(&found, b"\0abc");
///
/// // As a register of 32 bits, in one access.
/// assert_eq!(bytes.load::<u32>(0).map(u32::to_ne_bytes), Some(found));
/// assert_eq!(bytes.load::<u32>(2), None, "it is not aligned");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SharedBytes<'a>(VolatileSlice<'a>);

/// A number that is loaded and stored in one access.
pub trait Word: sealed::Word {}

mod sealed {
    /// The requirements of vm-memory for a number.
    pub trait Word: vm_memory::AtomicAccess {}

    impl<T: vm_memory::AtomicAccess> Word for T {}
}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl<'a> SharedBytes<'a> {
    /// Returns a view of `length` bytes at `address`.
    ///
    /// # Safety
    ///
    /// The bytes must be mapped in this process as long as `'a` lasts, and no reference to them may exist.
    pub unsafe fn new(address: *mut u8, length: usize) -> SharedBytes<'a> {
        // SAFETY: as the caller promises.
        SharedBytes(unsafe { VolatileSlice::new(address, length) })
    }

    #[inline]
    pub(crate) fn of_slice(bytes: VolatileSlice<'a>) -> SharedBytes<'a> {
        SharedBytes(bytes)
    }

    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the address of the first byte in this process.
    pub fn address(&self) -> u64 {
        self.0.ptr_guard().as_ptr() as u64
    }

    /// Returns `count` bytes from `offset` on; `None` if they do not all lie within.
    #[inline]
    pub fn part(&self, offset: usize, count: usize) -> Option<SharedBytes<'a>> {
        self.0.subslice(offset, count).ok().map(SharedBytes)
    }

    /// Copies the first bytes to `data`, as many as both have, and returns their number.
    #[inline]
    pub fn copy_to(&self, data: &mut [u8]) -> usize {
        self.0.copy_to(data)
    }

    /// Copies the first bytes of `data`, as many as both have.
    #[inline]
    pub fn copy_from(&self, data: &[u8]) {
        self.0.copy_from(data);
    }

    /// Loads a number in one access that acquires; `None` if it is not aligned or does not lie within.
    #[inline]
    pub fn load<T: Word>(&self, offset: usize) -> Option<T> {
        self.0.load(offset, Ordering::Acquire).ok()
    }

    /// Stores a number in one access that releases; `None`, without a store, if it is not aligned or does not lie within.
    #[must_use]
    #[inline]
    pub fn store<T: Word>(&self, offset: usize, value: T) -> Option<()> {
        self.0.store(value, offset, Ordering::Release).ok()
    }
}

impl<'a> From<&'a mut [u8]> for SharedBytes<'a> {
    fn from(bytes: &'a mut [u8]) -> SharedBytes<'a> {
        SharedBytes(VolatileSlice::from(bytes))
    }
}

#[cfg(feature = "vm-memory")]
impl<'a> From<SharedBytes<'a>> for VolatileSlice<'a> {
    fn from(bytes: SharedBytes<'a>) -> VolatileSlice<'a> {
        bytes.0
    }
}

#[cfg(feature = "vm-memory")]
impl<'a> From<VolatileSlice<'a>> for SharedBytes<'a> {
    fn from(bytes: VolatileSlice<'a>) -> SharedBytes<'a> {
        SharedBytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_ends_where_either_side_ends() {
        let mut memory = *b"1234";
        let bytes = SharedBytes::from(&mut memory[..]);
        let mut long = [9; 6];
        bytes.copy_to(&mut long);
        assert_eq!(&long, b"1234\x09\x09");
        bytes.part(1, 2).unwrap().copy_from(b"abc");
        assert_eq!(&memory, b"1ab4");
    }

    #[test]
    fn an_access_that_does_not_fit_does_nothing() {
        let mut memory = [0_u64; 2];
        let bytes = SharedBytes::from(zerocopy::IntoBytes::as_mut_bytes(&mut memory));
        assert_eq!((bytes.store(12, 7_u32), bytes.load(8)), (Some(()), Some(7_u64.to_le() << 32)));
        for offset in [1, 9, 16, usize::MAX] {
            assert_eq!((bytes.store(offset, u64::MAX), bytes.load::<u64>(offset)), (None, None), "{offset}");
        }
        for (offset, count) in [(0, 17), (17, 0), (16, 1), (usize::MAX, 2)] {
            assert!(bytes.part(offset, count).is_none(), "{offset} {count}");
        }
        assert_eq!(memory, [0, 7_u64.to_le() << 32]);
    }
}
