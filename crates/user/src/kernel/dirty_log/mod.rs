//! The dirty log of an address space: that of a type1 container (VFIO_IOMMU_DIRTY_PAGES), or that of a page table of
//! iommufd (IOMMU_HWPT_GET_DIRTY_BITMAP).
//!
//! The kernel answers for whole mappings only, and forgets a mapping's dirty pages when it is unmapped. This log therefore
//! knows the mappings, and keeps dirty pages that were read but not reported yet ([`Unreported`]).

mod requests;
mod unreported;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, PageBitmap};
use whimbrel_uapi::ioctl::{self as names, Request};
use whimbrel_uapi::iommufd::{HwptDirtyTrackingFlags, HwptGetDirtyBitmapFlags};
use whimbrel_uapi::type1::DirtyPagesFlags;

pub(super) use self::requests::{hardware_capabilities, new_page_table};
use self::unreported::Unreported;
use super::ioctl;
use crate::dirty_source::DirtySource;
use crate::error::{Error, Result};
use crate::operation::Operation;

/// The page size of reports of a page table, in bytes. The kernel answers in any page size; a larger page is dirty as a
/// whole.
const PAGE: u64 = 4096;

/// The log of the writes of all devices in an address space of the kernel.
///
/// [`DmaMap::dirty_log`](crate::DmaMap::dirty_log) of a [`Group`](super::Group) or [`Cdev`](super::Cdev) returns it. A VMM
/// that manages its own container or iommufd creates one of them, and then unmaps memory through it while it runs: the
/// dirty pages of unmapped memory are kept for the next report. A clone is another handle to the same log.
///
/// A container reports all mapped memory as dirty if a device in it has an IOMMU of its own and does not pin its pages
/// (all but mediated devices), a page table only what its hardware has marked.
///
/// ```no_run
/// # fn example(container: std::os::fd::OwnedFd) -> whimbrel_user::Result<()> {
/// use whimbrel_user::kernel::AddressSpaceLog;
/// use whimbrel_user::{DirtyReport, DirtySource, IovaRange};
///
/// // A duplicate of the container's descriptor, and all of its mappings.
/// let mapped = [IovaRange::new(0, 1 << 30).expect("it ends below 2^64")];
/// let mut log = AddressSpaceLog::of_container("vm 1", container, mapped)?;
/// log.start(4096, &mapped)?;
/// log.unmap(0, 1 << 30)?;
/// let mut words = vec![0; (1 << 30) / 4096 / 64];
/// log.report(&mut DirtyReport::new(0, 1 << 30, 4096, &mut words).expect("it has room"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AddressSpaceLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The name of the device or VM, for errors.
    name: String,
    space: Space,
    state: Mutex<State>,
}

#[derive(Debug)]
enum Space {
    Container {
        container: OwnedFd,
        page_size: u64,
        /// The largest bitmap that the kernel fills, in bytes.
        max_bitmap: u64,
    },
    PageTable {
        iommufd: OwnedFd,
        ioas: u32,
        hwpt: u32,
    },
}

#[derive(Debug, Default)]
struct State {
    running: bool,
    /// Size of each mapping, by IOVA.
    mappings: BTreeMap<u64, u64>,
    unreported: Unreported,
    /// The bitmap of one mapping, reused.
    words: Vec<u64>,
}

impl AddressSpaceLog {
    /// Returns the log of a type1v2 container with these mappings. `name` appears in errors.
    ///
    /// Fails if the container has no IOMMU yet, or its IOMMU has no dirty log (VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION).
    pub fn of_container(
        name: impl Into<String>,
        container: OwnedFd,
        mappings: impl IntoIterator<Item = IovaRange>,
    ) -> Result<AddressSpaceLog> {
        let name = name.into();
        let found = requests::migration_capability(container.as_fd())
            .map_err(Error::at(&name, names::VFIO_IOMMU_GET_INFO))?;
        let usable = found.filter(|found| found.pgsize_bitmap != 0);
        let Some(found) = usable else {
            return Err(Error::unusable(
                &name,
                "its container has no dirty log (VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION): use the log of the device, or \
                 resend all memory after the stop",
            ));
        };
        let page_size = 1 << found.pgsize_bitmap.trailing_zeros();
        let space = Space::Container { container, page_size, max_bitmap: found.max_dirty_bitmap_size };
        Ok(AddressSpaceLog::new(name, space, mappings))
    }

    /// Returns the log of the page table `hwpt` (made with IOMMU_HWPT_ALLOC_DIRTY_TRACKING) of the address space `ioas` of
    /// an iommufd, with these mappings. `name` appears in errors.
    pub fn of_page_table(
        name: impl Into<String>,
        iommufd: OwnedFd,
        ioas: u32,
        hwpt: u32,
        mappings: impl IntoIterator<Item = IovaRange>,
    ) -> AddressSpaceLog {
        AddressSpaceLog::new(name.into(), Space::PageTable { iommufd, ioas, hwpt }, mappings)
    }

    fn new(name: String, space: Space, mappings: impl IntoIterator<Item = IovaRange>) -> AddressSpaceLog {
        let log = AddressSpaceLog { shared: Arc::new(Shared { name, space, state: Mutex::default() }) };
        mappings.into_iter().for_each(|mapping| log.add_mapping(mapping));
        log
    }

    /// Notes a mapping that was added to the address space.
    pub fn add_mapping(&self, mapping: IovaRange) {
        if mapping.length() > 0 {
            self.shared.lock().mappings.insert(mapping.iova(), mapping.length());
        }
    }

    /// Unmaps the mappings that lie completely in the range, and returns their size in bytes. While the log runs, their
    /// dirty pages are kept for the next report.
    ///
    /// A container's dirty pages come with the unmapping (VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP). Those of a page table are
    /// read just before it: the devices must not write the range meanwhile.
    ///
    /// Fails like the kernel's request. A range that cuts a mapping fails with EINVAL (container) or ENOENT (iommufd), and
    /// nothing is unmapped; after another error, the mappings before the failed one are unmapped.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<u64> {
        self.unmap_range(iova, size).map_err(|errno| {
            let request = self.shared.space.unmap_request();
            Error::request(&self.shared.name, Operation::Memory { request, iova }, errno)
        })
    }

    pub(super) fn unmap_range(&self, iova: u64, size: u64) -> std::result::Result<u64, Errno> {
        let space = &self.shared.space;
        let state = &mut *self.shared.lock();
        let end = iova.saturating_add(size);
        let (inside, cut): (Vec<_>, Vec<_>) =
            state.mappings_in(iova, end).partition(|mapping| lies_in(*mapping, iova, end));
        if let Some((start, length)) = cut.first() {
            // The kernel's error, but an iommufd would first unmap the mappings before this one.
            let first = iova.max(*start);
            return space.unmap(first, end.min(start.saturating_add(*length)) - first);
        }
        if !state.running || inside.is_empty() {
            let unmapped = space.unmap(iova, size)?;
            for (start, _) in inside {
                state.mappings.remove(&start);
            }
            return Ok(unmapped);
        }
        let mut total = 0;
        for (start, length) in inside {
            let pages = state.words_for(length, space.page_size());
            total += space.unmap_dirty(start, length, &mut state.words)?;
            state.mappings.remove(&start);
            for (iova, length) in runs(&state.words, pages, start, space.page_size()) {
                state.unreported.add(iova, length);
            }
        }
        Ok(total)
    }

    /// Fails as a report does if the log does not run.
    pub(super) fn expect_running(&self) -> Result<()> {
        let running = self.shared.lock().running;
        running.then_some(()).ok_or(Errno::EINVAL).map_err(self.failed(self.shared.space.read_request()))
    }

    pub(super) fn is_mapped(&self, iova: u64) -> bool {
        self.shared.lock().mappings.contains_key(&iova)
    }

    fn failed(&self, request: Request) -> impl FnOnce(Errno) -> Error {
        Error::at(&self.shared.name, request)
    }
}

/// `ranges` are not passed to the kernel, which logs all mapped memory.
impl DirtySource for AddressSpaceLog {
    fn start(&mut self, _: u64, _: &[IovaRange]) -> Result<u64> {
        let space = &self.shared.space;
        let state = &mut *self.shared.lock();
        if let Space::Container { page_size, max_bitmap, .. } = space {
            let bitmap = |size| DirtyReport::words_needed(size, *page_size) * 8;
            if let Some((iova, size)) = state.mappings.iter().find(|(_, size)| bitmap(**size) > *max_bitmap) {
                let why = format!(
                    "the mapping of {size:#x} bytes at {iova:#x} is too large for the container's dirty log, whose \
                     bitmaps have at most {max_bitmap} bytes; map it in several pieces"
                );
                return Err(Error::unusable(&self.shared.name, why));
            }
        }
        if std::mem::take(&mut state.running) {
            // A second start would keep what is marked.
            space.track(false).map_err(self.failed(space.track_request()))?;
        }
        space.track(true).map_err(self.failed(space.track_request()))?;
        (state.running, state.unreported) = (true, Unreported::default());
        Ok(space.page_size())
    }

    fn stop(&mut self) -> Result<()> {
        let space = &self.shared.space;
        let state = &mut *self.shared.lock();
        space.track(false).map_err(self.failed(space.track_request()))?;
        (state.running, state.unreported) = (false, Unreported::default());
        Ok(())
    }

    fn report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let space = &self.shared.space;
        let state = &mut *self.shared.lock();
        let read = space.read_request();
        if !state.running {
            return Err(self.failed(read)(Errno::EINVAL));
        }
        let (range, page_size) = (report.range(), space.page_size());
        let mappings: Vec<_> = state.mappings_in(range.iova(), range.end()).collect();
        for (start, length) in mappings {
            // A container reports whole mappings only. The rest is kept.
            let pages = state.words_for(length, page_size);
            space.read(start, length, &mut state.words).map_err(|errno| {
                Error::request(&self.shared.name, Operation::Memory { request: read, iova: start }, errno)
            })?;
            if lies_in((start, length), range.iova(), range.end())
                && merge(report, start, page_size, &state.words)
            {
                continue;
            }
            for (iova, length) in runs(&state.words, pages, start, page_size) {
                report.set(iova, length);
                state.unreported.add(iova, length);
            }
        }
        state.unreported.take(range.iova(), range.end(), |iova, length| report.set(iova, length));
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last handle stops the log, which would otherwise slow down the devices.
impl Drop for Shared {
    fn drop(&mut self) {
        let running = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).running;
        if running && let Err(errno) = self.space.track(false) {
            tracing::debug!(name = self.name, %errno, "{}", self.space.track_request());
        }
    }
}

impl State {
    /// Returns the mappings that have a byte in a range, by ascending address.
    fn mappings_in(&self, iova: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let before = self.mappings.range(..iova).next_back();
        let before = before.filter(|(start, size)| **start + (**size - 1) >= iova);
        let within = (iova < end).then(|| self.mappings.range(iova..end));
        before.into_iter().chain(within.into_iter().flatten()).map(|(start, size)| (*start, *size))
    }

    /// Makes room for the zeroed bitmap of a mapping, and returns its number of pages.
    fn words_for(&mut self, length: u64, page_size: u64) -> usize {
        self.words.clear();
        self.words.resize(DirtyReport::words_needed(length, page_size) as usize, 0);
        length.div_ceil(page_size) as usize
    }
}

impl Space {
    /// Returns the page size of the log in bytes.
    fn page_size(&self) -> u64 {
        match self {
            Space::Container { page_size, .. } => *page_size,
            Space::PageTable { .. } => PAGE,
        }
    }

    fn track_request(&self) -> Request {
        match self {
            Space::Container { .. } => names::VFIO_IOMMU_DIRTY_PAGES,
            Space::PageTable { .. } => names::IOMMU_HWPT_SET_DIRTY_TRACKING,
        }
    }

    fn read_request(&self) -> Request {
        match self {
            Space::Container { .. } => names::VFIO_IOMMU_DIRTY_PAGES,
            Space::PageTable { .. } => names::IOMMU_HWPT_GET_DIRTY_BITMAP,
        }
    }

    fn unmap_request(&self) -> Request {
        match self {
            Space::Container { .. } => names::VFIO_IOMMU_UNMAP_DMA,
            Space::PageTable { .. } => names::IOMMU_IOAS_UNMAP,
        }
    }

    /// Starts or stops the log. A page table is then without marks.
    fn track(&self, on: bool) -> std::result::Result<(), Errno> {
        match self {
            Space::Container { container, .. } => {
                let flags = if on { DirtyPagesFlags::START } else { DirtyPagesFlags::STOP };
                requests::container_log(container.as_fd(), flags)
            }
            Space::PageTable { iommufd, hwpt, .. } => {
                let mut flags = HwptDirtyTrackingFlags::empty();
                flags.set(HwptDirtyTrackingFlags::ENABLE, on);
                requests::page_table_log(iommufd.as_fd(), *hwpt, flags)
            }
        }
    }

    /// Reads and clears the dirty pages of a whole mapping.
    fn read(&self, iova: u64, size: u64, words: &mut [u64]) -> std::result::Result<(), Errno> {
        match self {
            Space::Container { container, page_size, .. } => {
                requests::container_dirty(container.as_fd(), iova, size, *page_size, words)
            }
            Space::PageTable { iommufd, hwpt, .. } => {
                let flags = HwptGetDirtyBitmapFlags::empty();
                requests::page_table_dirty(iommufd.as_fd(), *hwpt, flags, iova, size, PAGE, words)
            }
        }
    }

    /// Unmaps a whole mapping, and returns its dirty pages and its size in bytes.
    fn unmap_dirty(&self, iova: u64, size: u64, words: &mut [u64]) -> std::result::Result<u64, Errno> {
        match self {
            Space::Container { container, page_size, .. } => {
                requests::unmap_container_dirty(container.as_fd(), iova, size, *page_size, words)
            }
            Space::PageTable { iommufd, hwpt, ioas } => {
                // The marks go with the mapping: there is no use in clearing them.
                let flags = HwptGetDirtyBitmapFlags::NO_CLEAR;
                requests::page_table_dirty(iommufd.as_fd(), *hwpt, flags, iova, size, PAGE, words)?;
                ioctl::unmap_ioas(iommufd.as_fd(), *ioas, iova, size)
            }
        }
    }

    fn unmap(&self, iova: u64, size: u64) -> std::result::Result<u64, Errno> {
        match self {
            Space::Container { container, .. } => ioctl::unmap_type1(container.as_fd(), iova, size),
            Space::PageTable { iommufd, ioas, .. } => ioctl::unmap_ioas(iommufd.as_fd(), *ioas, iova, size),
        }
    }
}

fn lies_in((start, length): (u64, u64), iova: u64, end: u64) -> bool {
    start >= iova && start < end && length <= end - start
}

/// Merges a mapping's bitmap into a report that contains the mapping. Returns `false`, and does nothing, if its words do not
/// fit those of the report.
fn merge(report: &mut DirtyReport<'_>, start: u64, page_size: u64, words: &[u64]) -> bool {
    let first = (start - report.range().iova()) / page_size;
    let fits = (start - report.range().iova()).is_multiple_of(page_size)
        && first.is_multiple_of(64)
        && report.page_size() == page_size;
    if fits && let Some(into) = report.words_mut().get_mut((first / 64) as usize..) {
        into.iter_mut().zip(words).for_each(|(into, bits)| *into |= bits);
    }
    fits
}

/// Returns the runs of marked pages: IOVA and bytes.
fn runs(words: &[u64], pages: usize, start: u64, page_size: u64) -> Vec<(u64, u64)> {
    let mut bitmap = PageBitmap::new(pages);
    bitmap.merge(words);
    let run = |run: whimbrel_protocol::dirty::Run| {
        (start + run.first as u64 * page_size, run.count as u64 * page_size)
    };
    bitmap.runs().map(run).collect()
}

#[cfg(test)]
mod tests;
