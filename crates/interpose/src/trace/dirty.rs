//! Dirty bitmaps: where the memory of a program has the bitmap of a request, and how many bits are set in it.

use whimbrel_uapi::dma_logging::DeviceFeatureDmaLoggingReport;
use whimbrel_uapi::feature::{DeviceFeature, FEATURE_MASK, Feature, FeatureFlags};
use whimbrel_uapi::ioctl::{
    IOMMU_HWPT_GET_DIRTY_BITMAP, Request as Name, VFIO_DEVICE_FEATURE, VFIO_IOMMU_DIRTY_PAGES,
    VFIO_IOMMU_UNMAP_DMA,
};
use whimbrel_uapi::iommufd::HwptGetDirtyBitmap;
use whimbrel_uapi::type1::{
    Bitmap, DirtyPagesFlags, DmaUnmapFlags, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet,
    IommuType1DmaUnmap,
};
use zerocopy::FromBytes;

use super::record::{Dirty, Request};

/// The most bytes of a bitmap that are read: the largest bitmap that the kernel takes.
const MAX_BYTES: u64 = 256 << 20;

/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// A bitmap in the memory of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InMemory {
    address: u64,
    pages: u64,
}

/// Returns the bitmap that this request fills, if it fills one.
pub(crate) fn find(request: &Request) -> Option<InMemory> {
    let bytes = request.argument.as_slice();
    let is = |name: Name| request.call().request() == Some(name);
    if is(VFIO_DEVICE_FEATURE) {
        let (feature, data) = head::<DeviceFeature>(bytes)?;
        let is_report = feature.flags & FEATURE_MASK == u32::from(Feature::DmaLoggingReport.number());
        let verbs = FeatureFlags::from_bits_retain(feature.flags);
        if !is_report || verbs.contains(FeatureFlags::PROBE) {
            return None;
        }
        let (report, _) = head::<DeviceFeatureDmaLoggingReport>(data)?;
        in_memory(report.bitmap, report.length, report.page_size)
    } else if is(VFIO_IOMMU_DIRTY_PAGES) {
        let (what, data) = head::<IommuType1DirtyBitmap>(bytes)?;
        if !DirtyPagesFlags::from_bits_retain(what.flags).contains(DirtyPagesFlags::GET_BITMAP) {
            return None;
        }
        let (get, _) = head::<IommuType1DirtyBitmapGet>(data)?;
        in_memory(get.bitmap.data, get.size, get.bitmap.pgsize)
    } else if is(VFIO_IOMMU_UNMAP_DMA) {
        let (unmap, data) = head::<IommuType1DmaUnmap>(bytes)?;
        if !DmaUnmapFlags::from_bits_retain(unmap.flags).contains(DmaUnmapFlags::GET_DIRTY_BITMAP) {
            return None;
        }
        let (bitmap, _) = head::<Bitmap>(data)?;
        in_memory(bitmap.data, unmap.size, bitmap.pgsize)
    } else if is(IOMMU_HWPT_GET_DIRTY_BITMAP) {
        let (get, _) = head::<HwptGetDirtyBitmap>(bytes)?;
        in_memory(get.data, get.length, get.page_size)
    } else {
        None
    }
}

fn head<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

fn in_memory(address: u64, length: u64, page_size: u64) -> Option<InMemory> {
    (page_size != 0 && length != 0).then(|| InMemory { address, pages: length.div_ceil(page_size) })
}

/// Counts the dirty pages. `read` reads memory of the program at an address and returns how many bytes it has read.
pub(crate) fn count(bitmap: InMemory, mut read: impl FnMut(u64, &mut [u8]) -> usize) -> Dirty {
    let mut counted = Dirty::new(0, 0, bitmap.pages);
    let end = bitmap.pages.div_ceil(8).min(MAX_BYTES);
    let mut piece = vec![0; PIECE.min(usize::try_from(end).unwrap_or(PIECE))];
    let mut offset = 0;
    while offset < end {
        let Some(address) = bitmap.address.checked_add(offset) else { break };
        let wanted = usize::try_from(end - offset).unwrap_or(PIECE).min(PIECE);
        let got = read(address, &mut piece[..wanted]).min(wanted);
        let bytes = &piece[..got];
        let pages = (bitmap.pages - offset * 8).min(got as u64 * 8);
        counted.dirty += ones(bytes);
        counted.counted += pages;
        // The last byte may have bits that stand for no page.
        if let (Some(last), 1..8) = (bytes.last(), pages % 8) {
            counted.dirty -= u64::from((last >> (pages % 8)).count_ones());
        }
        if got < wanted {
            break;
        }
        offset += got as u64;
    }
    counted
}

/// Counts the bits that are set, eight bytes at a time.
fn ones(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let in_words: u32 = words.iter().map(|word| u64::from_ne_bytes(*word).count_ones()).sum();
    let in_rest: u32 = rest.iter().map(|byte| byte.count_ones()).sum();
    u64::from(in_words + in_rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(pages: u64, memory: &[u8]) -> Dirty {
        count(InMemory { address: 0x1000, pages }, |address, bytes| {
            let start = usize::try_from(address - 0x1000).unwrap().min(memory.len());
            let count = bytes.len().min(memory.len() - start);
            bytes[..count].copy_from_slice(&memory[start..start + count]);
            count
        })
    }

    #[test]
    fn set_bits_are_counted_up_to_the_last_page() {
        assert_eq!(counted(16, &[0xff, 0x01]), Dirty::new(9, 16, 16));
        assert_eq!(counted(12, &[0x00, 0xff]), Dirty::new(4, 12, 12));
        let large = vec![0x11; PIECE + 10];
        let pages = large.len() as u64 * 8;
        assert_eq!(counted(pages, &large), Dirty::new(pages / 4, pages, pages));
    }

    #[test]
    fn what_cannot_be_read_is_not_counted() {
        assert_eq!(counted(64, &[0xff, 0xff]), Dirty::new(16, 16, 64));
        assert_eq!(counted(64, &[]), Dirty::new(0, 0, 64));
        let at_the_end = InMemory { address: u64::MAX - 1, pages: u64::MAX };
        assert_eq!(count(at_the_end, |_, _| 0), Dirty::new(0, 0, u64::MAX));
    }

    #[test]
    fn no_more_than_the_largest_bitmap_of_the_kernel_is_read() {
        let mut total = 0;
        let endless = InMemory { address: 0, pages: u64::MAX };
        let dirty = count(endless, |_, bytes| {
            total += bytes.len() as u64;
            bytes.len()
        });
        assert_eq!((total, dirty.counted), (MAX_BYTES, MAX_BYTES * 8));
    }
}
