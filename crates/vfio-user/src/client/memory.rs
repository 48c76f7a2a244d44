//! The memory mapped for the device, and the server's requests to read and write it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use whimbrel_memory::SharedBytes;
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::DmaRegion;

use crate::message::{Command, DmaAccess, Header, Kind, Limits, MessageBuffer, Reply, Request};

/// The mapped memory. A clone is another handle to it, for the thread that answers the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<RwLock<Mappings>>);

/// Ordered by first IOVA, with the number of changes.
#[derive(Debug, Default)]
struct Mappings {
    by_iova: BTreeMap<u64, Mapping>,
    revision: u64,
}

/// The mapped memory at one moment.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) revision: u64,
    mappings: Vec<Mapped>,
}

/// A piece of mapped memory.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    pub(super) iova: u64,
    pub(super) rights: DmaMapFlags,
    pub(super) region: DmaRegion,
}

impl Mapped {
    fn is_like(&self, other: &Mapped) -> bool {
        let key = |of: &Mapped| (of.iova, of.region.size(), of.region.address(), of.rights);
        key(self) == key(other)
    }
}

impl Snapshot {
    /// Returns the mappings that another snapshot lacks.
    pub(super) fn without(&self, other: &Snapshot) -> Vec<Mapped> {
        let place = |mapped: &Mapped| other.mappings.binary_search_by_key(&mapped.iova, |other| other.iova);
        let is_new = |mapped: &&Mapped| place(mapped).map_or(true, |at| !mapped.is_like(&other.mappings[at]));
        self.mappings.iter().filter(is_new).cloned().collect()
    }
}

#[derive(Debug)]
struct Mapping {
    rights: DmaMapFlags,
    region: DmaRegion,
}

/// Parts of mappings, in the order of the transfer.
struct Piece<'a> {
    at: usize,
    memory: SharedBytes<'a>,
}

impl Memory {
    /// Adds a mapping. Returns `false`, without adding it, if it overlaps another.
    pub(super) fn insert(&self, iova: u64, rights: DmaMapFlags, region: DmaRegion) -> bool {
        let Mappings { by_iova: mappings, revision } = &mut *self.0.write();
        let last = iova.saturating_add(region.size().saturating_sub(1));
        let below = mappings.range(..=last).next_back();
        let is_free = below.is_none_or(|(start, mapping)| {
            start.saturating_add(mapping.region.size().saturating_sub(1)) < iova && *start < iova
        });
        if is_free {
            *revision += 1;
            mappings.insert(iova, Mapping { rights, region });
        }
        is_free
    }

    /// Returns the mappings that fill a range without a gap, each as IOVA and size; none if they do not fill it
    /// exactly.
    pub(super) fn filling(&self, iova: u64, size: u64) -> Vec<(u64, u64)> {
        let Some(last) = size.checked_sub(1).and_then(|size| iova.checked_add(size)) else {
            return Vec::new();
        };
        let mappings = &self.0.read().by_iova;
        let found: Vec<(u64, u64)> =
            mappings.range(iova..=last).map(|(start, mapping)| (*start, mapping.region.size())).collect();
        let mut next = Some(iova);
        for (start, size) in &found {
            if next != Some(*start) {
                return Vec::new();
            }
            next = start.checked_add(*size);
        }
        if next == last.checked_add(1) { found } else { Vec::new() }
    }

    /// Removes the mappings within a range. The server cannot reach them afterwards.
    pub(super) fn remove(&self, iova: u64, size: u64) {
        let last = iova.saturating_add(size.saturating_sub(1));
        let Mappings { by_iova, revision } = &mut *self.0.write();
        *revision += 1;
        by_iova.retain(|start, mapping| {
            *start < iova || start.saturating_add(mapping.region.size().saturating_sub(1)) > last
        });
    }

    /// Removes the mappings within a range, as a server does, and returns their total size. EINVAL if the range cuts one.
    pub(super) fn unmap(&self, iova: u64, size: u64) -> Result<u64, Errno> {
        let last = size.checked_sub(1).and_then(|size| iova.checked_add(size)).ok_or(Errno::EINVAL)?;
        let Mappings { by_iova, revision } = &mut *self.0.write();
        let touched: Vec<(u64, u64)> = by_iova
            .range(..=last)
            .map(|(start, mapping)| (*start, mapping.region.size()))
            .filter(|(start, size)| start.saturating_add(size.saturating_sub(1)) >= iova)
            .collect();
        let is_cut =
            |(start, size): &(u64, u64)| *start < iova || start.saturating_add(size.saturating_sub(1)) > last;
        if touched.iter().any(is_cut) {
            return Err(Errno::EINVAL);
        }
        *revision += 1;
        let mut unmapped = 0;
        for (start, size) in touched {
            by_iova.remove(&start);
            unmapped += size;
        }
        Ok(unmapped)
    }

    /// Returns all mappings in order.
    pub(super) fn snapshot(&self) -> Snapshot {
        let Mappings { by_iova, revision } = &*self.0.read();
        let mapped = |(iova, mapping): (&u64, &Mapping)| Mapped {
            iova: *iova,
            rights: mapping.rights,
            region: mapping.region.clone(),
        };
        Snapshot { revision: *revision, mappings: by_iova.iter().map(mapped).collect() }
    }

    /// Returns the number of changes, which tells whether a [`Snapshot`] is current.
    pub(super) fn revision(&self) -> u64 {
        self.0.read().revision
    }

    /// Removes all mappings, and returns their total size in bytes.
    pub(super) fn clear(&self) -> u64 {
        let Mappings { by_iova, revision } = &mut *self.0.write();
        *revision += 1;
        let mappings = std::mem::take(by_iova);
        mappings.values().fold(0, |bytes, mapping| bytes.saturating_add(mapping.region.size()))
    }

    /// Writes the reply to a request of the server.
    pub(super) fn answer(&self, header: &Header, payload: &[u8], limits: Limits, out: &mut MessageBuffer) {
        let request = match Command::try_from(header.command) {
            Ok(command @ (Command::DmaRead | Command::DmaWrite)) => Request::parse(command, payload, limits),
            _ => return out.error(header.id, header.command, Errno::ENOTTY),
        };
        let mappings = self.0.read();
        let done = match request {
            Ok(Request::DmaRead(access)) => mappings.read(access, |pieces, count| {
                let message = out.begin(header.id, header.command, Kind::Reply);
                out.put(&access.iova.to_ne_bytes());
                out.put(&access.count.to_ne_bytes());
                let data = out.grow(count);
                for Piece { at, memory } in pieces {
                    memory.copy_to(&mut data[at..at + memory.len()]);
                }
                out.finish(message);
            }),
            Ok(Request::DmaWrite { iova, data }) => mappings.write(iova, data).map(|()| {
                let written = DmaAccess { iova, count: data.len() as u64 };
                out.reply(header.id, &Reply::DmaWrite(written));
            }),
            _ => Err(Errno::EINVAL),
        };
        if let Err(errno) = done {
            out.error(header.id, header.command, errno);
        }
    }
}

impl Mappings {
    fn read(&self, access: DmaAccess, take: impl FnOnce(Vec<Piece<'_>>, usize)) -> Result<(), Errno> {
        let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
        take(self.pieces(access.iova, count, DmaMapFlags::READ)?, count);
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        for Piece { at, memory } in self.pieces(iova, data.len(), DmaMapFlags::WRITE)? {
            memory.copy_from(&data[at..at + memory.len()]);
        }
        Ok(())
    }

    /// Returns the memory of a range, all of which must be mapped with `right`; otherwise EFAULT.
    fn pieces(&self, iova: u64, count: usize, right: DmaMapFlags) -> Result<Vec<Piece<'_>>, Errno> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < count {
            let next = iova.checked_add(at as u64).ok_or(Errno::EFAULT)?;
            let (start, mapping) = self.by_iova.range(..=next).next_back().ok_or(Errno::EFAULT)?;
            let offset = next - start;
            let left = mapping.region.size().checked_sub(offset).filter(|left| *left > 0);
            let left = left.filter(|_| mapping.rights.contains(right)).ok_or(Errno::EFAULT)?;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(count - at);
            let memory = mapping.region.bytes(offset, length).ok_or(Errno::EFAULT)?;
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

    fn region(size: usize) -> DmaRegion {
        DmaRegion::from(Arc::<MmapRegion<()>>::new(MmapRegion::new(size).unwrap()))
    }

    fn memory() -> Memory {
        let memory = Memory::default();
        for (iova, rights) in [
            (0x1000, DmaMapFlags::READ | DmaMapFlags::WRITE),
            (0x2000, DmaMapFlags::READ | DmaMapFlags::WRITE),
            (0x3000, DmaMapFlags::READ),
        ] {
            assert!(memory.insert(iova, rights, region(0x1000)));
        }
        memory
    }

    /// Returns the server's view of a request: data, or an errno.
    fn asked(memory: &Memory, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
        let (mut bytes, mut out) = (MessageBuffer::new(), MessageBuffer::new());
        bytes.request(7, false, request);
        let limits = Limits::default();
        let parse = |bytes: &[u8]| Header::parse(*bytes.first_chunk().unwrap(), limits).unwrap();
        memory.answer(&parse(bytes.as_bytes()), &bytes.as_bytes()[16..], limits, &mut out);
        let header = parse(out.as_bytes());
        assert_eq!((header.id, header.command), (7, request.command().number()));
        match (header.kind, Reply::parse(request.command(), &out.as_bytes()[16..], limits)) {
            (Kind::Reply, Ok(Reply::DmaRead { data, .. })) => Ok(data.to_vec()),
            (Kind::Reply, Ok(Reply::DmaWrite(_))) => Ok(vec![]),
            (Kind::Error(errno), _) => Err(Errno::try_from(errno).unwrap_or(Errno::EIO)),
            other => panic!("{other:?}"),
        }
    }

    fn read(memory: &Memory, iova: u64, count: u64) -> Result<Vec<u8>, Errno> {
        asked(memory, &Request::DmaRead(DmaAccess { iova, count }))
    }

    #[test]
    fn what_is_written_over_two_mappings_is_read_back() {
        let memory = memory();
        asked(&memory, &Request::DmaWrite { iova: 0x1ffd, data: b"across" }).unwrap();
        assert_eq!(read(&memory, 0x1ffd, 6).unwrap(), b"across");
    }

    #[test]
    fn nothing_outside_of_the_mappings_and_their_rights_is_reached() {
        let memory = memory();
        for (iova, count) in [(0, 1), (0xfff, 2), (0x3fff, 2), (0x4000, 1), (u64::MAX, 2)] {
            assert_eq!(read(&memory, iova, count), Err(Errno::EFAULT), "{iova:#x}");
        }
        let request = Request::DmaWrite { iova: 0x2fff, data: b"ab" };
        assert_eq!(asked(&memory, &request), Err(Errno::EFAULT));
        assert_eq!(read(&memory, 0x2fff, 1).unwrap(), [0], "nothing was written");
    }

    #[test]
    fn what_is_mapped_is_not_mapped_over() {
        let memory = memory();
        for (iova, size) in [(0x1000, 0x1000), (0x800, 0x1000), (0x3fff, 1), (0, 0x10000)] {
            assert!(!memory.insert(iova, DmaMapFlags::READ, region(size)), "{iova:#x}");
        }
        assert!(memory.insert(0x4000, DmaMapFlags::READ, region(0x1000)));
        assert!(memory.insert(0, DmaMapFlags::READ, region(0x1000)));
        assert_eq!(memory.filling(0, 0x5000).len(), 5);
    }

    #[test]
    fn only_mappings_without_a_gap_fill_a_range() {
        let memory = memory();
        assert_eq!(memory.filling(0x1000, 0x2000), [(0x1000, 0x1000), (0x2000, 0x1000)]);
        for (iova, size) in [(0x1000, 0x1800), (0x800, 0x1800), (0x3000, 0x2000), (0, 0), (u64::MAX, 2)] {
            assert!(memory.filling(iova, size).is_empty(), "{iova:#x}");
        }
        memory.remove(0x1800, 0x1800);
        assert_eq!(memory.filling(0x1000, 0x1000).len(), 1);
        assert!(memory.filling(0x2000, 0x1000).is_empty());
    }

    #[test]
    fn whole_mappings_are_unmapped_without_a_server_and_none_is_cut() {
        let memory = memory();
        for (iova, size) in [(0x1800, 0x1000), (0x1000, 0x800), (0x2800, 0x800), (0, 0), (u64::MAX, 2)] {
            assert_eq!(memory.unmap(iova, size), Err(Errno::EINVAL), "{iova:#x}");
        }
        assert_eq!(memory.unmap(0, 0x1000), Ok(0));
        assert_eq!(memory.unmap(0x1000, 0x2000), Ok(0x2000));
        assert_eq!(memory.snapshot().mappings.len(), 1);
    }

    #[test]
    fn a_snapshot_says_what_has_changed_since() {
        let memory = memory();
        let before = memory.snapshot();
        assert!(before.without(&memory.snapshot()).is_empty());
        assert_eq!(memory.revision(), before.revision);
        memory.remove(0x2000, 0x1000);
        // Other memory at the same place.
        assert!(memory.insert(0x2000, DmaMapFlags::READ, region(0x1000)));
        memory.remove(0x3000, 0x1000);
        assert!(memory.insert(0x5000, DmaMapFlags::READ, region(0x1000)));
        let now = memory.snapshot();
        assert_ne!(now.revision, before.revision);
        let places =
            |mappings: Vec<Mapped>| -> Vec<u64> { mappings.iter().map(|mapped| mapped.iova).collect() };
        assert_eq!(places(now.without(&before)), [0x2000, 0x5000]);
        assert_eq!(places(before.without(&now)), [0x2000, 0x3000]);
    }
}
