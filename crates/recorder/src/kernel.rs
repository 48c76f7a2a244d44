//! The running kernel: requests by number, descriptors by number, and memory at chosen addresses.
//!
//! It can be asked for anything, so all that is unsafe in this crate is here.
#![allow(unsafe_code, reason = "requests that no library has, and memory at fixed addresses")]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use whimbrel_uapi::Errno;

/// Opens a file for reading and writing.
pub(crate) fn open(path: &str) -> File {
    let file = File::options().read(true).write(true).open(path);
    file.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Makes a request. What the kernel writes goes to the pages of [`page::map`], or nowhere: no list names any other memory.
pub(crate) fn ioctl(fd: RawFd, number: u32, argument: u64) -> Result<i32, Errno> {
    // SAFETY: see above.
    let result = unsafe { libc::ioctl(fd, libc::c_ulong::from(number) as _, argument) };
    Errno::result(result)
}

/// A descriptor that the kernel has just answered.
pub(crate) fn given(fd: RawFd) -> OwnedFd {
    assert!(fd >= 0);
    // SAFETY: a list takes each answer once, so nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Gives a file the number that a list knows it by.
pub(crate) fn hold(file: BorrowedFd<'_>, fd: RawFd) {
    // SAFETY: nothing but a list uses files of these numbers.
    assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), fd) }, fd);
}

/// Closes a file of such a number. It may not be open.
pub(crate) fn release(fd: RawFd) {
    // SAFETY: nothing but a list uses files of these numbers.
    unsafe { libc::close(fd) };
}

/// A new eventfd that does not block.
pub(crate) fn eventfd() -> OwnedFd {
    // SAFETY: it only makes a descriptor.
    given(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) })
}

/// What an eventfd has counted, which is 0 from then on.
pub(crate) fn take_count(fd: RawFd) -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: eight bytes of our own.
    let read = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    if read == 8 { u64::from_ne_bytes(bytes) } else { 0 }
}

/// Memory at the addresses that a list names.
pub(crate) mod page {
    use std::sync::Mutex;

    /// What was mapped: address and size.
    static MAPPED: Mutex<Vec<(u64, usize)>> = Mutex::new(Vec::new());

    /// Maps fresh memory.
    pub(crate) fn map(address: u64, size: usize) {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: fresh memory at a fixed address that nothing else has: with NOREPLACE the kernel refuses otherwise.
        let at = unsafe { libc::mmap(address as *mut libc::c_void, size, protection, flags, -1, 0) };
        assert_eq!(at as u64, address);
        MAPPED.lock().expect("nobody panics with it").push((address, size));
    }

    fn is_mapped(address: u64, size: usize) -> bool {
        let mapped = MAPPED.lock().expect("nobody panics with it");
        mapped.iter().any(|(start, length)| {
            address.checked_sub(*start).is_some_and(|offset| offset as usize + size <= *length)
        })
    }

    /// Puts bytes into mapped memory.
    pub(crate) fn put(address: u64, bytes: &[u8]) {
        assert!(is_mapped(address, bytes.len()), "{address:#x}");
        // SAFETY: it is mapped until the end, and no reference leads there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    }

    /// Reads bytes of mapped memory.
    pub(crate) fn get(address: u64, bytes: &mut [u8]) {
        assert!(is_mapped(address, bytes.len()), "{address:#x}");
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
    }
}
