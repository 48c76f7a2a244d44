//! A hardware page table and the IOMMUs that can use it.

use whimbrel_protocol::Errno;
use whimbrel_uapi::iommufd::HwptAllocFlags;

use super::OwnIommu;

/// A page table with the mappings of an address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hwpt {
    pub(crate) ioas: u32,
    /// The purpose of the table: dirty tracking, and devices with PASIDs.
    flags: HwptAllocFlags,
    /// Created automatically for a device attached to the address space, and destroyed with the last such device.
    pub(crate) automatic: bool,
    /// The last IOVA it translates.
    pub(crate) last_iova: u64,
    /// Sizes of its pages.
    pub(crate) page_sizes: u64,
    /// For devices whose accesses are always coherent.
    pub(crate) coherent: bool,
}

impl Hwpt {
    /// Returns a page table for a device's IOMMU.
    pub(crate) fn new(ioas: u32, iommu: &OwnIommu, flags: HwptAllocFlags, automatic: bool) -> Hwpt {
        Hwpt {
            ioas,
            flags,
            automatic,
            last_iova: iommu.last_iova,
            page_sizes: iommu.page_sizes,
            coherent: iommu.coherent,
        }
    }

    pub(crate) fn tracks(&self) -> bool {
        self.flags.contains(HwptAllocFlags::ALLOC_DIRTY_TRACKING)
    }

    pub(crate) fn is_for_pasids(&self) -> bool {
        self.flags.contains(HwptAllocFlags::ALLOC_PASID)
    }

    /// Fails with EINVAL unless an IOMMU can use the table.
    pub(crate) fn check_iommu(&self, iommu: &OwnIommu) -> Result<(), Errno> {
        let fits = self.last_iova <= iommu.last_iova
            && self.page_sizes & !iommu.page_sizes == 0
            && (iommu.coherent || !self.coherent)
            && (iommu.dirty_tracking || !self.tracks());
        if fits { Ok(()) } else { Err(Errno::EINVAL) }
    }
}
