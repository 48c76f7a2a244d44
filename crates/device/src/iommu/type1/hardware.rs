//! The address translation of a group's devices: by the container alone, or by an IOMMU with its own limits.

use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::IovaRange;

use super::PAGE_SIZE;

/// The translation of the addresses that a group's devices use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Translation {
    /// The container itself, as for the kernel's mediated devices (`VFIO_EMULATED_IOMMU`). It sees each write, so a
    /// dirty bitmap is exact.
    Emulated,
    /// An IOMMU, as for a PCI device (`VFIO_IOMMU`). The container does not see writes, so a dirty bitmap always has
    /// every page.
    Hardware(HardwareIommu),
}

/// The limits of an IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HardwareIommu {
    iova_ranges: Vec<IovaRange>,
    page_sizes: u64,
    coherent: bool,
}

impl HardwareIommu {
    /// Returns an IOMMU that maps within `iova_ranges`, in pages of `page_sizes` (bit n for 2^n bytes), with or without
    /// cache coherence (VFIO_DMA_CC_IOMMU).
    ///
    /// EINVAL without a range or a page size, and unless the ranges ascend with gaps between them.
    pub fn new(iova_ranges: Vec<IovaRange>, page_sizes: u64, coherent: bool) -> Result<HardwareIommu, Errno> {
        let ordered = iova_ranges
            .windows(2)
            .all(|pair| pair[0].end.checked_add(1).is_some_and(|after| after < pair[1].start));
        let sound = iova_ranges.iter().all(|range| range.start <= range.end);
        if iova_ranges.is_empty() || !ordered || !sound || page_sizes == 0 {
            return Err(Errno::EINVAL);
        }
        Ok(HardwareIommu { iova_ranges, page_sizes, coherent })
    }

    pub(crate) fn iova_ranges(&self) -> &[IovaRange] {
        &self.iova_ranges
    }

    pub(crate) fn page_sizes(&self) -> u64 {
        self.page_sizes
    }

    pub(crate) fn is_coherent(&self) -> bool {
        self.coherent
    }
}

impl Translation {
    pub(crate) fn is_hardware(&self) -> bool {
        self.hardware().is_some()
    }

    pub(crate) fn is_coherent(&self) -> bool {
        self.hardware().is_none_or(|hardware| hardware.coherent)
    }

    fn hardware(&self) -> Option<&HardwareIommu> {
        match self {
            Translation::Emulated => None,
            Translation::Hardware(hardware) => Some(hardware),
        }
    }
}

/// Returns the common page sizes; without any IOMMU, all of 4 KiB and up. 0 without a common one.
pub(super) fn page_sizes<'a>(all: impl Iterator<Item = &'a Translation>) -> u64 {
    let common = all.filter_map(Translation::hardware).fold(u64::MAX, |sizes, one| sizes & one.page_sizes);
    let whole = !(PAGE_SIZE - 1);
    // An IOMMU with pages smaller than the process's can put a process's page together.
    if common & !whole == 0 { common } else { common & whole | PAGE_SIZE }
}

/// Returns the common mappable ranges; `None` without any IOMMU.
pub(super) fn iova_ranges<'a>(all: impl Iterator<Item = &'a Translation>) -> Option<Vec<IovaRange>> {
    all.filter_map(Translation::hardware).fold(None, |common, one| match common {
        None => Some(one.iova_ranges.clone()),
        Some(common) => Some(intersect(&common, &one.iova_ranges)),
    })
}

/// Returns whether one of the ranges contains the whole mapping.
pub(super) fn hold(ranges: &[IovaRange], first: u64, last: u64) -> bool {
    ranges.iter().any(|range| range.start <= first && last <= range.end)
}

fn intersect(ours: &[IovaRange], theirs: &[IovaRange]) -> Vec<IovaRange> {
    let pairs = ours.iter().flat_map(|our| theirs.iter().map(move |their| (our, their)));
    pairs
        .map(|(our, their)| IovaRange { start: our.start.max(their.start), end: our.end.min(their.end) })
        .filter(|range| range.start <= range.end)
        .collect()
}
