//! Reads of a program's memory that cannot hold up the trace.
//!
//! A page that must be fetched first, from a file system that does not answer or by the program's own handler of page
//! faults, may keep its reader waiting without an end. All traced threads would wait with it, so such pages are read by
//! another thread, and only for a while.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use libc::pid_t;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::param::page_size;

/// The longest wait for a page.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Bit of an entry of `/proc/PID/pagemap`: the page is in memory.
const PRESENT: u64 = 1 << 63;

/// Bytes of an entry.
const ENTRY: usize = size_of::<u64>();

/// A reader of the memory of a process.
#[derive(Debug)]
pub(super) struct Reader {
    process: pid_t,
    /// The pages that are in memory. Opened at the first use.
    pagemap: Option<File>,
    /// A read that was not finished in time.
    late: Option<Receiver<Vec<u8>>>,
}

impl Reader {
    pub(super) fn new(process: pid_t) -> Reader {
        Reader { process, pagemap: None, late: None }
    }

    /// Reads into `bytes` from an address, and returns the number of bytes that could be read in time.
    pub(super) fn read(&mut self, address: u64, bytes: &mut [u8]) -> usize {
        if self.is_present(address, bytes.len()) {
            return read(self.process, address, bytes);
        }
        if self.is_late() {
            return 0;
        }
        let (done, finished) = sync_channel(1);
        let (process, length) = (self.process, bytes.len());
        let reads = move || {
            let mut bytes = vec![0; length];
            let count = read(process, address, &mut bytes);
            bytes.truncate(count);
            // Nobody waits for it once it is late.
            let _ = done.send(bytes);
        };
        if std::thread::Builder::new().name("memory".into()).spawn(reads).is_err() {
            return 0;
        }
        match finished.recv_timeout(MAX_WAIT) {
            Ok(read) => {
                bytes[..read.len()].copy_from_slice(&read);
                read.len()
            }
            Err(RecvTimeoutError::Timeout) => {
                self.late = Some(finished);
                0
            }
            Err(RecvTimeoutError::Disconnected) => 0,
        }
    }

    /// Returns whether a read still waits. Until it is finished there is no other one, and so no further wait.
    fn is_late(&mut self) -> bool {
        let _finished = self.late.take_if(|finished| finished.try_recv() != Err(TryRecvError::Empty));
        self.late.is_some()
    }

    /// Returns whether all pages of a range are in memory, so that a read of it does not wait.
    fn is_present(&mut self, address: u64, length: usize) -> bool {
        let Some(last) = (length as u64).checked_sub(1).and_then(|last| address.checked_add(last)) else {
            return false;
        };
        if self.pagemap.is_none() {
            self.pagemap = File::open(format!("/proc/{}/pagemap", self.process)).ok();
        }
        let Some(pagemap) = &self.pagemap else { return false };
        let page = page_size() as u64;
        let (first, last) = (address / page, last / page);
        let Ok(count) = usize::try_from(last - first + 1) else { return false };
        let mut entries = vec![0; count.saturating_mul(ENTRY)];
        if pagemap.read_exact_at(&mut entries, first.saturating_mul(ENTRY as u64)).is_err() {
            return false;
        }
        let (entries, _) = entries.as_chunks::<ENTRY>();
        entries.iter().all(|entry| u64::from_ne_bytes(*entry) & PRESENT != 0)
    }
}

/// Reads memory as far as it can be read. It does not keep the program from changing its mappings meanwhile.
fn read(process: pid_t, address: u64, bytes: &mut [u8]) -> usize {
    let remote = [RemoteIoVec { base: address as usize, len: bytes.len() }];
    match process_vm_readv(Pid::from_raw(process), &mut [IoSliceMut::new(bytes)], &remote) {
        Ok(count) => count,
        // A kernel without CONFIG_CROSS_MEMORY_ATTACH.
        Err(Errno::ENOSYS) => read_file(process, address, bytes),
        Err(_) => 0,
    }
}

/// Reads memory by its file. If that waits, the program's mappings cannot be changed meanwhile.
fn read_file(process: pid_t, address: u64, bytes: &mut [u8]) -> usize {
    let Ok(file) = File::open(format!("/proc/{process}/mem")) else { return 0 };
    let mut done = 0;
    while done < bytes.len() {
        let Some(address) = address.checked_add(done as u64) else { break };
        match file.read_at(&mut bytes[done..], address) {
            Ok(0) | Err(_) => break,
            Ok(count) => done += count,
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_alike_by_the_call_and_by_the_file() {
        let own = std::process::id().cast_signed();
        let secret = [7_u8; 5000];
        let address = std::ptr::from_ref(&secret) as u64;
        for read in [read, read_file] {
            let mut bytes = [0; 5000];
            assert_eq!((read(own, address, &mut bytes), bytes), (5000, secret));
            assert_eq!(read(own, 0, &mut bytes), 0);
        }
    }

    #[test]
    fn memory_that_is_there_is_present_and_an_empty_range_is_not() {
        let mut reader = Reader::new(std::process::id().cast_signed());
        let bytes = [1_u8; 100];
        let address = std::ptr::from_ref(&bytes) as u64;
        let mut copy = [0; 100];
        assert_eq!((reader.read(address, &mut copy), copy), (100, bytes));
        assert!(!reader.is_present(0, 1));
        assert!(!reader.is_present(u64::MAX, 2));
    }
}
