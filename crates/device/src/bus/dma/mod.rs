//! The memory a device can reach: mappings of IO virtual addresses, and the log of what was written through them.
//!
//! A device reaches only what is mapped, with the rights the mapping gives. Everything else is a [`DmaFault`].
//!
//! To mark a log takes no lock, and a report of a log takes none that an access needs. The mappings are behind a lock, for
//! once they are taken away no access through them may still run. It has a shard for each of several threads, so that
//! threads that access memory neither wait for one another nor pass a cache line around. Only a change of the mappings,
//! or of which logs are on, takes all shards, and so waits for the accesses under way.
//!
//! Some memory has no address in this process ([`RemoteMemory`]). An access to it asks for the bytes, and holds its shard
//! until they have come, or until a deadline that all of the access has in common.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
use vm_memory::{FileOffset, VolatileSlice};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use whimbrel_memory::Memory;
use whimbrel_memory::RemoteMemory;

/// Bytes of remote memory that [`DmaSpace::access`] holds at a time.
const BOUNCE_BYTES: usize = 64 << 10;

/// An access that the mappings do not allow, or that remote memory has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dma {access} of {length} bytes at iova {iova:#x} {cause}")]
pub struct DmaFault {
    /// First address of the access.
    pub iova: u64,
    /// Bytes of the access.
    pub length: u64,
    /// What the device wanted to do.
    pub access: Access,
    /// Why it cannot be done.
    pub cause: FaultCause,
}

/// Why an access is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultCause {
    /// Not all of it is mapped with that right. Nothing was read or written.
    #[error("is not mapped with that right")]
    NotMapped,
    /// Who has the memory has refused, or cannot be reached. Of a write some may have been done.
    #[error("failed where the memory is: {0}")]
    Remote(Errno),
    /// The file that was mapped is shorter than it was. What was read is worth nothing.
    #[error("reaches memory whose file was made shorter")]
    Lost,
}

/// What a device does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
        })
    }
}

impl Access {
    const fn right(self) -> DmaMapFlags {
        match self {
            Access::Read => DmaMapFlags::READ,
            Access::Write => DmaMapFlags::WRITE,
        }
    }
}

/// The mappings of one device.
///
/// ```
/// use std::fs::File;
/// use vm_memory::FileOffset;
/// use whimbrel_device::dma::DmaSpace;
/// use whimbrel_uapi::type1::DmaMapFlags;
///
/// let memory = tempfile_of(0x2000);
/// let dma = DmaSpace::default();
/// dma.map(0x10000, 0x2000, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(memory, 0))?;
/// dma.write(0x10ffe, b"over a page")?;
/// let mut back = [0; 11];
/// dma.read(0x10ffe, &mut back)?;
/// assert_eq!(&back, b"over a page");
/// assert!(dma.write(0x11ff8, b"past the end").is_err());
/// # fn tempfile_of(size: u64) -> File {
/// #     let fd = nix::sys::memfd::memfd_create(c"doc", nix::sys::memfd::MFdFlags::empty()).unwrap();
/// #     let file = File::from(fd);
/// #     file.set_len(size).unwrap();
/// #     file
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct DmaSpace {
    inner: ShardedLock<Inner>,
    faults: AtomicU64,
}

/// A mapping: where it is, and what lies behind it.
#[derive(Clone, Debug)]
pub struct MappedRange {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What the device may do there.
    pub rights: DmaMapFlags,
    /// The file, and where in it the mapping begins; `None` for memory that has no address in this process.
    pub file: Option<FileOffset>,
}

#[derive(Debug, Default)]
struct Inner {
    mappings: BTreeMap<u64, Mapping>,
    log: Option<Arc<DirtyLog>>,
}

#[derive(Debug)]
struct Mapping {
    size: u64,
    rights: DmaMapFlags,
    backing: Backing,
    log: Option<MappingLog>,
}

/// Where the bytes of a mapping are.
#[derive(Debug)]
enum Backing {
    Memory(Memory),
    /// Asked for by IOVA, so that each part of a mapping has the same.
    Remote(Arc<dyn RemoteMemory>),
}

/// What one access meets in one mapping.
enum Piece<'a> {
    Memory(VolatileSlice<'a>),
    Remote(RemotePiece<'a>),
}

/// Bytes of remote memory.
struct RemotePiece<'a> {
    memory: &'a dyn RemoteMemory,
    /// The first address.
    iova: u64,
    count: usize,
    deadline: Instant,
}

/// A log of the writes through one mapping, whichever device makes them. It counts from the start of the memory that was
/// mapped in one request, of which a mapping here may be a later piece.
#[derive(Clone, Debug)]
pub(crate) struct MappingLog {
    /// Marked at `offset` plus the offset within the mapping.
    pub(crate) log: Arc<DirtyLog>,
    /// Bytes of the request before this mapping.
    pub(crate) offset: u64,
}

impl MappingLog {
    /// The log as it counts for what lies `bytes` further.
    pub(crate) fn after(&self, bytes: u64) -> MappingLog {
        MappingLog { log: self.log.clone(), offset: self.offset + bytes }
    }
}

impl DmaSpace {
    /// How long all that one access asks of remote memory may take together. Until then no mapping can be taken away.
    pub const REMOTE_TIMEOUT: Duration = Duration::from_secs(5);

    /// Maps `size` bytes of a file at `iova`, readable and writable by the device as `rights` says.
    ///
    /// The file is mapped shared, so that the device and everyone else who maps it see the same memory. It must not be
    /// made shorter while it is mapped ([`Memory::of_file`]). EINVAL for a size of 0, no right at all, an unknown right or
    /// a file that is too short; EOVERFLOW for a range past 2^64; EEXIST if part of the range is mapped.
    pub fn map(&self, iova: u64, size: u64, rights: DmaMapFlags, file: FileOffset) -> Result<(), Errno> {
        let last = last_of(iova, size)?;
        check_rights(rights)?;
        // Before the file is mapped, which takes time and an entry of the process's own.
        if self.look().overlaps(iova, last) {
            return Err(Errno::EEXIST);
        }
        self.map_memory(iova, rights, Memory::of_file(file, size, rights.contains(DmaMapFlags::WRITE))?)
    }

    /// Maps memory at `iova`, whole, readable and writable by the device as `rights` says.
    ///
    /// EINVAL for no right at all, an unknown right, or the right to write to memory that cannot be written; EOVERFLOW
    /// for a range past 2^64; EEXIST if part of the range is mapped.
    pub fn map_memory(&self, iova: u64, rights: DmaMapFlags, memory: Memory) -> Result<(), Errno> {
        self.map_logged(iova, rights, memory, None)
    }

    /// As [`DmaSpace::map_memory`], and what is written through the mapping is marked in `log` besides the log of the
    /// device.
    pub(crate) fn map_logged(
        &self,
        iova: u64,
        rights: DmaMapFlags,
        memory: Memory,
        log: Option<MappingLog>,
    ) -> Result<(), Errno> {
        let size = memory.size();
        let last = last_of(iova, size)?;
        check_rights(rights)?;
        if rights.contains(DmaMapFlags::WRITE) && !memory.is_writable() {
            return Err(Errno::EINVAL);
        }
        self.insert(iova, last, Mapping { size, rights, backing: Backing::Memory(memory), log })
    }

    /// Maps `size` bytes of memory that is elsewhere at `iova`, readable and writable by the device as `rights`
    /// says. It is asked for the same addresses.
    ///
    /// EINVAL for a size of 0, no right at all or an unknown right; EOVERFLOW for a range past 2^64; EEXIST if part
    /// of the range is mapped.
    pub fn map_remote(
        &self,
        iova: u64,
        size: u64,
        rights: DmaMapFlags,
        memory: Arc<dyn RemoteMemory>,
    ) -> Result<(), Errno> {
        let last = last_of(iova, size)?;
        check_rights(rights)?;
        self.insert(iova, last, Mapping { size, rights, backing: Backing::Remote(memory), log: None })
    }

    fn insert(&self, iova: u64, last: u64, mapping: Mapping) -> Result<(), Errno> {
        let mut inner = self.change();
        if inner.overlaps(iova, last) {
            return Err(Errno::EEXIST);
        }
        inner.mappings.insert(iova, mapping);
        Ok(())
    }

    /// Sets or ends the log of the mapping that starts at `iova`.
    pub(crate) fn set_mapping_log(&self, iova: u64, log: Option<MappingLog>) {
        if let Some(mapping) = self.change().mappings.get_mut(&iova) {
            mapping.log = log;
        }
    }

    /// Makes two mappings of the one that goes on over `iova`, which begins the second. To the device nothing changes.
    pub(crate) fn cut(&self, iova: u64) {
        let mut inner = self.change();
        let Some((start, mapping)) = inner.mappings.range_mut(..iova).next_back() else { return };
        let offset = iova - start;
        let parts = (offset < mapping.size).then(|| match &mapping.backing {
            Backing::Memory(memory) => {
                let first = memory.part(0, offset)?;
                Some((Backing::Memory(first), Backing::Memory(memory.part(offset, mapping.size - offset)?)))
            }
            Backing::Remote(memory) => {
                Some((Backing::Remote(memory.clone()), Backing::Remote(memory.clone())))
            }
        });
        let Some(Some((first, second))) = parts else { return };
        let log = mapping.log.as_ref().map(|log| log.after(offset));
        let other = Mapping { size: mapping.size - offset, rights: mapping.rights, backing: second, log };
        mapping.backing = first;
        mapping.size = offset;
        inner.mappings.insert(iova, other);
    }

    /// All mappings as they are, in ascending order.
    pub fn mappings(&self) -> Vec<MappedRange> {
        let inner = self.look();
        let ranges = inner.mappings.iter().map(|(iova, mapping)| MappedRange {
            iova: *iova,
            size: mapping.size,
            rights: mapping.rights,
            file: match &mapping.backing {
                Backing::Memory(memory) => memory.file(),
                Backing::Remote(_) => None,
            },
        });
        ranges.collect()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.look().mappings.is_empty()
    }

    /// Where the device can write: first and last address of each mapping, in ascending order.
    pub(crate) fn writable(&self) -> Vec<(u64, u64)> {
        let inner = self.look();
        let writable =
            inner.mappings.iter().filter(|(_, mapping)| mapping.rights.contains(DmaMapFlags::WRITE));
        writable.map(|(iova, mapping)| (*iova, iova + (mapping.size - 1))).collect()
    }

    /// Takes away the mappings that lie wholly in `size` bytes from `iova` and returns how many bytes they had.
    /// EINVAL, and nothing is taken away, if the range cuts a mapping; EOVERFLOW for a range past 2^64.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<u64, Errno> {
        let last = last_of(iova, size)?;
        let mut inner = self.change();
        // What most users do: they unmap what they mapped, and nothing else can be in that range.
        if let Entry::Occupied(exact) = inner.mappings.entry(iova)
            && exact.get().size == size
        {
            exact.remove();
            return Ok(size);
        }
        let cut_below =
            inner.mappings.range(..iova).next_back().is_some_and(|(start, m)| start + (m.size - 1) >= iova);
        let cut_above = inner
            .mappings
            .range(iova..=last)
            .next_back()
            .is_some_and(|(start, m)| start + (m.size - 1) > last);
        if cut_below || cut_above {
            return Err(Errno::EINVAL);
        }
        let starts: Vec<u64> = inner.mappings.range(iova..=last).map(|(start, _)| *start).collect();
        Ok(starts.iter().filter_map(|start| inner.mappings.remove(start)).map(|mapping| mapping.size).sum())
    }

    /// The device reads memory. After a fault `data` holds anything.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let mut at = 0;
        self.pass(iova, data.len() as u64, Access::Read, |piece| match piece {
            Piece::Memory(slice) => {
                at += slice.copy_to(&mut data[at..]);
                Ok(())
            }
            Piece::Remote(RemotePiece { memory, iova, count, deadline }) => {
                at += count;
                memory.read(iova, &mut data[at - count..at], deadline)
            }
        })
    }

    /// The device writes memory.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let mut at = 0;
        self.pass(iova, data.len() as u64, Access::Write, |piece| match piece {
            Piece::Memory(slice) => {
                slice.copy_from(&data[at..at + slice.len()]);
                at += slice.len();
                Ok(())
            }
            Piece::Remote(RemotePiece { memory, iova, count, deadline }) => {
                at += count;
                memory.write(iova, &data[at - count..at], deadline)
            }
        })
    }

    /// Calls `visit` with every piece of memory behind `length` bytes from `iova`, in order.
    ///
    /// Nothing is visited unless the whole range is mapped with the right that `access` needs. After a write the range
    /// is marked in every log that is on: the data is there before its mark is, so a report that takes the mark away is
    /// never ahead of the data.
    ///
    /// Remote memory is visited as copies of it, of at most 64 KiB. [`Access::Read`] shows what it holds, and what the
    /// visitor leaves there is lost. [`Access::Write`] shows zeros, and all of what the visitor leaves there is written,
    /// so it has to write every byte. If remote memory fails, the pieces before it have been visited, and what was
    /// written of them is marked.
    pub fn access(
        &self,
        iova: u64,
        length: u64,
        access: Access,
        mut visit: impl FnMut(VolatileSlice<'_>),
    ) -> Result<(), DmaFault> {
        self.pass(iova, length, access, |piece| match piece {
            Piece::Memory(slice) => {
                visit(slice);
                Ok(())
            }
            Piece::Remote(piece) => bounce(piece, access, &mut visit),
        })
    }

    fn pass(
        &self,
        iova: u64,
        length: u64,
        access: Access,
        mut visit: impl FnMut(Piece<'_>) -> Result<(), Errno>,
    ) -> Result<(), DmaFault> {
        let inner = self.look();
        let fault = || {
            self.faults.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(iova, length, %access, "dma fault");
            DmaFault { iova, length, access, cause: FaultCause::NotMapped }
        };
        for piece in inner.pieces(iova, length, access) {
            if piece.is_none() {
                return Err(fault());
            }
        }
        let mut done = 0;
        let mut failure = None;
        let mut deadline = None;
        for (mapping, offset, count) in inner.pieces(iova, length, access).flatten() {
            let visited = match &mapping.backing {
                Backing::Memory(memory) => {
                    match memory.access(offset, count, |bytes| visit(Piece::Memory(bytes))) {
                        Ok(visited) => visited.map_err(FaultCause::Remote),
                        Err(_) => Err(FaultCause::Lost),
                    }
                }
                Backing::Remote(memory) => {
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + Self::REMOTE_TIMEOUT);
                    // It is mapped, so that it does not pass 2^64.
                    let iova = iova.wrapping_add(done);
                    visit(Piece::Remote(RemotePiece { memory: &**memory, iova, count, deadline }))
                        .map_err(FaultCause::Remote)
                }
            };
            done += count as u64;
            // Some of a write that has failed may have been done.
            if let (Access::Write, Some(MappingLog { log, offset: before })) = (access, &mapping.log) {
                log.mark(before + offset as u64, count as u64);
            }
            if let Err(cause) = visited {
                failure = Some(cause);
                break;
            }
        }
        if let (Access::Write, Some(log)) = (access, &inner.log) {
            log.mark(iova, done);
        }
        match failure {
            None => Ok(()),
            Some(cause) => Err(DmaFault { cause, ..fault() }),
        }
    }

    /// Marks every write in `log` from now on, in place of a log set before. `None` ends it.
    pub fn set_log(&self, log: Option<Arc<DirtyLog>>) {
        self.change().log = log;
    }

    // A panic of a visitor leaves the mappings as they were, so that a poisoned lock says nothing.
    fn look(&self) -> ShardedLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> ShardedLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many accesses were faults.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}

/// Visits remote memory by way of a copy.
fn bounce(
    piece: RemotePiece<'_>,
    access: Access,
    visit: &mut impl FnMut(VolatileSlice<'_>),
) -> Result<(), Errno> {
    let RemotePiece { memory, mut iova, count, deadline } = piece;
    let mut buffer = vec![0; count.min(BOUNCE_BYTES)];
    let mut left = count;
    while left > 0 {
        let copy = &mut buffer[..left.min(BOUNCE_BYTES)];
        match access {
            Access::Read => {
                memory.read(iova, copy, deadline)?;
                visit(VolatileSlice::from(&mut *copy));
            }
            Access::Write => {
                copy.fill(0);
                visit(VolatileSlice::from(&mut *copy));
                memory.write(iova, copy, deadline)?;
            }
        }
        left -= copy.len();
        // Only behind the last byte of all this is 2^64.
        iova = iova.wrapping_add(copy.len() as u64);
    }
    Ok(())
}

/// The last address of `size` bytes from `iova`.
fn last_of(iova: u64, size: u64) -> Result<u64, Errno> {
    let past_first = size.checked_sub(1).ok_or(Errno::EINVAL)?;
    iova.checked_add(past_first).ok_or(Errno::EOVERFLOW)
}

fn check_rights(rights: DmaMapFlags) -> Result<(), Errno> {
    if rights.is_empty() || !(DmaMapFlags::READ | DmaMapFlags::WRITE).contains(rights) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

impl Inner {
    fn overlaps(&self, iova: u64, last: u64) -> bool {
        let below = self.mappings.range(..=last).next_back();
        below.is_some_and(|(start, mapping)| start + (mapping.size - 1) >= iova)
    }

    /// The pieces of mappings that make up a range; `None` where one is missing, and then no more.
    fn pieces(
        &self,
        iova: u64,
        length: u64,
        access: Access,
    ) -> impl Iterator<Item = Option<(&Mapping, usize, usize)>> {
        let mut at = iova;
        let mut left = length;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let found = self.mappings.range(..=at).next_back().filter(|(start, mapping)| {
                at - *start < mapping.size && mapping.rights.contains(access.right())
            });
            let Some((start, mapping)) = found else {
                left = 0;
                return Some(None);
            };
            let offset = at - start;
            let count = left.min(mapping.size - offset);
            left -= count;
            match at.checked_add(count) {
                Some(next) => at = next,
                None if left == 0 => {}
                None => {
                    left = 0;
                    return Some(None);
                }
            }
            Some(Some((mapping, offset as usize, count as usize)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

    use super::*;

    const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

    fn memory(size: u64) -> FileOffset {
        let file = File::from(memfd_create(c"dma test", MFdFlags::empty()).unwrap());
        file.set_len(size).unwrap();
        FileOffset::new(file, 0)
    }

    fn space(mappings: &[(u64, u64, DmaMapFlags)]) -> DmaSpace {
        let space = DmaSpace::default();
        for (iova, size, rights) in mappings {
            space.map(*iova, *size, *rights, memory(*size)).unwrap();
        }
        space
    }

    #[test]
    fn an_access_may_span_adjacent_mappings() {
        let space = space(&[(0x1000, 0x1000, BOTH), (0x2000, 0x1000, BOTH)]);
        space.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
        let mut back = [0; 4];
        space.read(0x1ffe, &mut back).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
    }

    #[test]
    fn an_access_without_mapping_or_right_is_a_fault_and_changes_nothing() {
        let space = space(&[
            (0x1000, 0x1000, BOTH),
            (0x2000, 0x1000, DmaMapFlags::READ),
            (0x4000, 0x1000, DmaMapFlags::WRITE),
        ]);
        let cases = [
            (0x0, 1, Access::Read),
            (0xfff, 2, Access::Read),
            (0x1ffe, 4, Access::Write),
            (0x2fff, 2, Access::Read),
            (0x4000, 1, Access::Read),
            (u64::MAX, 2, Access::Read),
        ];
        for (count, (iova, length, access)) in cases.into_iter().enumerate() {
            let result = match access {
                Access::Read => space.read(iova, &mut vec![0; length as usize]),
                Access::Write => space.write(iova, &vec![1; length as usize]),
            };
            assert_eq!(result, Err(DmaFault { iova, length, access, cause: FaultCause::NotMapped }));
            assert_eq!(space.faults(), count as u64 + 1);
        }
        let mut back = [9; 2];
        space.read(0x1ffe, &mut back).unwrap();
        assert_eq!(back, [0, 0], "the part of a faulting write that is mapped stays as it was");
    }

    #[test]
    fn mappings_do_not_overlap() {
        let space = space(&[(0x2000, 0x2000, BOTH)]);
        for (iova, size) in
            [(0x2000, 0x2000), (0x1000, 0x1001), (0x3fff, 0x1000), (0x2800, 0x10), (0, 0x10000)]
        {
            assert_eq!(space.map(iova, size, BOTH, memory(size)), Err(Errno::EEXIST), "{iova:#x}");
        }
        space.map(0x1000, 0x1000, BOTH, memory(0x1000)).unwrap();
        space.map(0x4000, 0x1000, BOTH, memory(0x1000)).unwrap();
    }

    #[test]
    fn impossible_mappings_are_refused() {
        let space = DmaSpace::default();
        assert_eq!(space.map(0, 0, BOTH, memory(0x1000)), Err(Errno::EINVAL));
        assert_eq!(space.map(0, 0x1000, DmaMapFlags::empty(), memory(0x1000)), Err(Errno::EINVAL));
        assert_eq!(space.map(0, 0x1000, DmaMapFlags::VADDR, memory(0x1000)), Err(Errno::EINVAL));
        assert_eq!(space.map(u64::MAX, 2, BOTH, memory(0x1000)), Err(Errno::EOVERFLOW));
        assert_eq!(space.map(0, 0x2000, BOTH, memory(0x1000)), Err(Errno::EINVAL), "the file is too short");
    }

    #[test]
    fn a_mapping_that_is_cut_is_two_that_hold_what_it_held() {
        let space = space(&[(0x1000, 0x3000, BOTH)]);
        space.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
        space.cut(0x2000);
        let mut back = [0; 4];
        space.read(0x1ffe, &mut back).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
        assert_eq!(space.unmap(0x1000, 0x1000), Ok(0x1000));
        space.read(0x2000, &mut back[..2]).unwrap();
        assert_eq!(back, [3, 4, 3, 4]);
        assert_eq!(space.unmap(0x2000, 0x2000), Ok(0x2000));
    }

    #[test]
    fn remote_memory_that_is_cut_is_asked_for_the_same_addresses() {
        #[derive(Debug)]
        struct Addresses;
        impl RemoteMemory for Addresses {
            fn read(&self, iova: u64, data: &mut [u8], _: Instant) -> Result<(), Errno> {
                for (address, byte) in (iova..).zip(data) {
                    *byte = (address >> 8) as u8;
                }
                Ok(())
            }
            fn write(&self, _iova: u64, _data: &[u8], _: Instant) -> Result<(), Errno> {
                Err(Errno::EROFS)
            }
        }
        let space = DmaSpace::default();
        space.map_remote(0x1000, 0x3000, BOTH, Arc::new(Addresses)).unwrap();
        space.cut(0x2000);
        let mut back = [0; 4];
        space.read(0x1ffe, &mut back).unwrap();
        assert_eq!(back, [0x1f, 0x1f, 0x20, 0x20]);
        assert_eq!(space.unmap(0x1000, 0x1000), Ok(0x1000));
        assert_eq!(space.unmap(0x2000, 0x2000), Ok(0x2000));
    }

    #[test]
    fn a_cut_where_a_mapping_begins_or_ends_or_where_none_is_does_nothing() {
        let space = space(&[(0x1000, 0x1000, BOTH)]);
        for iova in [0, 0x800, 0x1000, 0x2000, 0x2800, u64::MAX] {
            space.cut(iova);
        }
        assert_eq!(space.unmap(0x1000, 0x1000), Ok(0x1000));
    }

    #[test]
    fn unmap_takes_whole_mappings_or_nothing() {
        let space = space(&[(0x1000, 0x2000, BOTH), (0x4000, 0x1000, BOTH)]);
        assert_eq!(space.unmap(0x2000, 0x3000), Err(Errno::EINVAL));
        assert_eq!(space.unmap(0x1000, 0x1000), Err(Errno::EINVAL));
        assert_eq!(space.unmap(0, 0x10000), Ok(0x3000));
        assert_eq!(space.unmap(0, 0x10000), Ok(0));
        assert!(space.read(0x1000, &mut [0]).is_err());
    }

    #[test]
    fn writes_are_logged_and_reads_are_not() {
        let space = space(&[(0, 0x8000, BOTH)]);
        let mut ranges = LoggingRanges::new(4096, 1).unwrap();
        ranges.push(0, 0x8000).unwrap();
        let log = Arc::new(DirtyLog::new(&ranges).unwrap());
        space.write(0x7000, &[1]).unwrap();
        space.set_log(Some(log.clone()));
        space.read(0x1000, &mut [0; 16]).unwrap();
        space.write(0x2fff, &[1, 2]).unwrap();
        space.set_log(None);
        space.write(0x6000, &[1]).unwrap();
        let mut words = [0];
        log.report(&mut DirtyReport::new(0, 0x8000, 4096, &mut words).unwrap());
        assert_eq!(words, [0b1100]);
    }

    #[test]
    fn a_write_marks_every_log_that_is_on_over_all_its_mappings() {
        let space = DmaSpace::default();
        let log = |size| {
            let mut ranges = LoggingRanges::new(4096, 1).unwrap();
            ranges.push(0, size).unwrap();
            Arc::new(DirtyLog::new(&ranges).unwrap())
        };
        let told = |log: &DirtyLog| {
            let mut words = [0];
            log.report(&mut DirtyReport::new(0, 0x10000, 4096, &mut words).unwrap());
            words[0]
        };
        let (device, first, second) = (log(0x10000), log(0x2000), log(0x4000));
        let mapped = |size| Memory::of_file(memory(size), size, true).unwrap();
        let logged = |log: &Arc<DirtyLog>, offset| Some(MappingLog { log: log.clone(), offset });
        space.map_logged(0x1000, BOTH, mapped(0x2000), logged(&first, 0)).unwrap();
        space.map_logged(0x3000, BOTH, mapped(0x2000), logged(&second, 0x2000)).unwrap();
        space.set_log(Some(device.clone()));
        space.write(0x2fff, &[1, 2]).unwrap();
        assert_eq!([told(&device), told(&first), told(&second)], [0b1100, 0b10, 0b100]);
        space.write(0x4000, &[1]).unwrap();
        space.set_mapping_log(0x3000, None);
        space.write(0x3000, &[1]).unwrap();
        assert_eq!([told(&device), told(&first), told(&second)], [0b11000, 0, 0b1000]);
        assert!(space.write(0x4fff, &[1, 2]).is_err());
        assert_eq!([told(&device), told(&first), told(&second)], [0, 0, 0], "a blocked write marks nothing");
    }

    /// Takes down the messages of this thread.
    #[derive(Clone, Default)]
    struct Listener(Arc<parking_lot::Mutex<Vec<String>>>);

    impl tracing::Subscriber for Listener {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut fields = Vec::new();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                fields.push(format!("{field}={value:?}"));
            });
            self.0.lock().push(fields.join(" "));
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn a_blocked_access_is_traced() {
        let space = space(&[(0x1000, 0x1000, DmaMapFlags::READ)]);
        let listener = Listener::default();
        tracing::subscriber::with_default(listener.clone(), || {
            space.read(0x1000, &mut [0]).unwrap();
            space.write(0x1004, &[1, 2]).unwrap_err();
        });
        let heard = listener.0.lock().clone();
        assert_eq!(heard, ["message=dma fault iova=4100 length=2 access=write"]);
    }

    #[test]
    fn after_an_unmap_no_access_through_the_mapping_is_under_way() {
        let space = space(&[(0, 0x1000, BOTH)]);
        let inside = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let accesses: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut blocked = false;
                        while !blocked {
                            let result = space.access(0, 8, Access::Write, |_| {
                                inside.fetch_add(1, Ordering::SeqCst);
                                std::thread::yield_now();
                                inside.fetch_sub(1, Ordering::SeqCst);
                            });
                            blocked = result.is_err();
                        }
                    })
                })
                .collect();
            while inside.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert_eq!(space.unmap(0, 0x1000), Ok(0x1000));
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            for access in accesses {
                access.join().unwrap();
            }
        });
        assert_eq!(space.faults(), 3);
    }
}
