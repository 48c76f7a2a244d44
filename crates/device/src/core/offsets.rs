//! The offsets of regions in the device file.

/// Bits of a device file's offset that lie within a region (`VFIO_PCI_OFFSET_SHIFT` in the kernel).
const OFFSET_SHIFT: u32 = 40;

/// Returns the offset of a region in the device file, in bytes.
pub const fn region_offset(index: u32) -> u64 {
    (index as u64) << OFFSET_SHIFT
}

/// Splits an offset of the device file into region and offset within it.
pub const fn split_offset(offset: u64) -> (u32, u64) {
    ((offset >> OFFSET_SHIFT) as u32, offset & ((1 << OFFSET_SHIFT) - 1))
}
