//! The reply to VFIO_IOMMU_GET_INFO, as a type and as bytes.

use whimbrel_uapi::device::InfoCapHeader;
use whimbrel_uapi::type1::{
    IommuInfoFlags, IommuType1Info, IommuType1InfoCapIovaRange, IommuType1InfoCapMigration,
    IommuType1InfoDmaAvail, IovaRange, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
};
use zerocopy::IntoBytes;

/// The capabilities of a container with a type1 IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Type1Info {
    /// Page sizes it can map: bit n for 2^n bytes.
    pub page_sizes: u64,
    /// The page size of dirty bitmaps, in bytes.
    pub migration_page_size: u64,
    /// The maximum size of a dirty bitmap, in bytes.
    pub max_dirty_bitmap_size: u64,
    /// The number of mappings that can still be made.
    pub dma_avail: u32,
    /// The mappable ranges; empty without a limit.
    pub iova_ranges: Vec<IovaRange>,
}

impl Type1Info {
    /// Returns the fixed part and the capabilities after it. `argsz` is the size of both; `cap_offset` is the first
    /// one's.
    pub(crate) fn to_bytes(&self) -> (IommuType1Info, Vec<u8>) {
        let migration = IommuType1InfoCapMigration {
            header: header(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION),
            pgsize_bitmap: self.migration_page_size,
            max_dirty_bitmap_size: self.max_dirty_bitmap_size,
            ..IommuType1InfoCapMigration::default()
        };
        let avail =
            IommuType1InfoDmaAvail { header: header(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL), avail: self.dma_avail };
        let mut capabilities = vec![migration.as_bytes().to_vec(), avail.as_bytes().to_vec()];
        if !self.iova_ranges.is_empty() {
            let head = IommuType1InfoCapIovaRange {
                header: header(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE),
                nr_iovas: self.iova_ranges.len() as u32,
                reserved: 0,
            };
            capabilities.push([head.as_bytes(), self.iova_ranges.as_bytes()].concat());
        }
        let mut chain = Vec::new();
        let fixed = size_of::<IommuType1Info>();
        let count = capabilities.len();
        for (index, mut capability) in capabilities.into_iter().enumerate() {
            // The kernel keeps every capability aligned to 8 bytes.
            capability.resize(capability.len().next_multiple_of(8), 0);
            let next = if index + 1 < count { fixed + chain.len() + capability.len() } else { 0 };
            let at = std::mem::offset_of!(InfoCapHeader, next);
            capability[at..at + 4].copy_from_slice(&(next as u32).to_ne_bytes());
            chain.extend_from_slice(&capability);
        }
        let info = IommuType1Info {
            argsz: (fixed + chain.len()) as u32,
            flags: (IommuInfoFlags::PGSIZES | IommuInfoFlags::CAPS).bits(),
            iova_pgsizes: self.page_sizes,
            cap_offset: fixed as u32,
            pad: 0,
        };
        (info, chain)
    }
}

fn header(id: u16) -> InfoCapHeader {
    InfoCapHeader { id, version: 1, next: 0 }
}
