//! The type1 IOMMU of a container: mappings of a process's memory for all devices of the container, and the
//! dirty pages among them.
//!
//! The rules are those of the kernel's `vfio_iommu_type1.c`, check by check. [`raw`](crate::raw) has the requests as
//! bytes; `container` has the file, and the order of group, IOMMU and requests.

mod bitmap;
mod dirty;
mod hardware;
mod info;
mod mappings;
mod settings;

use std::sync::Arc;

use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::{DmaMapFlags, DmaUnmapFlags};

use super::user_memory::{UserMemory, UserPiece};
use crate::bus::Bus;
use crate::bus::dma::{DmaSpace, MappingLog};

pub(crate) use self::bitmap::Target;
pub use self::hardware::{HardwareIommu, Translation};
pub use self::info::Type1Info;
use self::mappings::{Mapping, Mappings};
pub use self::settings::{ContainerSettings, KernelVersion};

/// The page size of processes, and the minimum alignment of mappings.
const PAGE_SIZE: u64 = 4096;

/// A group of devices that uses the container.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Identity of the group.
    pub(crate) group: usize,
    /// The translation of its devices.
    pub(crate) translation: Translation,
    /// Its devices, open or not.
    pub(crate) buses: Vec<Bus>,
}

impl Member {
    fn spaces(&self) -> impl Iterator<Item = &DmaSpace> {
        self.buses.iter().map(Bus::dma)
    }
}

/// A type1 IOMMU in use.
#[derive(Debug)]
pub(crate) struct Type1 {
    kernel: KernelVersion,
    v2: bool,
    members: Vec<Member>,
    mappings: Mappings,
    /// Number of further mappings that can be made.
    available: u32,
    invalid_vaddrs: usize,
    tracking: bool,
}

impl Type1 {
    pub(crate) fn new(settings: ContainerSettings, v2: bool) -> Type1 {
        Type1 {
            kernel: settings.kernel,
            v2,
            members: Vec::new(),
            mappings: Mappings::default(),
            available: settings.dma_entry_limit,
            invalid_vaddrs: 0,
            tracking: false,
        }
    }

    /// Attaches a group: its devices get every mapping.
    ///
    /// EBUSY while addresses are invalidated, or if a device of the group has mappings of its own; EINVAL if the
    /// group's IOMMU cannot map one of the mappings.
    pub(crate) fn attach(&mut self, member: Member) -> Result<(), Errno> {
        if self.invalid_vaddrs > 0 || member.spaces().any(|space| !space.is_empty()) {
            return Err(Errno::EBUSY);
        }
        self.members.push(member);
        let ranges = self.iova_ranges();
        let page_sizes = self.page_sizes();
        let fits = |start: u64, mapping: &Mapping| {
            let lowest = 1 << page_sizes.trailing_zeros();
            (start | mapping.size(start)) & (lowest - 1) == 0
                && ranges.as_ref().is_none_or(|ranges| hardware::hold(ranges, start, mapping.last))
        };
        let possible = page_sizes != 0
            && ranges.as_ref().is_none_or(|ranges| !ranges.is_empty())
            && self.mappings.all().all(|(start, mapping)| fits(start, mapping));
        let mut result = if possible { Ok(()) } else { Err(Errno::EINVAL) };
        if let (Ok(()), Some(member)) = (result, self.members.last()) {
            result = member.spaces().try_for_each(|space| {
                self.mappings.all().try_for_each(|(start, mapping)| map_in(space, start, mapping))
            });
        }
        if result.is_err()
            && let Some(member) = self.members.pop()
        {
            self.empty(&member);
        }
        result
    }

    /// Detaches a group and removes its devices' mappings.
    pub(crate) fn detach(&mut self, group: usize) {
        let Some(at) = self.members.iter().position(|member| member.group == group) else { return };
        let member = self.members.remove(at);
        self.empty(&member);
        // Everything was dirty on its account until now, reported or not.
        if self.tracking && member.translation.is_hardware() {
            for (start, mapping) in self.mappings.all() {
                if let Some(log) = &mapping.log {
                    log.mark(0, mapping.size(start));
                }
            }
        }
    }

    fn empty(&self, member: &Member) {
        for space in member.spaces() {
            for (start, mapping) in self.mappings.all() {
                unmap_in(space, start, mapping);
            }
        }
    }

    /// VFIO_CHECK_EXTENSION for VFIO_DMA_CC_IOMMU.
    pub(crate) fn is_coherent(&self) -> bool {
        self.members.iter().all(|member| member.translation.is_coherent())
    }

    /// VFIO_CHECK_EXTENSION for VFIO_UPDATE_VADDR.
    pub(crate) fn can_update_vaddr(&self) -> bool {
        self.members.iter().all(|member| member.translation.is_hardware())
    }

    pub(crate) fn info(&self) -> Type1Info {
        Type1Info {
            page_sizes: self.page_sizes(),
            migration_page_size: self.page_size(),
            max_dirty_bitmap_size: bitmap::MAX_BITMAP_SIZE,
            dma_avail: self.available,
            iova_ranges: self.iova_ranges().unwrap_or_default(),
        }
    }

    /// VFIO_IOMMU_MAP_DMA.
    pub(crate) fn map(
        &mut self,
        flags: DmaMapFlags,
        vaddr: u64,
        iova: u64,
        size: u64,
        memory: &(impl UserMemory + ?Sized),
    ) -> Result<(), Errno> {
        let past_first = size.checked_sub(1).ok_or(Errno::EINVAL)?;
        let last = iova.checked_add(past_first).ok_or(self.wrap())?;
        vaddr.checked_add(past_first).ok_or(self.wrap())?;
        let rights = flags & (DmaMapFlags::READ | DmaMapFlags::WRITE);
        if rights.is_empty() != flags.contains(DmaMapFlags::VADDR) {
            return Err(Errno::EINVAL);
        }
        if (size | iova | vaddr) & (self.page_size() - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        match self.mappings.overlapping(iova, last) {
            Some((start, mapping)) if rights.is_empty() => {
                if !mapping.vaddr_invalid || start != iova || mapping.last != last {
                    return Err(Errno::EINVAL);
                }
                mapping.vaddr = vaddr;
                mapping.vaddr_invalid = false;
                self.invalid_vaddrs -= 1;
                return Ok(());
            }
            None if rights.is_empty() => return Err(Errno::ENOENT),
            Some(_) => return Err(Errno::EEXIST),
            None => {}
        }
        if self.available == 0 {
            return Err(Errno::ENOSPC);
        }
        if self.iova_ranges().is_some_and(|ranges| !hardware::hold(&ranges, iova, last)) {
            return Err(Errno::EINVAL);
        }
        let pieces = UserPiece::all(memory, vaddr, size, rights)?;
        let writable = pieces.iter().all(UserPiece::is_writable);
        let bytes = pieces.iter().try_fold(0u64, |sum, piece| sum.checked_add(piece.size()));
        if bytes != Some(size) || (rights.contains(DmaMapFlags::WRITE) && !writable) {
            return Err(Errno::EFAULT);
        }
        let log = if self.tracking { Some(Arc::new(bitmap::log_of(size, self.page_size())?)) } else { None };
        let mapping = Mapping { last, rights, vaddr, vaddr_invalid: false, pieces, log };
        let mut done: Vec<&DmaSpace> = Vec::new();
        for space in self.members.iter().flat_map(Member::spaces) {
            if let Err(error) = map_in(space, iova, &mapping) {
                for space in done {
                    unmap_in(space, iova, &mapping);
                }
                return Err(error);
            }
            done.push(space);
        }
        self.mappings.insert(iova, mapping);
        self.available -= 1;
        Ok(())
    }

    /// VFIO_IOMMU_UNMAP_DMA; returns the bytes that were unmapped or, with VADDR, invalidated. There is a bitmap if and
    /// only if GET_DIRTY_BITMAP is set.
    pub(crate) fn unmap(
        &mut self,
        flags: DmaUnmapFlags,
        iova: u64,
        size: u64,
        mut bitmap: Option<&mut dyn Target>,
    ) -> Result<u64, Errno> {
        let others = DmaUnmapFlags::ALL | DmaUnmapFlags::VADDR;
        if flags.contains(DmaUnmapFlags::GET_DIRTY_BITMAP) != bitmap.is_some()
            || (bitmap.is_some() && flags.intersects(others))
        {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = bitmap.as_deref() {
            bitmap::check(target, size)?;
        }
        let invalidate = flags.contains(DmaUnmapFlags::VADDR);
        if invalidate && !self.can_update_vaddr() {
            return Err(Errno::EBUSY);
        }
        let page_size = self.page_size();
        if iova & (page_size - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        let last = if flags.contains(DmaUnmapFlags::ALL) {
            if iova != 0 || size != 0 {
                return Err(Errno::EINVAL);
            }
            u64::MAX
        } else {
            if size == 0 || size & (page_size - 1) != 0 {
                return Err(Errno::EINVAL);
            }
            iova.checked_add(size - 1).ok_or(self.wrap())?
        };
        if bitmap.as_deref().is_some_and(|bitmap| !self.tracking || bitmap.page_size() != page_size) {
            return Err(Errno::EINVAL);
        }
        // What most users do: they unmap what they mapped, and nothing else can be in that range.
        let exact = self.mappings.get(iova).is_some_and(|mapping| mapping.last == last);
        if self.v2 && !exact && self.mappings.are_cut_by(iova, last) {
            return Err(Errno::EINVAL);
        }
        // The first IOMMU: from within a mapping nothing is unmapped, and that is no error.
        if !self.v2 && self.mappings.straddle(iova) {
            return Ok(0);
        }
        if invalidate {
            return self.invalidate_vaddrs(iova, last);
        }
        let mut unmapped = 0;
        while let Some(start) = self.mappings.first_in(iova, last) {
            self.remove(start, iova, bitmap.as_deref_mut())?;
            unmapped += self.take_away(start);
            if exact {
                break;
            }
        }
        Ok(unmapped)
    }

    /// Removes a mapping from all devices, and reports its dirty pages. The container's record of the mapping stays;
    /// after an error so do the devices' mappings.
    fn remove(&self, start: u64, base: u64, bitmap: Option<&mut (dyn Target + '_)>) -> Result<(), Errno> {
        let Some(mapping) = self.mappings.get(start) else { return Ok(()) };
        let Some(bitmap) = bitmap else {
            self.unmap_everywhere(start, mapping);
            return Ok(());
        };
        // Devices write until they are cut off, and that is done only once the bitmap has proven to be there.
        self.report(start, mapping, base, bitmap)?;
        self.unmap_everywhere(start, mapping);
        self.report_late(start, mapping, base, bitmap)
    }

    fn take_away(&mut self, start: u64) -> u64 {
        let Some(mapping) = self.mappings.remove(start) else { return 0 };
        self.available += 1;
        self.invalid_vaddrs -= usize::from(mapping.vaddr_invalid);
        mapping.size(start)
    }

    fn invalidate_vaddrs(&mut self, first: u64, last: u64) -> Result<u64, Errno> {
        // All or nothing: the kernel takes back what it has done when it meets one that is invalid already.
        if self.mappings.beginning_in(first, last).any(|(_, mapping)| mapping.vaddr_invalid) {
            return Err(Errno::EINVAL);
        }
        let mut bytes = 0;
        for (start, mapping) in self.mappings.beginning_in_mut(first, last) {
            mapping.vaddr_invalid = true;
            bytes += mapping.size(start);
            self.invalid_vaddrs += 1;
        }
        Ok(bytes)
    }

    fn unmap_everywhere(&self, start: u64, mapping: &Mapping) {
        self.members.iter().flat_map(Member::spaces).for_each(|space| unmap_in(space, start, mapping));
    }

    /// Returns the errno for a range past 2^64.
    fn wrap(&self) -> Errno {
        match self.kernel {
            KernelVersion::Linux6_12 => Errno::EINVAL,
            KernelVersion::Linux7_3 => Errno::EOVERFLOW,
        }
    }

    fn page_sizes(&self) -> u64 {
        hardware::page_sizes(self.members.iter().map(|member| &member.translation))
    }

    /// The smallest page size, in bytes.
    fn page_size(&self) -> u64 {
        1 << self.page_sizes().trailing_zeros()
    }

    /// Returns the mappable ranges; `None` for everything.
    fn iova_ranges(&self) -> Option<Vec<whimbrel_uapi::type1::IovaRange>> {
        hardware::iova_ranges(self.members.iter().map(|member| &member.translation))
    }
}

impl Drop for Type1 {
    fn drop(&mut self) {
        while let Some(member) = self.members.pop() {
            self.empty(&member);
        }
    }
}

/// Adds a mapping to an address space, or leaves the space unchanged.
fn map_in(space: &DmaSpace, start: u64, mapping: &Mapping) -> Result<(), Errno> {
    for (iova, offset, piece) in mapping.pieces(start) {
        let log = mapping.log.clone().map(|log| MappingLog { log, offset });
        if let Err(error) = piece.clone().map(space, iova, mapping.rights, log) {
            for (iova, _, piece) in mapping.pieces(start).take_while(|(_, before, _)| *before < offset) {
                unmap_piece(space, iova, piece.size());
            }
            return Err(error);
        }
    }
    Ok(())
}

fn unmap_in(space: &DmaSpace, start: u64, mapping: &Mapping) {
    mapping.pieces(start).for_each(|(iova, _, piece)| unmap_piece(space, iova, piece.size()));
}

fn unmap_piece(space: &DmaSpace, iova: u64, size: u64) {
    if space.unmap(iova, size) != Ok(size) {
        tracing::warn!(iova, size, "a device's mappings changed without its container");
    }
}
