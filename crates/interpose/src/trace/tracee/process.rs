//! The view of `/proc` on a traced program: its memory, the files behind its descriptors, its threads.

use std::fs;

use libc::pid_t;

use super::patience::Reader;

/// Bytes of a page, within which a read fails as a whole or not at all. Larger pages are multiples of it.
const PAGE: u64 = 4096;

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
        let mut bytes = vec![0; limit];
        let count = self.read(address, &mut bytes);
        bytes.truncate(count);
        bytes
    }

    /// Reads a C string of at most `limit` bytes, with the zero byte at its end.
    pub(super) fn text(&mut self, address: u64, limit: usize) -> Vec<u8> {
        // What follows the string in the next page may not be readable.
        let to_next_page = usize::try_from(PAGE - address % PAGE).unwrap_or(limit);
        let mut text = self.bytes(address, limit.min(to_next_page));
        if !text.contains(&0) && text.len() == to_next_page && text.len() < limit {
            let next = address.saturating_add(to_next_page as u64);
            text.extend(self.bytes(next, limit - to_next_page));
        }
        if let Some(end) = text.iter().position(|byte| *byte == 0) {
            text.truncate(end + 1);
        }
        text
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
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some((field("Tgid:")?, field("PPid:")?))
}
