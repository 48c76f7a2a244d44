//! The memory that a device was given, and the server's requests to read and write it.
#![allow(unsafe_code)]

use std::collections::BTreeMap;

use vm_memory::VolatileSlice;
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::DmaRegion;

use crate::message::{Command, DmaAccess, Header, Limits, MessageBuffer, Reply, Request};

/// What is mapped, by first IOVA.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<u64, Mapping>);

#[derive(Debug)]
struct Mapping {
    rights: DmaMapFlags,
    region: DmaRegion,
}

/// Bytes of a mapping, by their place in what is transferred.
struct Piece<'a> {
    at: usize,
    memory: VolatileSlice<'a>,
}

impl Memory {
    pub(super) fn insert(&mut self, iova: u64, rights: DmaMapFlags, region: DmaRegion) {
        self.0.insert(iova, Mapping { rights, region });
    }

    /// The mappings that fill a range without a gap, each as iova and bytes; none if others do, or if one is
    /// cut.
    pub(super) fn filling(&self, iova: u64, size: u64) -> Vec<(u64, u64)> {
        let Some(last) = size.checked_sub(1).and_then(|size| iova.checked_add(size)) else {
            return Vec::new();
        };
        let found: Vec<(u64, u64)> =
            self.0.range(iova..=last).map(|(start, mapping)| (*start, mapping.region.size())).collect();
        let mut next = Some(iova);
        for (start, size) in &found {
            if next != Some(*start) {
                return Vec::new();
            }
            next = start.checked_add(*size);
        }
        if next == last.checked_add(1) { found } else { Vec::new() }
    }

    /// Forgets the mappings that lie in a range.
    pub(super) fn remove(&mut self, iova: u64, size: u64) {
        let last = iova.saturating_add(size.saturating_sub(1));
        self.0.retain(|start, mapping| {
            *start < iova || start.saturating_add(mapping.region.size().saturating_sub(1)) > last
        });
    }

    /// Writes the reply to a request of the server.
    pub(super) fn answer(&self, header: &Header, payload: &[u8], limits: Limits, out: &mut MessageBuffer) {
        let request = match Command::try_from(header.command) {
            Ok(command @ (Command::DmaRead | Command::DmaWrite)) => Request::parse(command, payload, limits),
            _ => return out.error(header.id, header.command, Errno::ENOTTY),
        };
        let done = match request {
            Ok(Request::DmaRead(access)) => self.read(access).map(|data| {
                out.reply(header.id, &Reply::DmaRead { iova: access.iova, data: &data });
            }),
            Ok(Request::DmaWrite { iova, data }) => self.write(iova, data).map(|()| {
                let written = DmaAccess { iova, count: data.len() as u64 };
                out.reply(header.id, &Reply::DmaWrite(written));
            }),
            _ => Err(Errno::EINVAL),
        };
        if let Err(errno) = done {
            out.error(header.id, header.command, errno);
        }
    }

    fn read(&self, access: DmaAccess) -> Result<Vec<u8>, Errno> {
        let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
        let pieces = self.pieces(access.iova, count, DmaMapFlags::READ)?;
        let mut data = vec![0; count];
        for Piece { at, memory } in pieces {
            memory.copy_to(&mut data[at..at + memory.len()]);
        }
        Ok(data)
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        for Piece { at, memory } in self.pieces(iova, data.len(), DmaMapFlags::WRITE)? {
            memory.copy_from(&data[at..at + memory.len()]);
        }
        Ok(())
    }

    /// The memory of a range, all of which must be mapped with `right`; EFAULT if it is not.
    fn pieces(&self, iova: u64, count: usize, right: DmaMapFlags) -> Result<Vec<Piece<'_>>, Errno> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < count {
            let next = iova.checked_add(at as u64).ok_or(Errno::EFAULT)?;
            let (start, mapping) = self.0.range(..=next).next_back().ok_or(Errno::EFAULT)?;
            let offset = next - start;
            let left = mapping.region.size().checked_sub(offset).filter(|left| *left > 0);
            let left = left.filter(|_| mapping.rights.contains(right)).ok_or(Errno::EFAULT)?;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(count - at);
            let address = (mapping.region.address() + offset) as *mut u8;
            // SAFETY: `offset + length` lies within the region, which stays mapped in this process as long as
            // `mapping` holds it, and the slice does not outlive that. Who mapped it for the device with
            // `right` lets it be accessed so, at any time and by others too, as volatile accesses may be.
            let memory = unsafe { VolatileSlice::new(address, length) };
            pieces.push(Piece { at, memory });
            at += length;
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::MmapRegion;

    use super::*;

    fn memory() -> Memory {
        let mut memory = Memory::default();
        for (iova, rights) in [
            (0x1000, DmaMapFlags::READ | DmaMapFlags::WRITE),
            (0x2000, DmaMapFlags::READ | DmaMapFlags::WRITE),
            (0x3000, DmaMapFlags::READ),
        ] {
            let region: MmapRegion<()> = MmapRegion::new(0x1000).unwrap();
            memory.insert(iova, rights, DmaRegion::new(Arc::new(region)));
        }
        memory
    }

    #[test]
    fn what_is_written_over_two_mappings_is_read_back() {
        let memory = memory();
        memory.write(0x1ffd, b"across").unwrap();
        assert_eq!(memory.read(DmaAccess { iova: 0x1ffd, count: 6 }).unwrap(), b"across");
    }

    #[test]
    fn nothing_outside_of_the_mappings_and_their_rights_is_reached() {
        let memory = memory();
        for (iova, count) in [(0, 1), (0xfff, 2), (0x3fff, 2), (0x4000, 1), (u64::MAX, 2)] {
            assert_eq!(memory.read(DmaAccess { iova, count }).err(), Some(Errno::EFAULT), "{iova:#x}");
        }
        assert_eq!(memory.write(0x2fff, b"ab").err(), Some(Errno::EFAULT));
        assert_eq!(memory.read(DmaAccess { iova: 0x2fff, count: 1 }).unwrap(), [0], "nothing was written");
    }

    #[test]
    fn only_mappings_without_a_gap_fill_a_range() {
        let mut memory = memory();
        assert_eq!(memory.filling(0x1000, 0x2000), [(0x1000, 0x1000), (0x2000, 0x1000)]);
        for (iova, size) in [(0x1000, 0x1800), (0x800, 0x1800), (0x3000, 0x2000), (0, 0), (u64::MAX, 2)] {
            assert!(memory.filling(iova, size).is_empty(), "{iova:#x}");
        }
        memory.remove(0x1800, 0x1800);
        assert_eq!(memory.filling(0x1000, 0x1000).len(), 1);
        assert!(memory.filling(0x2000, 0x1000).is_empty());
    }
}
