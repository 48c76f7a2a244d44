//! Pages of the program that a userfaultfd of it has yet to fill.
//!
//! `/proc/PID/mem` does not wait for them: the kernel looks for a page with the lock of all the program's mappings held
//! (`__access_remote_vm()` in its `mm/memory.c`), and a userfault that may not let go of it fails (`handle_userfault()` in
//! `fs/userfaultfd.c`). process_vm_readv(2) lets go of the lock and waits (`mm/process_vm_access.c`). But it names a process,
//! which may run another program by the time of the access, and so no access of a device can be made by it. Here it reads a byte
//! of each page, which harms nobody, and the access is made again.

use std::io::IoSliceMut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::param::page_size;
use whimbrel_device::Errno;

/// Threads that wait at a time, in this process. Those for a page that never comes do not end before the program.
const MAX_WAITING: usize = 64;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A thread that waits.
struct Waiting;

impl Waiting {
    fn begin() -> Option<Waiting> {
        let begun = WAITING.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < MAX_WAITING).then_some(count + 1)
        });
        begun.ok().map(|_| Waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits until all pages of `length` bytes from an address are in the memory of a process. EFAULT if one cannot be, ETIMEDOUT
/// at the deadline.
pub(super) fn wait_for(process: u32, address: u64, length: usize, deadline: Instant) -> Result<(), Errno> {
    let waiting = Waiting::begin().ok_or(Errno::EFAULT)?;
    let (there, is_there) = mpsc::sync_channel(1);
    // The deadline cannot end the call.
    let thread = thread::Builder::new().name("pages".into()).spawn(move || {
        let touched = touch(process, address, length);
        drop(waiting);
        let _ = there.send(touched);
    });
    thread.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EAGAIN))?;
    let left = deadline.saturating_duration_since(Instant::now());
    is_there.recv_timeout(left).map_err(|_| Errno::ETIMEDOUT)?
}

/// Reads a byte of each page.
fn touch(process: u32, address: u64, length: usize) -> Result<(), Errno> {
    let size = page_size() as u64;
    let end = address.checked_add(length as u64).ok_or(Errno::EFAULT)?;
    let mut at = address;
    while at < end {
        let remote = [RemoteIoVec { base: at as usize, len: 1 }];
        let mut byte = [0];
        process_vm_readv(Pid::from_raw(process.cast_signed()), &mut [IoSliceMut::new(&mut byte)], &remote)
            .map_err(|_| Errno::EFAULT)?;
        at = (at / size + 1) * size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pages_that_are_there_or_cannot_be_are_not_waited_for() {
        let (bytes, deadline) = (vec![1u8; 3 * page_size()], Instant::now() + Duration::from_hours(1));
        let wait = |address, length| wait_for(std::process::id(), address, length, deadline);
        assert_eq!(wait(bytes.as_ptr() as u64, bytes.len()), Ok(()));
        // Nothing is mapped at 0, and nothing at the end of all addresses.
        for (address, length) in [(0, 1), (u64::MAX, 1), (u64::MAX, 2)] {
            assert_eq!(wait(address, length), Err(Errno::EFAULT));
        }
    }
}
