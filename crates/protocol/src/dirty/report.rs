//! One VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: the range asked about, and the bits to set.

use super::{IovaRange, Marks};
use crate::Errno;

/// A user's request for the dirty pages of a range, with the bitmap that receives them.
///
/// Bit n of the bitmap stands for the page at `iova + n * page_size`; words are u64s whose bytes are little-endian.
/// (The header's own formula, `addr % 64`, is wrong; this is what the kernel's `iova_bitmap_set()` does.) Bits are set
/// and never cleared.
///
/// ```
/// use whimbrel_protocol::dirty::DirtyReport;
///
/// let mut words = [0u64; 1];
/// let mut report = DirtyReport::new(0x10000, 0x8000, 4096, &mut words)?;
/// report.set(0x12000, 0x1800);
/// assert_eq!(words, [0b1100]);
/// # Ok::<(), whimbrel_protocol::Errno>(())
/// ```
#[derive(Debug)]
pub struct DirtyReport<'a> {
    range: IovaRange,
    shift: u32,
    words: &'a mut [u64],
}

impl<'a> DirtyReport<'a> {
    /// Returns a request for `length` bytes from `iova` in pages of `page_size` bytes.
    ///
    /// EINVAL if the page size is below 4096 or not a power of two, EOVERFLOW if the end does not fit in 64 bits, then
    /// EINVAL if `words` has no room for every page. Any iova and a length of 0 are valid, as in the kernel.
    pub fn new(
        iova: u64,
        length: u64,
        page_size: u64,
        words: &'a mut [u64],
    ) -> Result<DirtyReport<'a>, Errno> {
        let range = Self::check(iova, length, page_size)?;
        if (words.len() as u64) < Self::words_needed(length, page_size) {
            return Err(Errno::EINVAL);
        }
        Ok(DirtyReport { range, shift: page_size.trailing_zeros(), words })
    }

    /// Makes the checks that the kernel makes before it looks at the bitmap.
    pub fn check(iova: u64, length: u64, page_size: u64) -> Result<IovaRange, Errno> {
        if page_size < 4096 || !page_size.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        IovaRange::new(iova, length)
    }

    /// Returns the number of u64s in a bitmap for `length` bytes; `page_size` is a power of two.
    pub const fn words_needed(length: u64, page_size: u64) -> u64 {
        length.div_ceil(page_size).div_ceil(64)
    }

    /// Returns the requested range.
    pub const fn range(&self) -> IovaRange {
        self.range
    }

    /// Returns the page size of the answer, in bytes.
    pub const fn page_size(&self) -> u64 {
        1 << self.shift
    }

    /// Returns the bitmap, for a source that fills all of it, such as a kernel.
    pub fn words_mut(&mut self) -> &mut [u64] {
        self.words
    }

    /// Marks every page that contains any of the `length` bytes from `iova`. Ignores bytes outside the requested range.
    pub fn set(&mut self, iova: u64, length: u64) {
        let end = iova.saturating_add(length).min(self.range.end());
        let iova = iova.max(self.range.iova());
        if iova >= end {
            return;
        }
        let first = (iova - self.range.iova()) >> self.shift;
        let last = (end - 1 - self.range.iova()) >> self.shift;
        super::bitmap::set_bits(self.words, first as usize, last as usize);
    }

    /// Marks the pages reported by a log with pages of 2^`shift` bytes.
    pub fn set_marks(&mut self, marks: &Marks, shift: u32) {
        let from = marks.iova().wrapping_sub(self.range.iova());
        let is_aligned = marks.iova() >= self.range.iova() && from & (self.page_size() - 1) == 0;
        let (index, bit) = ((from >> shift) / 64, (from >> shift) % 64);
        if shift == self.shift && is_aligned && bit == 0 {
            // Setting all words in order, without a branch for each, is faster than setting only those with marks: the
            // log's next atomic operation waits for these stores.
            if let Some(words) = self.words.get_mut(index as usize..) {
                words.iter_mut().zip(marks.words()).for_each(|(word, bits)| *word |= bits);
            }
            return;
        }
        for (slot, bits) in marks.iter() {
            let mut left = bits;
            while left != 0 {
                let first = left.trailing_zeros();
                let count = (left >> first).trailing_ones();
                let page = slot as u64 * 64 + u64::from(first);
                self.set(marks.iova() + (page << shift), u64::from(count) << shift);
                left &= u64::MAX.checked_shl(first + count).unwrap_or(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_checked_in_the_kernels_order() {
        let cases = [
            (0, 0, 4096, Ok(())),
            (1, 4096, 4096, Ok(())),
            (0, 4096, 1 << 63, Ok(())),
            (0, 4096, 2048, Err(Errno::EINVAL)),
            (0, 4096, 0, Err(Errno::EINVAL)),
            (0, 4096, 12288, Err(Errno::EINVAL)),
            (u64::MAX, 1, 2048, Err(Errno::EINVAL)),
            (u64::MAX, 1, 4096, Err(Errno::EOVERFLOW)),
            (u64::MAX, 0, 4096, Ok(())),
        ];
        for (iova, length, page_size, expected) in cases {
            let mut words = [0; 1];
            let got = DirtyReport::new(iova, length, page_size, &mut words).map(|_| ());
            assert_eq!(got, expected, "{iova:#x} {length:#x} {page_size:#x}");
        }
    }

    #[test]
    fn a_bitmap_too_small_for_the_range_is_refused() {
        let mut words = [0; 2];
        assert!(DirtyReport::new(0, 128 * 4096, 4096, &mut words).is_ok());
        assert_eq!(DirtyReport::new(0, 128 * 4096 + 1, 4096, &mut words).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn bits_are_counted_from_the_start_of_the_range_and_clipped_to_it() {
        let cases = [
            (0x3000, 0x1000, 0b100),
            (0x3fff, 2, 0b1100),
            (0, 0x2000, 0b1),
            (0, u64::MAX, 0xff),
            (0x9000, 0x1000, 0),
            (0x8000, 0x5000, 0b1000_0000),
            (0x4000, 0, 0),
        ];
        for (iova, length, expected) in cases {
            let mut words = [0; 1];
            DirtyReport::new(0x1000, 0x8000, 4096, &mut words).unwrap().set(iova, length);
            assert_eq!(words[0], expected, "{iova:#x} {length:#x}");
        }
    }

    #[test]
    fn bits_already_set_stay() {
        let mut words = [1 << 5];
        DirtyReport::new(0, 0x8000, 4096, &mut words).unwrap().set(0, 1);
        assert_eq!(words[0], 1 << 5 | 1);
    }
}
