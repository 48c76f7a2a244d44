//! The view of `/proc` on a traced program: its memory, the files behind its descriptors, its threads.

use std::fs;

use libc::pid_t;

use super::patience::Reader;
use crate::proc;
use crate::trace::argument;

/// The memory of a process.
#[derive(Debug)]
pub(super) struct Memory {
    reader: Reader,
}

impl Memory {
    pub(super) fn new(id: pid_t) -> Memory {
        Memory { reader: Reader::new(id) }
    }

    /// Reads into `bytes` from an address, and returns the number of bytes that could be read, in time.
    pub(super) fn read(&mut self, address: u64, bytes: &mut [u8]) -> usize {
        self.reader.read(address, bytes)
    }

    /// Reads at most `limit` bytes from an address.
    pub(super) fn bytes(&mut self, address: u64, limit: usize) -> Vec<u8> {
        argument::bytes(address, limit, &mut |address, bytes| self.read(address, bytes))
    }
}

/// Returns the link of a thread's descriptor; an empty one for a descriptor that is not open.
pub(super) fn link(thread: pid_t, fd: i32) -> String {
    let path = format!("/proc/{thread}/fd/{fd}");
    fs::read_link(path).map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Returns the position in the file of a thread's descriptor.
pub(super) fn position(thread: pid_t, fd: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{thread}/fdinfo/{fd}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("pos:")?.trim().parse().ok())
}

/// Returns the process of a thread, and the parent of that process.
pub(super) fn family(thread: pid_t) -> Option<(pid_t, pid_t)> {
    let text = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    Some((proc::process_in(&text)?, proc::number_in(&text, "PPid:")?))
}
