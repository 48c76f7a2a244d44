//! The IOVA ranges that a user asks a driver to log, checked as the kernel checks them.

use crate::Errno;

/// A range of IO virtual addresses, in bytes. `iova + length` does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IovaRange {
    iova: u64,
    length: u64,
}

impl IovaRange {
    /// Returns a range of `length` bytes from `iova`; EOVERFLOW if its end does not fit in 64 bits.
    ///
    /// The end is exclusive, so a range cannot include the last byte of the address space: the kernel's rule.
    pub const fn new(iova: u64, length: u64) -> Result<IovaRange, Errno> {
        match iova.checked_add(length) {
            Some(_) => Ok(IovaRange { iova, length }),
            None => Err(Errno::EOVERFLOW),
        }
    }

    /// Returns the first address.
    pub const fn iova(self) -> u64 {
        self.iova
    }

    /// Returns the length in bytes.
    pub const fn length(self) -> u64 {
        self.length
    }

    /// Returns the first address after the range.
    pub const fn end(self) -> u64 {
        self.iova + self.length
    }

    /// Returns the part of this range that lies in `other`, if any.
    pub fn intersection(self, other: IovaRange) -> Option<IovaRange> {
        let iova = self.iova.max(other.iova);
        let end = self.end().min(other.end());
        (iova < end).then(|| IovaRange { iova, length: end - iova })
    }
}

/// Maximum number of ranges in one VFIO_DEVICE_FEATURE_DMA_LOGGING_START (a page of 16-byte ranges).
pub const MAX_LOGGING_RANGES: u32 = 256;

/// The ranges of one VFIO_DEVICE_FEATURE_DMA_LOGGING_START, checked one by one in the kernel's order
/// (`vfio_ioctl_device_feature_logging_start` in `drivers/vfio/vfio_main.c`).
///
/// As in the kernel, the driver decides about the page size itself and about a length of 0.
#[derive(Clone, Debug)]
pub struct LoggingRanges {
    page_size: u64,
    ranges: Vec<IovaRange>,
    expected: u32,
}

impl LoggingRanges {
    /// Begins a list of `num_ranges` ranges: EINVAL for 0, E2BIG for more than [`MAX_LOGGING_RANGES`].
    pub fn new(page_size: u64, num_ranges: u32) -> Result<LoggingRanges, Errno> {
        match num_ranges {
            0 => Err(Errno::EINVAL),
            1..=MAX_LOGGING_RANGES => Ok(LoggingRanges {
                page_size,
                ranges: Vec::with_capacity(num_ranges as usize),
                expected: num_ranges,
            }),
            _ => Err(Errno::E2BIG),
        }
    }

    /// Adds a range: EINVAL if it is not aligned to the page size, EOVERFLOW if its end does not fit in 64 bits,
    /// EINVAL if it overlaps an earlier range or exceeds the announced number.
    pub fn push(&mut self, iova: u64, length: u64) -> Result<(), Errno> {
        let mask = self.page_size.wrapping_sub(1);
        if iova & mask != 0 || length & mask != 0 {
            return Err(Errno::EINVAL);
        }
        let range = IovaRange::new(iova, length)?;
        let last = |range: IovaRange| range.end().wrapping_sub(1);
        let overlaps = |other: &IovaRange| other.iova <= last(range) && range.iova <= last(*other);
        if self.ranges.len() >= self.expected as usize || self.ranges.iter().any(overlaps) {
            return Err(Errno::EINVAL);
        }
        self.ranges.push(range);
        Ok(())
    }

    /// Returns the requested page size in bytes, as the user gave it.
    pub const fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Returns the ranges in the user's order.
    pub fn ranges(&self) -> &[IovaRange] {
        &self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_ranges_is_bounded_on_both_sides() {
        for (count, expected) in [(0, Some(Errno::EINVAL)), (1, None), (256, None), (257, Some(Errno::E2BIG))]
        {
            assert_eq!(LoggingRanges::new(4096, count).err(), expected, "{count}");
        }
    }

    #[test]
    fn each_range_is_checked_in_the_kernels_order() {
        let cases = [
            ("aligned", 0x10000, 0x1000, Ok(())),
            ("iova off by one", 0x10001, 0x1000, Err(Errno::EINVAL)),
            ("length off by one", 0x10000, 0x1001, Err(Errno::EINVAL)),
            ("misaligned before overflow", u64::MAX, u64::MAX, Err(Errno::EINVAL)),
            ("past the end", 0xffff_ffff_ffff_f000, 0x2000, Err(Errno::EOVERFLOW)),
            ("the last page", 0xffff_ffff_ffff_f000, 0x1000, Err(Errno::EOVERFLOW)),
            ("overlap", 0x4000, 0x2000, Err(Errno::EINVAL)),
            ("the same", 0x5000, 0x1000, Err(Errno::EINVAL)),
            ("adjacent below", 0x4000, 0x1000, Ok(())),
            ("adjacent above", 0x6000, 0x1000, Ok(())),
        ];
        for (what, iova, length, expected) in cases {
            let mut ranges = LoggingRanges::new(4096, 2).unwrap();
            ranges.push(0x5000, 0x1000).unwrap();
            assert_eq!(ranges.push(iova, length), expected, "{what}");
        }
    }

    #[test]
    fn ranges_beyond_the_announced_number_are_refused() {
        let mut ranges = LoggingRanges::new(4096, 1).unwrap();
        ranges.push(0, 0x1000).unwrap();
        assert_eq!(ranges.push(0x1000, 0x1000), Err(Errno::EINVAL));
    }

    #[test]
    fn intersection_is_the_common_part() {
        let range = |iova, length| IovaRange::new(iova, length).unwrap();
        assert_eq!(range(10, 10).intersection(range(15, 10)), Some(range(15, 5)));
        assert_eq!(range(10, 10).intersection(range(20, 10)), None);
        assert_eq!(range(10, 0).intersection(range(5, 10)), None);
    }
}
