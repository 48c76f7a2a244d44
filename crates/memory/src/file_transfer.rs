//! System calls that move bytes between a file and shared memory, without a copy between and without waiting for a disk.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::shared_bytes::SharedBytes;

/// Maximum number of pieces of one call (`UIO_MAXIOV` of the kernel).
const MAX_PIECES: libc::c_int = 1024;

/// preadv2(2) or pwritev2(2).
type Transfer = unsafe extern "C" fn(
    libc::c_int,
    *const libc::iovec,
    libc::c_int,
    libc::off_t,
    libc::c_int,
) -> libc::ssize_t;

/// Reads a file from `offset` on into pieces of shared memory, one after the other, as far as that is possible without
/// waiting (RWF_NOWAIT): the bytes are in the page cache. Returns the number of bytes read, which may be less than
/// all; 0 at the end of the file.
///
/// [`WouldBlock`](io::ErrorKind::WouldBlock) if nothing can be read without waiting; EOPNOTSUPP for a file system that does
/// not support it; EFAULT for memory whose file was truncated; EINVAL for more than 1024 pieces, or an offset past 2^63.
///
/// ```
/// use std::io::Write;
/// use whimbrel_memory::{SharedBytes, read_file_now};
///
/// let mut file = tempfile::tempfile()?;
/// file.write_all(b"written a moment ago")?;
/// let (mut first, mut second) = ([0; 7], [0; 4]);
/// let pieces = [SharedBytes::from(&mut first[..]), SharedBytes::from(&mut second[..])];
/// match read_file_now(&file, 0, &pieces) {
///     Ok(count) => assert_eq!((count, &first, &second), (11, b"written", b" a m")),
///     Err(error) => println!("it would wait, or cannot tell: {error}"),
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read_file_now(file: &File, offset: u64, pieces: &[SharedBytes<'_>]) -> io::Result<usize> {
    transfer(libc::preadv2, file, offset, pieces)
}

/// Writes pieces of shared memory to a file from `offset` on, one after the other, as far as that is possible without
/// waiting (RWF_NOWAIT). Returns the number of bytes written, which may be less than all. They are in the page cache, and
/// not yet on the disk.
///
/// Errors as with [`read_file_now`]. Not all file systems that support reads support writes: ext4 does not.
pub fn write_file_now(file: &File, offset: u64, pieces: &[SharedBytes<'_>]) -> io::Result<usize> {
    transfer(libc::pwritev2, file, offset, pieces)
}

fn transfer(call: Transfer, file: &File, offset: u64, pieces: &[SharedBytes<'_>]) -> io::Result<usize> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let count = libc::c_int::try_from(pieces.len()).map_err(|_| invalid())?;
    if count > MAX_PIECES {
        return Err(invalid());
    }
    let offset = libc::off_t::try_from(offset).map_err(|_| invalid())?;
    let pieces: Vec<libc::iovec> = pieces
        .iter()
        .map(|piece| libc::iovec { iov_base: piece.address() as *mut c_void, iov_len: piece.len() })
        .collect();
    loop {
        // SAFETY: each piece is memory that is mapped as long as the borrow of `pieces` lasts, and that others may access
        // at any time, as the kernel does here; no reference to it exists. Where it is not writable, or its file was
        // truncated, the kernel answers EFAULT. It keeps no address after the call.
        let moved = unsafe { call(file.as_raw_fd(), pieces.as_ptr(), count, offset, libc::RWF_NOWAIT) };
        if let Ok(moved) = usize::try_from(moved) {
            return Ok(moved);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::{FileOffset, Memory};

    const PAGE: usize = 4096;

    /// A file on a disk whose bytes tell their place; in the page cache, since they were just written.
    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..4 * PAGE).map(|at| (at / 16) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    fn memory(size: usize) -> (File, Memory) {
        let file = File::from(memfd_create(c"memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(size as u64).unwrap();
        let memory =
            Memory::of_file(FileOffset::new(file.try_clone().unwrap(), 0), size as u64, true).unwrap();
        (file, memory)
    }

    /// Returns whether the temporary folder's file system supports it.
    fn is_supported<T>(result: &io::Result<T>) -> bool {
        let refused = result.as_ref().err().and_then(io::Error::raw_os_error);
        let is_supported = !matches!(refused, Some(libc::EOPNOTSUPP | libc::EAGAIN));
        if !is_supported {
            println!("SKIPPED: the file system of the temporary folder cannot answer at once");
        }
        is_supported
    }

    #[test]
    fn a_read_fills_its_pieces_in_order() {
        let (file, (memory_file, memory)) = (file(), memory(4 * PAGE));
        let pieces = [memory.bytes(3 * PAGE, 100).unwrap(), memory.bytes(8, PAGE).unwrap()];
        let result = read_file_now(&file, 1000, &pieces);
        if !is_supported(&result) {
            return;
        }
        assert_eq!(result.unwrap(), PAGE + 100);
        let (mut expected, mut found) = (vec![0; PAGE + 100], vec![0; PAGE + 100]);
        file.read_exact_at(&mut expected, 1000).unwrap();
        memory_file.read_exact_at(&mut found[..100], 3 * PAGE as u64).unwrap();
        memory_file.read_exact_at(&mut found[100..], 8).unwrap();
        assert_eq!(found, expected);
        assert_eq!(read_file_now(&file, 4 * PAGE as u64 - 10, &pieces).unwrap(), 10, "up to the end");
        assert_eq!(read_file_now(&file, 4 * PAGE as u64, &pieces).unwrap(), 0);
    }

    #[test]
    fn a_write_takes_its_pieces_in_order() {
        let (file, (memory_file, memory)) = (file(), memory(2 * PAGE));
        memory_file.write_all_at(b"abcdef", PAGE as u64 - 3).unwrap();
        let pieces = [memory.bytes(PAGE, 3).unwrap(), memory.bytes(PAGE - 3, 3).unwrap()];
        let result = write_file_now(&file, 5, &pieces);
        if !is_supported(&result) {
            return;
        }
        let mut found = [0; 6];
        file.read_exact_at(&mut found, 5).unwrap();
        assert_eq!((result.unwrap(), &found), (6, b"defabc"));
    }

    #[test]
    fn memory_that_was_truncated_is_an_error_and_no_signal() {
        let (file, (memory_file, memory)) = (file(), memory(2 * PAGE));
        memory_file.set_len(PAGE as u64).unwrap();
        let result = read_file_now(&file, 0, &[memory.bytes(PAGE, 8).unwrap()]);
        if is_supported(&result) {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        }
    }

    #[test]
    fn what_no_call_can_say_is_refused() {
        let file = file();
        let mut byte = [0];
        let pieces = vec![SharedBytes::from(&mut byte[..]); 1025];
        for (offset, pieces) in [(0, &pieces[..]), (1 << 63, &pieces[..1])] {
            let refused = read_file_now(&file, offset, pieces).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        }
    }
}
