//! The container file, `/dev/vfio/vfio`: groups that share an IOMMU, and the requests of that IOMMU.
//!
//! It enforces the order: first a group, then the IOMMU, then its requests. The IOMMU itself is
//! [`type1`](crate::iommu::type1).

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_uapi::group::{
    VFIO_DMA_CC_IOMMU, VFIO_TYPE1_IOMMU, VFIO_TYPE1_NESTING_IOMMU, VFIO_TYPE1V2_IOMMU, VFIO_UNMAP_ALL,
    VFIO_UPDATE_VADDR,
};
use whimbrel_uapi::type1::{DmaMapFlags, DmaUnmapFlags};

use super::type1::{ContainerSettings, KernelVersion, Member, Type1, Type1Info};
use super::user_memory::UserMemory;

/// An open container. A clone is another handle to it, as from `dup(2)`.
///
/// Requests from several threads are serialized, so a callback of a request ([`Process`](crate::Process)) must not make
/// another one to the same container.
///
/// ```
/// use std::fs::File;
/// use whimbrel_memory::FileOffset;
/// use whimbrel_device::{Container, Errno, Group, Memory, SparseMemory, Translation};
/// # use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, Driver, Info};
/// use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
/// use whimbrel_uapi::type1::DmaMapFlags;
///
/// # struct Quiet;
/// # impl Driver for Quiet {
/// #     fn info(&self) -> Info {
/// #         Info::new(DeviceInfoFlags::RESET)
/// #     }
/// #     fn reset(&mut self, _: &Context) -> Result<(), Errno> { Ok(()) }
/// # }
/// # let device = DeviceFile::new("a", |_| Quiet);
/// // `device` is a `DeviceFile` that was opened under the name "a".
/// let group = Group::new(Translation::Emulated, vec![device])?.open()?;
/// let container = Container::default();
/// group.set_container(&container)?;
/// container.set_iommu(VFIO_TYPE1V2_IOMMU.into())?;
/// let device = group.device("a")?;
///
/// let file = File::from(rustix::fs::memfd_create(c"doc", rustix::fs::MemfdFlags::empty())?);
/// file.set_len(0x1000)?;
/// let mut process = SparseMemory::new();
/// process.insert_shared(0x7000_0000, Memory::of_file(FileOffset::new(file, 0), 0x1000, true)?);
/// container.map_dma(DmaMapFlags::READ | DmaMapFlags::WRITE, 0x7000_0000, 0x10000, 0x1000, &process)?;
/// container.start_dirty_tracking()?;
/// device.bus().dma().write(0x10000, b"hello")?;
///
/// let mut bitmap = [0];
/// container.dirty_bitmap(0x10000, 0x1000, 4096, &mut bitmap)?;
/// assert_eq!(bitmap, [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Container {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    settings: ContainerSettings,
    /// Groups that have joined before an IOMMU was set.
    waiting: Vec<Member>,
    iommu: Option<Type1>,
    groups: usize,
}

impl Container {
    /// Opens a container.
    pub fn new(settings: ContainerSettings) -> Container {
        Container { inner: Arc::new(Mutex::new(Inner { settings, ..Inner::default() })) }
    }

    /// VFIO_CHECK_EXTENSION: before an IOMMU is set, returns what one could support; after it, what this one supports.
    ///
    /// SPAPR, EEH and no-IOMMU behave as on a kernel without them.
    pub fn check_extension(&self, extension: u64) -> bool {
        self.inner.lock().check_extension(extension)
    }

    /// VFIO_SET_IOMMU: EINVAL before a group has joined, and once an IOMMU is set; ENODEV for a missing extension,
    /// EINVAL for one that is not an IOMMU; the error of a group that cannot be attached.
    pub fn set_iommu(&self, extension: u64) -> Result<(), Errno> {
        self.inner.lock().set_iommu(extension)
    }

    /// VFIO_IOMMU_GET_INFO. EINVAL without an IOMMU, as from all requests below.
    pub fn iommu_info(&self) -> Result<Type1Info, Errno> {
        self.with_iommu(|iommu| Ok(iommu.info()))
    }

    /// VFIO_IOMMU_MAP_DMA: maps `size` bytes at `iova` to the process's memory at `vaddr`. With only VADDR, an existing
    /// mapping gets a new address.
    ///
    /// In this order: EINVAL for a size of 0; EOVERFLOW (6.12: EINVAL) past 2^64; EINVAL for VADDR with rights, without
    /// flags, and for anything not aligned to the smallest page; with VADDR ENOENT without a mapping and EINVAL for a
    /// different or a valid one; EEXIST if part is mapped; ENOSPC; EINVAL outside of the mappable ranges; EFAULT for
    /// memory that the process does not have or cannot share.
    pub fn map_dma(
        &self,
        flags: DmaMapFlags,
        vaddr: u64,
        iova: u64,
        size: u64,
        process: &(impl UserMemory + ?Sized),
    ) -> Result<(), Errno> {
        self.with_iommu(|iommu| iommu.map(flags, vaddr, iova, size, process))
    }

    /// VFIO_IOMMU_UNMAP_DMA without GET_DIRTY_BITMAP: unmaps all mappings in `size` bytes from `iova`, or everything
    /// with ALL (and both 0), and returns the bytes unmapped. With VADDR only the process's addresses are invalidated,
    /// and devices continue.
    ///
    /// EBUSY for VADDR with a group without hardware; EINVAL for an unaligned range, for a range that cuts a mapping
    /// (type1v2) and for a second VADDR; EOVERFLOW (6.12: EINVAL) past 2^64.
    pub fn unmap_dma(&self, flags: DmaUnmapFlags, iova: u64, size: u64) -> Result<u64, Errno> {
        self.with_iommu(|iommu| iommu.unmap(flags, iova, size, None))
    }

    /// VFIO_IOMMU_UNMAP_DMA with GET_DIRTY_BITMAP: like [`Container::unmap_dma`], and writes the dirty pages of the
    /// unmapped memory into `bitmap` like [`Container::dirty_bitmap`].
    pub fn unmap_dma_dirty(
        &self,
        iova: u64,
        size: u64,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> Result<u64, Errno> {
        self.with_iommu(|iommu| iommu.unmap_into_words(iova, size, page_size, bitmap))
    }

    /// VFIO_IOMMU_DIRTY_PAGES with START. No effect if tracking is already on. EACCES unless the IOMMU is type1v2.
    pub fn start_dirty_tracking(&self) -> Result<(), Errno> {
        self.with_iommu(Type1::start_tracking)
    }

    /// VFIO_IOMMU_DIRTY_PAGES with STOP. EACCES unless the IOMMU is type1v2.
    pub fn stop_dirty_tracking(&self) -> Result<(), Errno> {
        self.with_iommu(Type1::stop_tracking)
    }

    /// VFIO_IOMMU_DIRTY_PAGES with GET_BITMAP: bit n of `bitmap` is set if the page at `iova + n * page_size` was
    /// written since it was last reported. The bitmap must be zeroed: only words that contain a mapping are written.
    ///
    /// In this order: EACCES unless the IOMMU is type1v2; EINVAL for a size of 0; EOVERFLOW (6.12: EINVAL) past 2^64;
    /// EINVAL for a bitmap that is too small, a page size other than the smallest, an unaligned range, without
    /// tracking, and for a range that cuts a mapping.
    pub fn dirty_bitmap(
        &self,
        iova: u64,
        size: u64,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> Result<(), Errno> {
        self.with_iommu(|iommu| iommu.report_into_words(iova, size, page_size, bitmap))
    }

    pub(crate) fn attach(&self, member: Member) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        match &mut inner.iommu {
            Some(iommu) => iommu.attach(member)?,
            None => inner.waiting.push(member),
        }
        inner.groups += 1;
        Ok(())
    }

    pub(crate) fn detach(&self, group: usize) {
        let mut inner = self.inner.lock();
        inner.waiting.retain(|member| member.group != group);
        if let Some(iommu) = &mut inner.iommu {
            iommu.detach(group);
        }
        inner.groups -= 1;
        if inner.groups == 0 {
            inner.iommu = None;
        }
    }

    pub(crate) fn has_iommu(&self) -> bool {
        self.inner.lock().iommu.is_some()
    }

    pub(crate) fn with_iommu<T>(
        &self,
        request: impl FnOnce(&mut Type1) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        request(self.inner.lock().iommu.as_mut().ok_or(Errno::EINVAL)?)
    }
}

impl Inner {
    fn check_extension(&self, extension: u64) -> bool {
        match u32::try_from(extension) {
            Ok(VFIO_TYPE1_IOMMU | VFIO_TYPE1V2_IOMMU | VFIO_UNMAP_ALL) => true,
            Ok(VFIO_TYPE1_NESTING_IOMMU) => self.settings.kernel == KernelVersion::Linux6_12,
            Ok(VFIO_UPDATE_VADDR) => self.iommu.as_ref().is_some_and(Type1::can_update_vaddr),
            Ok(VFIO_DMA_CC_IOMMU) => self.iommu.as_ref().is_some_and(Type1::is_coherent),
            _ => false,
        }
    }

    fn set_iommu(&mut self, extension: u64) -> Result<(), Errno> {
        if self.groups == 0 || self.iommu.is_some() {
            return Err(Errno::EINVAL);
        }
        if !self.check_extension(extension) {
            return Err(Errno::ENODEV);
        }
        let v2 = match u32::try_from(extension) {
            Ok(VFIO_TYPE1_IOMMU) => false,
            Ok(VFIO_TYPE1V2_IOMMU | VFIO_TYPE1_NESTING_IOMMU) => true,
            _ => return Err(Errno::EINVAL),
        };
        let mut iommu = Type1::new(self.settings, v2);
        for member in &self.waiting {
            iommu.attach(member.clone())?;
        }
        self.waiting.clear();
        self.iommu = Some(iommu);
        Ok(())
    }
}
