//! Dirty tracking of a container: start, stop and reports.
//!
//! Each mapping has a log of its own that the devices' writes mark. `bitmap` has the layout of a report.

use std::sync::Arc;

use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaUnmapFlags;

use super::bitmap::{self, Target, WordsBitmap};
use super::mappings::Mapping;
use super::{KernelVersion, Member, Type1};
use crate::bus::dma::MappingLog;

impl Type1 {
    /// VFIO_IOMMU_DIRTY_PAGES with START. EINVAL if a mapping has more pages than can be tracked.
    pub(crate) fn start_tracking(&mut self) -> Result<(), Errno> {
        self.check_tracks()?;
        if self.tracking {
            return Ok(());
        }
        let page_size = self.page_size();
        let logs: Vec<_> = self
            .mappings
            .all()
            .map(|(start, mapping)| bitmap::log_of(mapping.size(start), page_size).map(Arc::new))
            .collect::<Result<_, _>>()?;
        for ((start, mapping), log) in self.mappings.beginning_in_mut(0, u64::MAX).zip(logs) {
            mapping.log = Some(log);
            set_log_in(&self.members, start, mapping);
        }
        self.tracking = true;
        Ok(())
    }

    /// VFIO_IOMMU_DIRTY_PAGES with STOP.
    pub(crate) fn stop_tracking(&mut self) -> Result<(), Errno> {
        self.check_tracks()?;
        if std::mem::replace(&mut self.tracking, false) {
            for (start, mapping) in self.mappings.beginning_in_mut(0, u64::MAX) {
                mapping.log = None;
                set_log_in(&self.members, start, mapping);
            }
        }
        Ok(())
    }

    /// VFIO_IOMMU_DIRTY_PAGES with GET_BITMAP: reports the dirty pages of a range and clears them.
    pub(crate) fn dirty_bitmap(&self, iova: u64, size: u64, target: &mut dyn Target) -> Result<(), Errno> {
        self.check_tracks()?;
        let past_first = size.checked_sub(1).ok_or(Errno::EINVAL)?;
        let last = iova.checked_add(past_first).ok_or(self.wrap())?;
        // 6.12 takes the end for exclusive here, unlike in its other requests.
        if self.kernel == KernelVersion::Linux6_12 && last == u64::MAX {
            return Err(Errno::EINVAL);
        }
        bitmap::check(target, size)?;
        let page_size = self.page_size();
        if target.page_size() != page_size || (iova | size) & (page_size - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        if !self.tracking || self.mappings.are_cut_by(iova, last) {
            return Err(Errno::EINVAL);
        }
        for (start, mapping) in self.mappings.beginning_in(iova, last) {
            self.report(start, mapping, iova, target)?;
        }
        Ok(())
    }

    /// [`Type1::unmap`] with GET_DIRTY_BITMAP, into a bitmap of this process.
    pub(crate) fn unmap_into_words(
        &mut self,
        iova: u64,
        size: u64,
        page_size: u64,
        words: &mut [u64],
    ) -> Result<u64, Errno> {
        let mut target = WordsBitmap { page_size, words };
        self.unmap(DmaUnmapFlags::GET_DIRTY_BITMAP, iova, size, Some(&mut target))
    }

    /// [`Type1::dirty_bitmap`] into a bitmap of this process.
    pub(crate) fn report_into_words(
        &mut self,
        iova: u64,
        size: u64,
        page_size: u64,
        words: &mut [u64],
    ) -> Result<(), Errno> {
        self.dirty_bitmap(iova, size, &mut WordsBitmap { page_size, words })
    }

    /// Moves the marks of a mapping into a bitmap whose first bit is the page at `base`. If that fails, they stay.
    pub(super) fn report(
        &self,
        start: u64,
        mapping: &Mapping,
        base: u64,
        target: &mut dyn Target,
    ) -> Result<(), Errno> {
        let Some(log) = &mapping.log else { return Ok(()) };
        let (size, page_size) = (mapping.size(start), self.page_size());
        let first = (start - base) / page_size;
        if self.members.iter().any(|member| member.translation.is_hardware()) {
            // What stands behind an IOMMU writes without telling anybody: every page may be dirty, each time. Marks of
            // other devices can stay: when that IOMMU leaves, every page is marked.
            bitmap::tell_every(size, page_size, first, target)
        } else {
            bitmap::tell(log, size, page_size, first, target)
        }
    }

    /// Adds what was marked since [`Type1::report`] to the same bitmap.
    pub(super) fn report_late(
        &self,
        start: u64,
        mapping: &Mapping,
        base: u64,
        target: &mut dyn Target,
    ) -> Result<(), Errno> {
        let Some(log) = &mapping.log else { return Ok(()) };
        let page_size = self.page_size();
        bitmap::tell_late(log, mapping.size(start), page_size, (start - base) / page_size, target)
    }

    pub(crate) fn check_tracks(&self) -> Result<(), Errno> {
        if self.v2 { Ok(()) } else { Err(Errno::EACCES) }
    }
}

fn set_log_in(members: &[Member], start: u64, mapping: &Mapping) {
    for space in members.iter().flat_map(Member::spaces) {
        for (iova, offset, _) in mapping.pieces(start) {
            space.set_mapping_log(iova, mapping.log.clone().map(|log| MappingLog { log, offset }));
        }
    }
}
