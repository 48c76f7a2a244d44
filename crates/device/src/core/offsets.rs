//! The offsets of regions in the device file.

/// Bits of a device file's offset that lie within a region (`VFIO_PCI_OFFSET_SHIFT` in the kernel).
const OFFSET_SHIFT: u32 = 40;

/// Offset in bytes at which the regions of a device begin in a file that a program has in place of the device file, as under
/// `whimbrel run`: no other file has bytes there, which tells accesses to regions from all others. Region `index` is at
/// `REGION_MEMORY_START + region_offset(index)`, where
/// [`RegionMemory::for_programs`](crate::RegionMemory::for_programs) has its memory too.
pub const REGION_MEMORY_START: u64 = 1 << 62;

/// Returns the offset of a region in the device file, in bytes.
pub const fn region_offset(index: u32) -> u64 {
    (index as u64) << OFFSET_SHIFT
}

/// Splits an offset of the device file into region and offset within it.
pub const fn split_offset(offset: u64) -> (u32, u64) {
    ((offset >> OFFSET_SHIFT) as u32, offset & ((1 << OFFSET_SHIFT) - 1))
}
