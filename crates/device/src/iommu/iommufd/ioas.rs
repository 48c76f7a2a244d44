//! An address space (IOAS): its mappings, the addresses that may be used, and the attached devices.
//!
//! The rules and their order are those of `drivers/iommu/iommufd/io_pagetable.c`. [`raw`](crate::raw) checks the bytes
//! of requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use super::domain::{Domain, log_of};
use super::pages::{Area, PAGE_SIZE, Pages, Source};
use super::spans::Spans;
use crate::bus::dma::{DmaSpace, MappingLog};

/// A part of some pages, to be mapped.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) pages: Arc<Pages>,
    pub(crate) from: u64,
    pub(crate) length: u64,
}

/// The origin of accesses: a device, and the PASID in its requests (0 without one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    pub(crate) device: u32,
    pub(crate) pasid: u32,
}

/// A device's view of the address space.
#[derive(Debug)]
struct Attached {
    space: Arc<DmaSpace>,
    /// The page table it uses; `None` for an emulated IOMMU.
    domain: Option<u32>,
}

/// A range of addresses, both ends included.
pub(crate) type Range = (u64, u64);

#[derive(Debug, Default)]
pub(crate) struct Ioas {
    areas: BTreeMap<u64, Area>,
    taken: Spans,
    allowed: Spans,
    /// Reserved ranges, each with the object that reserves it.
    reserved: Vec<(u32, Range)>,
    /// Mappings use single pages, so they must be page-aligned.
    small_pages: bool,
    attached: BTreeMap<Origin, Attached>,
    domains: BTreeMap<u32, Domain>,
}

impl Ioas {
    /// Returns the alignment of both ends of a mapping, in bytes.
    pub(crate) fn alignment(&self) -> u64 {
        if self.small_pages || !self.domains.is_empty() || !self.attached.is_empty() { PAGE_SIZE } else { 1 }
    }

    pub(crate) fn huge_pages(&self) -> bool {
        !self.small_pages
    }

    /// Sets the use of huge pages. EINVAL if an IOMMU may have mapped huge pages already, EADDRINUSE if a mapping is
    /// not page-aligned.
    pub(crate) fn set_huge_pages(&mut self, huge: bool) -> Result<(), Errno> {
        if !huge && !self.small_pages {
            if !self.domains.is_empty() && !self.areas.is_empty() {
                return Err(Errno::EINVAL);
            }
            self.check_page_alignment()?;
        }
        self.small_pages = !huge;
        Ok(())
    }

    /// Returns whether all mappings are memory files.
    pub(crate) fn only_files(&self) -> bool {
        self.areas.values().all(|area| area.pages.source == Source::File)
    }

    /// Returns the ranges that are not reserved.
    pub(crate) fn usable(&self) -> Vec<Range> {
        self.reserved_spans().holes(0, u64::MAX).collect()
    }

    /// Limits chosen IOVAs to some ranges. EADDRINUSE if one of them is reserved.
    pub(crate) fn allow(&mut self, allowed: Spans) -> Result<(), Errno> {
        let in_use = |(_, (start, last)): &(u32, Range)| allowed.touches(*start, *last);
        if self.reserved.iter().any(in_use) {
            return Err(Errno::EADDRINUSE);
        }
        self.allowed = allowed;
        Ok(())
    }

    /// Maps slices one after the other from `iova`, or from a chosen IOVA, which is returned.
    pub(crate) fn map(
        &mut self,
        slices: Vec<Slice>,
        length: u64,
        iova: Option<u64>,
        rights: DmaMapFlags,
    ) -> Result<u64, Errno> {
        let first = slices.first().ok_or(Errno::EINVAL)?;
        if length == 0 || !length.is_multiple_of(self.alignment()) {
            return Err(Errno::EINVAL);
        }
        let iova = match iova {
            Some(iova) => self.check(iova, length).map(|()| iova)?,
            None => self.choose(first.pages.start.wrapping_add(first.from), length)?,
        };
        for slice in &slices {
            if rights.contains(DmaMapFlags::WRITE) && !slice.pages.writable {
                return Err(Errno::EPERM);
            }
            if !(slice.from % PAGE_SIZE).is_multiple_of(self.alignment()) {
                return Err(Errno::EINVAL);
            }
        }
        let mut at = iova;
        for slice in slices {
            let (start, length) = (at, slice.length);
            let last = start + (length - 1);
            let area = Area { start, last, rights, pages: slice.pages, from: slice.from };
            if let Err(errno) = self.add(area) {
                self.drop_between(iova, start);
                return Err(errno);
            }
            at = at.wrapping_add(length);
        }
        Ok(iova)
    }

    /// Returns the mappings in `length` bytes from `iova`, to map them elsewhere. EINVAL for a length of 0,
    /// EOVERFLOW past the end of the address space, ENOENT without a mapping.
    pub(crate) fn slices(&self, iova: u64, length: u64) -> Result<Vec<Slice>, Errno> {
        let last = last(iova, length)?;
        let mut slices = Vec::new();
        let mut at = iova;
        loop {
            let (start, area) = self.areas.range(..=at).next_back().ok_or(Errno::ENOENT)?;
            if area.last < at {
                return Err(Errno::ENOENT);
            }
            let end = area.last.min(last);
            slices.push(Slice {
                pages: area.pages.clone(),
                from: area.from + (at - start),
                length: end - at + 1,
            });
            if end == last {
                return Ok(slices);
            }
            at = end + 1;
        }
    }

    /// Removes the mappings from `start` to `last`, in ascending order, and adds their sizes to `bytes`.
    ///
    /// ENOENT at a mapping that the range cuts; those below it are removed by then, as in the kernel.
    pub(crate) fn unmap(&mut self, start: u64, last: u64, bytes: &mut u64) -> Result<(), Errno> {
        if self.areas.range(..start).next_back().is_some_and(|(_, area)| area.last >= start) {
            return Err(Errno::ENOENT);
        }
        while let Some((at, area)) = self.areas.range(start..=last).next() {
            if area.last > last {
                return Err(Errno::ENOENT);
            }
            let at = *at;
            *bytes = bytes.wrapping_add((area.last - at).wrapping_add(1));
            self.drop_area(at);
        }
        Ok(())
    }

    /// Splits the mapping that contains `last` after it, so that each part can be unmapped. EINVAL if the split is not
    /// aligned. A mapping whose first or last IOVA is `last` stays whole, as in the kernel (`iopt_area_split()`).
    pub(crate) fn cut_after(&mut self, last: u64) -> Result<(), Errno> {
        let alignment = self.alignment();
        let Some((start, area)) = self.areas.range_mut(..=last).next_back() else { return Ok(()) };
        let (start, second) = (*start, last.wrapping_add(1));
        if area.last <= last || start == last {
            return Ok(());
        }
        let aligned = |value: u64| value.is_multiple_of(alignment);
        if !aligned(second) || !aligned(area.from + (second - start)) {
            return Err(Errno::EINVAL);
        }
        let other = area.cut(second);
        self.areas.insert(second, other);
        self.domains.values_mut().for_each(|domain| domain.cut(start, second));
        self.attached.values().for_each(|attached| attached.space.cut(second));
        Ok(())
    }

    /// Gives a device with an emulated IOMMU all mappings. Unavailable memory is a fault when the device uses it.
    pub(crate) fn attach_access(&mut self, device: u32, space: Arc<DmaSpace>) {
        let attached = Attached { space, domain: None };
        for area in self.areas.values() {
            attached.try_give(area);
        }
        self.attached.insert(Origin { device, pasid: 0 }, attached);
    }

    /// Gives a device all mappings through one of the page tables, or none after an error.
    pub(crate) fn attach_device(
        &mut self,
        origin: Origin,
        space: Arc<DmaSpace>,
        domain: u32,
        reserved: &[Range],
    ) -> Result<(), Errno> {
        self.check_reserved(reserved)?;
        let logs = self.domains.get(&domain);
        for (count, area) in self.areas.values().enumerate() {
            let log = logs.and_then(|domain| domain.log(area.start));
            if let Err(errno) = area.give(&space, log) {
                self.areas.values().take(count).for_each(|area| area.take(&space));
                return Err(errno);
            }
        }
        self.reserved.extend(reserved.iter().map(|range| (origin.device, *range)));
        self.attached.insert(origin, Attached { space, domain: Some(domain) });
        Ok(())
    }

    /// Switches an attached device to another page table.
    pub(crate) fn change_domain(&mut self, origin: Origin, domain: u32) {
        if let Some(attached) = self.attached.get_mut(&origin) {
            attached.domain = Some(domain);
        }
        self.set_logs(domain);
    }

    /// Removes all mappings from a device.
    pub(crate) fn detach(&mut self, origin: Origin) {
        if let Some(attached) = self.attached.remove(&origin) {
            self.areas.values().for_each(|area| attached.take(area));
        }
        if origin.pasid == 0 {
            self.reserved.retain(|(owner, _)| *owner != origin.device);
        }
    }

    /// Adds a page table that translates up to `last_iova`. EADDRINUSE if a mapping is not page-aligned or lies past
    /// that, EFAULT if memory is unavailable, EINVAL for a mapping without rights.
    pub(crate) fn add_domain(&mut self, id: u32, last_iova: u64) -> Result<(), Errno> {
        self.check_page_alignment()?;
        let beyond = last_iova.checked_add(1).map(|past| (past, u64::MAX));
        self.check_reserved(beyond.as_slice())?;
        self.areas.values().try_for_each(Area::check_table)?;
        self.reserved.extend(beyond.map(|range| (id, range)));
        self.domains.insert(id, Domain::default());
        Ok(())
    }

    pub(crate) fn remove_domain(&mut self, id: u32) {
        self.domains.remove(&id);
        self.reserved.retain(|(owner, _)| *owner != id);
    }

    /// Fails with EADDRINUSE if something is mapped in one of the ranges, or the user needs it.
    pub(crate) fn check_reserved(&self, reserved: &[Range]) -> Result<(), Errno> {
        let in_use =
            |(start, last): &Range| self.taken.touches(*start, *last) || self.allowed.touches(*start, *last);
        if reserved.iter().any(in_use) { Err(Errno::EADDRINUSE) } else { Ok(()) }
    }

    /// Starts or stops dirty tracking of a page table; starting clears earlier bits. E2BIG for a mapping above the
    /// log's limit.
    pub(crate) fn set_dirty_tracking(&mut self, domain: u32, enable: bool) -> Result<(), Errno> {
        let log = |area: &Area| log_of(area).map(|log| (area.start, log));
        let logs = enable.then(|| self.areas.values().map(log).collect::<Result<_, Errno>>()).transpose()?;
        self.domains.insert(domain, Domain { logs });
        self.set_logs(domain);
        Ok(())
    }

    /// Returns the logs of the mappings that fill `iova` to `last` without a hole: each one's offset in the range, the
    /// log from there on, and its bytes in the range. None while tracking is off.
    pub(crate) fn dirty_logs(&self, domain: u32, iova: u64, last: u64) -> Vec<(u64, MappingLog, u64)> {
        let mut found = Vec::new();
        let Some(domain) = self.domains.get(&domain) else { return found };
        let mut at = iova;
        while let Some((start, area)) = self.areas.range(..=at).next_back() {
            let Some(log) = domain.log(*start).filter(|_| area.last >= at) else { break };
            let end = area.last.min(last);
            let log = MappingLog { log: log.log.clone(), offset: log.offset + (at - start) };
            found.push((at - iova, log, end - at + 1));
            if end == last {
                break;
            }
            at = end + 1;
        }
        found
    }

    /// Sets a page table's logs on its devices.
    fn set_logs(&self, id: u32) {
        let Some(domain) = self.domains.get(&id) else { return };
        for attached in self.attached.values().filter(|attached| attached.domain == Some(id)) {
            for area in self.areas.values() {
                area.set_log(&attached.space, domain.log(area.start));
            }
        }
    }

    /// Adds a mapping to every device, or to none.
    fn add(&mut self, area: Area) -> Result<(), Errno> {
        if !self.domains.is_empty() {
            area.check_table()?;
        }
        let mut result = self.domains.values_mut().try_for_each(|domain| domain.add(&area));
        for (count, attached) in self.attached.values().enumerate() {
            result = result.and_then(|()| match attached.domain {
                None => {
                    attached.try_give(&area);
                    Ok(())
                }
                Some(domain) => {
                    let log = self.domains.get(&domain).and_then(|domain| domain.log(area.start));
                    area.give(&attached.space, log)
                }
            });
            if result.is_err() {
                self.attached.values().take(count).for_each(|attached| attached.take(&area));
                break;
            }
        }
        if result.is_err() {
            self.domains.values_mut().for_each(|domain| domain.remove(area.start));
            return result;
        }
        self.taken.insert(area.start, area.last);
        self.areas.insert(area.start, area);
        Ok(())
    }

    fn drop_area(&mut self, start: u64) {
        let Some(area) = self.areas.remove(&start) else { return };
        self.taken.remove(start, area.last);
        self.attached.values().for_each(|attached| attached.take(&area));
        self.domains.values_mut().for_each(|domain| domain.remove(start));
    }

    fn drop_between(&mut self, start: u64, end: u64) {
        let starts: Vec<u64> = self.areas.range(start..end).map(|(start, _)| *start).collect();
        for start in starts {
            self.drop_area(start);
        }
    }

    /// Fails with EADDRINUSE if a mapping is not page-aligned.
    pub(crate) fn check_page_alignment(&self) -> Result<(), Errno> {
        let odd = |value: u64| !value.is_multiple_of(PAGE_SIZE);
        let crooked = |area: &Area| odd(area.start) || odd(area.length()) || odd(area.from);
        // With this alignment already asked for, every mapping has it.
        if self.alignment() < PAGE_SIZE && self.areas.values().any(crooked) {
            return Err(Errno::EADDRINUSE);
        }
        Ok(())
    }

    fn check(&self, iova: u64, length: u64) -> Result<(), Errno> {
        if !iova.is_multiple_of(self.alignment()) {
            return Err(Errno::EINVAL);
        }
        let last = last(iova, length)?;
        if self.reserved.iter().any(|(_, (start, end))| *start <= last && *end >= iova) {
            return Err(Errno::EINVAL);
        }
        if self.taken.touches(iova, last) {
            return Err(Errno::EEXIST);
        }
        Ok(())
    }

    /// Chooses a free IOVA, never 0, for `length` bytes of memory at `address`, with the memory's alignment up to a
    /// page.
    fn choose(&self, address: u64, length: u64) -> Result<u64, Errno> {
        if length >= u64::MAX / 2 {
            return Err(Errno::EOVERFLOW);
        }
        let whole = length.next_power_of_two();
        let natural = if address == 0 { whole } else { whole.min(1 << address.trailing_zeros()) };
        let alignment = natural.min(PAGE_SIZE);
        if alignment < self.alignment() {
            return Err(Errno::EINVAL);
        }
        let fit = |(start, last): Range| {
            let at = start.checked_add(alignment - 1)? & !(alignment - 1) | (address % PAGE_SIZE);
            (at < last && last - at >= length - 1).then_some(at)
        };
        let (low, high) = (PAGE_SIZE, u64::MAX - PAGE_SIZE);
        let allowed: Vec<Range> = if self.allowed.is_empty() {
            vec![(low, high)]
        } else {
            self.allowed.within(low, high).collect()
        };
        let reserved = self.reserved_spans();
        for range in allowed {
            let Some(start) = fit(range) else { continue };
            for (start, last) in reserved.holes(start, range.1) {
                if let Some(found) = self.taken.holes(start, last).find_map(fit) {
                    return Ok(found);
                }
            }
        }
        Err(Errno::ENOSPC)
    }

    fn reserved_spans(&self) -> Spans {
        let mut spans = Spans::default();
        for (_, (start, last)) in &self.reserved {
            spans.insert(*start, *last);
        }
        spans
    }
}

/// Returns the last of `length` bytes from `iova`. EINVAL for 0 bytes, EOVERFLOW past the end of the address space.
pub(crate) fn last(iova: u64, length: u64) -> Result<u64, Errno> {
    iova.checked_add(length.checked_sub(1).ok_or(Errno::EINVAL)?).ok_or(Errno::EOVERFLOW)
}

impl Attached {
    /// Adds a mapping to a device with an emulated IOMMU, if its memory is available.
    fn try_give(&self, area: &Area) {
        if area.rights.is_empty() {
            return;
        }
        if let Err(errno) = area.give(&self.space, None) {
            let (iova, length) = (area.start, area.length());
            tracing::debug!(iova, length, %errno, "cannot map memory for a device: its accesses will fault");
        }
    }

    fn take(&self, area: &Area) {
        area.take(&self.space);
    }
}
