//! The address space of one device: its mappings, and the device's accesses.
//!
//! Marking a log takes no lock, and a report of a log takes none that an access needs. The mappings are behind a lock,
//! so that no access through a mapping is in flight after its unmap. The lock is sharded by thread, so that threads
//! that access memory neither wait for each other nor share a cache line. Only a change of the mappings, or of the
//! active logs, takes all shards and so waits for the accesses in flight.
//!
//! An access to [`RemoteMemory`] requests the bytes from its owner, and waits until they arrive or until one deadline
//! for the whole access. It holds its shard meanwhile, unless the memory may outlive its mapping
//! ([`RemoteMemory::may_outlive_mapping`]): an owner that waits for a change of the mappings may answer nothing until
//! then.

use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
use whimbrel_memory::{DirtyLog, FileOffset, Memory, RemoteMemory, SharedBytes};
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use super::access::DmaAccess;
use super::bounce::{RemotePiece, bounce};
use super::fault::{Access, DmaFault, FaultCause};
use super::mapping::{Backing, Inner, MappedRange, Mapping, MappingLog, check_rights, last_of};

/// The mappings of one device.
///
/// ```
/// use std::fs::File;
/// use whimbrel_memory::FileOffset;
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
/// #     let fd = rustix::fs::memfd_create(c"doc", rustix::fs::MemfdFlags::empty()).unwrap();
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

/// The part of an access in one mapping, or less if its memory takes less at once.
enum Piece<'a> {
    Memory(SharedBytes<'a>),
    Remote(RemotePiece<'a>),
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Piece::Memory(slice) => slice.len(),
            Piece::Remote(piece) => piece.count,
        }
    }

    /// Reads all of it into `data`, which has its length.
    fn read(self, data: &mut [u8]) -> Result<(), Errno> {
        match self {
            Piece::Memory(slice) => {
                slice.copy_to(data);
                Ok(())
            }
            Piece::Remote(RemotePiece { memory, iova, deadline, .. }) => memory.read(iova, data, deadline),
        }
    }

    /// Writes all of it from `data`, which has its length.
    fn write(self, data: &[u8]) -> Result<(), Errno> {
        match self {
            Piece::Memory(slice) => {
                slice.copy_from(data);
                Ok(())
            }
            Piece::Remote(RemotePiece { memory, iova, deadline, .. }) => memory.write(iova, data, deadline),
        }
    }
}

impl DmaAccess {
    /// Makes the part of this access in one mapping, which begins at a byte of the data.
    fn pass(&mut self, piece: Piece<'_>, at: &mut usize) -> Result<(), Errno> {
        let start = *at;
        *at += piece.len();
        match self.access {
            Access::Read => piece.read(&mut self.data[start..*at]),
            Access::Write => piece.write(&self.data[start..*at]),
        }
    }
}

/// Visits memory of this process.
fn visit_memory(
    memory: &Memory,
    offset: usize,
    count: usize,
    visit: &mut impl FnMut(Piece<'_>) -> Result<(), Errno>,
) -> Result<(), FaultCause> {
    match memory.access(offset, count, |bytes| visit(Piece::Memory(bytes))) {
        Ok(visited) => visited.map_err(FaultCause::Remote),
        Err(_) => Err(FaultCause::Lost),
    }
}

impl DmaSpace {
    /// Timeout of all remote memory requests of one access.
    pub const REMOTE_TIMEOUT: Duration = Duration::from_secs(5);

    /// Maps `size` bytes of a file at `iova`, readable and writable by the device as `rights` says.
    ///
    /// The file is mapped shared. It must not be truncated while it is mapped ([`Memory::of_file`]). EINVAL for a size
    /// of 0, no or unknown rights, or a file that is too short; EOVERFLOW for a range past 2^64; EEXIST if part of the
    /// range is mapped.
    pub fn map(&self, iova: u64, size: u64, rights: DmaMapFlags, file: FileOffset) -> Result<(), Errno> {
        let last = last_of(iova, size)?;
        check_rights(rights)?;
        // Before the file is mapped, which takes time and an entry of the process's own.
        if self.look().overlaps(iova, last) {
            return Err(Errno::EEXIST);
        }
        self.map_memory(iova, rights, Memory::of_file(file, size, rights.contains(DmaMapFlags::WRITE))?)
    }

    /// Maps all of `memory` at `iova`, readable and writable by the device according to `rights`.
    ///
    /// EINVAL for no or unknown rights, or for WRITE to read-only memory; EOVERFLOW for a range past 2^64; EEXIST if
    /// part of the range is mapped.
    pub fn map_memory(&self, iova: u64, rights: DmaMapFlags, memory: Memory) -> Result<(), Errno> {
        self.map_logged(iova, rights, memory, None)
    }

    /// Like [`DmaSpace::map_memory`], and marks writes through the mapping in `log` in addition to the device's log.
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

    /// Maps `size` bytes of remote memory at `iova`, readable and writable by the device according to `rights`. Its
    /// requests use the same addresses.
    ///
    /// EINVAL for a size of 0 and for no or unknown rights; EOVERFLOW for a range past 2^64; EEXIST if part of the
    /// range is mapped.
    pub fn map_remote(
        &self,
        iova: u64,
        size: u64,
        rights: DmaMapFlags,
        memory: Arc<dyn RemoteMemory>,
    ) -> Result<(), Errno> {
        self.map_remote_logged(iova, size, rights, memory, None)
    }

    /// Like [`DmaSpace::map_remote`], and marks writes through the mapping in `log` in addition to the device's log.
    pub(crate) fn map_remote_logged(
        &self,
        iova: u64,
        size: u64,
        rights: DmaMapFlags,
        memory: Arc<dyn RemoteMemory>,
        log: Option<MappingLog>,
    ) -> Result<(), Errno> {
        let last = last_of(iova, size)?;
        check_rights(rights)?;
        self.insert(iova, last, Mapping { size, rights, backing: Backing::Remote(memory), log })
    }

    fn insert(&self, iova: u64, last: u64, mapping: Mapping) -> Result<(), Errno> {
        let mut inner = self.change();
        if inner.overlaps(iova, last) {
            return Err(Errno::EEXIST);
        }
        inner.mappings.insert(iova, mapping);
        Ok(())
    }

    /// Sets or removes the log of the mapping that starts at `iova`.
    pub(crate) fn set_mapping_log(&self, iova: u64, log: Option<MappingLog>) {
        if let Some(mapping) = self.change().mappings.get_mut(&iova) {
            mapping.log = log;
        }
    }

    /// Splits the mapping across `iova` in two, of which the second starts at `iova`. The device's view is unchanged.
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

    /// Returns all mappings in ascending order.
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

    /// Returns whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.look().mappings.is_empty()
    }

    /// Returns the writable ranges: first and last address of each mapping, in ascending order.
    pub(crate) fn writable(&self) -> Vec<(u64, u64)> {
        let inner = self.look();
        let writable =
            inner.mappings.iter().filter(|(_, mapping)| mapping.rights.contains(DmaMapFlags::WRITE));
        writable.map(|(iova, mapping)| (*iova, iova + (mapping.size - 1))).collect()
    }

    /// Removes the mappings that lie wholly in `size` bytes from `iova`, and returns their total size. EINVAL, with
    /// nothing removed, if the range cuts a mapping; EOVERFLOW for a range past 2^64.
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

    /// Reads memory as the device. After a fault the contents of `data` are undefined.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let mut at = 0;
        self.pass(iova, data.len() as u64, Access::Read, |piece| {
            let start = at;
            at += piece.len();
            piece.read(&mut data[start..at])
        })
    }

    /// The device writes memory.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let mut at = 0;
        self.pass(iova, data.len() as u64, Access::Write, |piece| {
            let start = at;
            at += piece.len();
            piece.write(&data[start..at])
        })
    }

    /// Calls `visit` with every piece of memory behind `length` bytes from `iova`, in order.
    ///
    /// Nothing is visited unless the whole range is mapped with the right that `access` needs. After a write the range
    /// is marked in every active log. The data is written before the mark, so a report that clears the mark is never
    /// ahead of the data.
    ///
    /// Remote memory is visited as copies of at most 64 KiB. With [`Access::Read`] a copy has the memory's contents,
    /// and changes are discarded. With [`Access::Write`] it has zeros, and all of it is written back, so the visitor
    /// must write every byte. If remote memory fails, the pieces before it have been visited, and their writes are
    /// marked.
    pub fn access(
        &self,
        iova: u64,
        length: u64,
        access: Access,
        mut visit: impl FnMut(SharedBytes<'_>),
    ) -> Result<(), DmaFault> {
        self.pass(iova, length, access, |piece| match piece {
            Piece::Memory(slice) => {
                visit(slice);
                Ok(())
            }
            Piece::Remote(piece) => bounce(piece, access, &mut visit),
        })
    }

    /// Makes an access that waits for nobody; `None`, with nothing done, if part of it is remote memory.
    pub fn access_now(&self, access: &mut DmaAccess) -> Option<Result<(), DmaFault>> {
        let inner = self.look();
        let (iova, kind) = (access.iova, access.access);
        let length = access.data.len() as u64;
        let mut at = 0;
        let mut visit = |piece: Piece<'_>| access.pass(piece, &mut at);
        if let Some(result) = self.pass_whole(&inner, iova, length, kind, &mut visit) {
            return Some(result);
        }
        let is_remote =
            |(mapping, ..): (&Mapping, usize, usize)| matches!(mapping.backing, Backing::Remote(_));
        if inner.pieces(iova, length, kind).flatten().any(is_remote) {
            return None;
        }
        Some(self.pass_pieces(inner, iova, length, kind, visit))
    }

    /// Makes an access, which waits for the owner of remote memory.
    pub fn make(&self, access: &mut DmaAccess) -> Result<(), DmaFault> {
        self.make_while(access, || true)
    }

    /// As [`DmaSpace::make`], and ends with ECANCELED before the next piece of memory once the access is not wanted.
    pub(crate) fn make_while(
        &self,
        access: &mut DmaAccess,
        is_wanted: impl Fn() -> bool,
    ) -> Result<(), DmaFault> {
        let (iova, length, kind) = (access.iova, access.data.len() as u64, access.access);
        let mut at = 0;
        self.pass(iova, length, kind, |piece| {
            if !is_wanted() {
                return Err(Errno::ECANCELED);
            }
            access.pass(piece, &mut at)
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
        match self.pass_whole(&inner, iova, length, access, &mut visit) {
            Some(result) => result,
            None => self.pass_pieces(inner, iova, length, access, visit),
        }
    }

    /// Makes an access as most are: in one mapping of memory of this process. `None`, with nothing done, for another.
    fn pass_whole(
        &self,
        inner: &Inner,
        iova: u64,
        length: u64,
        access: Access,
        visit: &mut impl FnMut(Piece<'_>) -> Result<(), Errno>,
    ) -> Option<Result<(), DmaFault>> {
        let (mapping, offset, count) = inner.pieces(iova, length, access).next()??;
        let Backing::Memory(memory) = &mapping.backing else { return None };
        if count as u64 != length {
            return None;
        }
        let visited = visit_memory(memory, offset, count, visit);
        // Some of a write that has failed may have been done.
        if access == Access::Write {
            mapping.mark(offset, count);
            inner.mark(iova, length);
        }
        Some(visited.map_err(|cause| self.fault(iova, length, access, cause)))
    }

    fn pass_pieces<'a>(
        &'a self,
        mut inner: ShardedLockReadGuard<'a, Inner>,
        iova: u64,
        length: u64,
        access: Access,
        mut visit: impl FnMut(Piece<'_>) -> Result<(), Errno>,
    ) -> Result<(), DmaFault> {
        if inner.pieces(iova, length, access).any(|piece| piece.is_none()) {
            return Err(self.fault(iova, length, access, FaultCause::NotMapped));
        }
        let mut done = 0;
        let mut deadline = None;
        loop {
            // It is mapped, so that it does not pass 2^64.
            let start = iova.wrapping_add(done);
            let (mut passed, mut failure, mut waits) = (0, None, None);
            for piece in inner.pieces(start, length - done, access) {
                // What came behind a piece that was waited for may be gone.
                let Some((mapping, offset, count)) = piece else {
                    failure = Some(FaultCause::NotMapped);
                    break;
                };
                let visited = match &mapping.backing {
                    Backing::Memory(memory) => visit_memory(memory, offset, count, &mut visit),
                    Backing::Remote(memory) if memory.may_outlive_mapping() => {
                        waits = Some((memory.clone(), count));
                        break;
                    }
                    Backing::Remote(memory) => {
                        let deadline = *deadline.get_or_insert_with(|| Instant::now() + Self::REMOTE_TIMEOUT);
                        let iova = start.wrapping_add(passed);
                        visit(Piece::Remote(RemotePiece { memory: &**memory, iova, count, deadline }))
                            .map_err(FaultCause::Remote)
                    }
                };
                passed += count as u64;
                // Some of a write that has failed may have been done.
                if access == Access::Write {
                    mapping.mark(offset, count);
                }
                if let Err(cause) = visited {
                    failure = Some(cause);
                    break;
                }
            }
            if access == Access::Write {
                inner.mark(start, passed);
            }
            done += passed;
            if let Some(cause) = failure {
                return Err(self.fault(iova, length, access, cause));
            }
            let Some((memory, count)) = waits else { return Ok(()) };
            drop(inner);
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + Self::REMOTE_TIMEOUT);
            let start = iova.wrapping_add(done);
            let visited =
                visit(Piece::Remote(RemotePiece { memory: &*memory, iova: start, count, deadline }));
            inner = self.look();
            if access == Access::Write {
                // In the logs that are active now: one that was started meanwhile has to tell of it.
                inner.mark_mappings(start, count as u64);
                inner.mark(start, count as u64);
            }
            done += count as u64;
            if let Err(errno) = visited {
                return Err(self.fault(iova, length, access, FaultCause::Remote(errno)));
            }
        }
    }

    fn fault(&self, iova: u64, length: u64, access: Access, cause: FaultCause) -> DmaFault {
        self.faults.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(iova, length, %access, "DMA fault");
        DmaFault::new(iova, length, access, cause)
    }

    /// Sets the device's own log, in which every write is marked from now on, instead of an earlier one. `None` removes it.
    pub fn set_log(&self, log: Option<Arc<DirtyLog>>) {
        self.change().log = log;
    }

    /// Sets the log of the whole address space, which its owner keeps beside the device's own. `None` removes it.
    pub fn set_space_log(&self, log: Option<Arc<DirtyLog>>) {
        self.change().space_log = log;
    }

    // A panic of a visitor leaves the mappings as they were, so that a poisoned lock says nothing.
    pub(super) fn look(&self) -> ShardedLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> ShardedLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of faults.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[path = "space_tests.rs"]
mod tests;
