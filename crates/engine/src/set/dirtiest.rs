//! The part of the memory with most of the dirty pages, which keeps a migration from its end.

use whimbrel_protocol::dirty::{PageBitmap, Run};

use super::memory::{PAGE, RamRegion};

/// The size of a part in pages: 64 MiB. A smaller region is one part.
const PART: usize = (64 << 20) / PAGE as usize;

/// Returns the part of a region that has most dirty pages, and their number.
fn dirtiest_part(bitmap: &PageBitmap) -> Option<(usize, usize)> {
    let mut counts = vec![0; bitmap.pages().div_ceil(PART)];
    for Run { mut first, mut count } in bitmap.runs() {
        while count > 0 {
            let here = count.min(PART - first % PART);
            counts[first / PART] += here;
            first += here;
            count -= here;
        }
    }
    // Of equals the first.
    counts.into_iter().enumerate().rev().max_by_key(|(_, count)| *count).filter(|(_, count)| *count > 0)
}

/// Returns the part of the memory that has most dirty pages, at most 64 MiB, with the size of these pages in bytes.
pub(super) fn dirtiest(regions: &[RamRegion], bitmaps: &[PageBitmap]) -> Option<(RamRegion, u64)> {
    let parts = regions.iter().zip(bitmaps).filter_map(|(region, bitmap)| {
        let (part, pages) = dirtiest_part(bitmap)?;
        let offset = (part * PART) as u64 * PAGE;
        let size = (PART as u64 * PAGE).min(region.size - offset);
        Some((RamRegion::new(region.start + offset, size), (pages as u64 * PAGE).min(size)))
    });
    parts.reduce(|most, next| if next.1 > most.1 { next } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn marked(region: RamRegion, runs: &[(usize, usize)]) -> PageBitmap {
        let mut bitmap = PageBitmap::new(region.pages());
        for &(first, count) in runs {
            bitmap.set_run(Run { first, count });
        }
        bitmap
    }

    #[test]
    fn the_part_with_most_dirty_pages_is_named_and_not_the_longest_run() {
        let regions = [RamRegion::new(0, MIB), RamRegion::new(1 << 30, 200 * MIB)];
        let scattered: Vec<_> = (0..300).map(|at| (PART + 2 * at, 1)).collect();
        let bitmaps = [marked(regions[0], &[(0, 255)]), marked(regions[1], &scattered)];
        let found = dirtiest(&regions, &bitmaps).unwrap();
        assert_eq!(found, (RamRegion::new((1 << 30) + 64 * MIB, 64 * MIB), 300 * PAGE));
    }

    #[test]
    fn a_run_over_the_end_of_a_part_counts_in_both_and_the_last_part_is_as_long_as_its_region() {
        let region = RamRegion::new(0, 100 * MIB + 1);
        let over = marked(region, &[(PART - 10, 30)]);
        assert_eq!(
            dirtiest(&[region], &[over]).unwrap(),
            (RamRegion::new(64 * MIB, 36 * MIB + 1), 20 * PAGE)
        );
        let mut all = PageBitmap::new(region.pages());
        all.set_all();
        assert_eq!(dirtiest(&[region], &[all]).unwrap(), (RamRegion::new(0, 64 * MIB), 64 * MIB));
    }

    #[test]
    fn clean_memory_has_no_such_part() {
        let region = RamRegion::new(0, MIB);
        assert_eq!(dirtiest(&[region], &[PageBitmap::new(region.pages())]), None);
        assert_eq!(dirtiest(&[], &[]), None);
    }
}
