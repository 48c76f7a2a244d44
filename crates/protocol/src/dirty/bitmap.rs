//! A user's dirty bitmap: collected from several logs, walked as runs.

/// Sets the bits `first` to `last`, both included, in little-endian bit order. The caller ensures that they exist.
pub(super) fn set_bits(words: &mut [u64], first: usize, last: usize) {
    let (low, high) = (first / 64, last / 64);
    let from = u64::MAX << (first % 64);
    let to = u64::MAX >> (63 - last % 64);
    if low == high {
        words[low] |= from & to;
    } else {
        words[low] |= from;
        words[low + 1..high].fill(u64::MAX);
        words[high] |= to;
    }
}

/// One bit for each page of a piece of memory.
///
/// ```
/// use whimbrel_protocol::dirty::{PageBitmap, Run};
///
/// let mut dirty = PageBitmap::new(100);
/// dirty.set_run(Run { first: 3, count: 2 });
/// dirty.set_run(Run { first: 64, count: 1 });
/// let runs: Vec<Run> = dirty.runs().collect();
/// assert_eq!(runs, [Run { first: 3, count: 2 }, Run { first: 64, count: 1 }]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
    pages: usize,
}

/// Consecutive pages, counted from the start of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a run of pages is these two numbers")]
pub struct Run {
    /// First page.
    pub first: usize,
    /// Number of pages.
    pub count: usize,
}

impl PageBitmap {
    /// Returns a bitmap of `pages` clean pages.
    pub fn new(pages: usize) -> PageBitmap {
        PageBitmap { words: vec![0; pages.div_ceil(64)], pages }
    }

    /// Returns the number of pages it covers.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Marks every page.
    pub fn set_all(&mut self) {
        self.set_run(Run { first: 0, count: self.pages });
    }

    /// Marks a run, without any part past the last page.
    pub fn set_run(&mut self, run: Run) {
        let end = run.first.saturating_add(run.count).min(self.pages);
        if run.first < end {
            set_bits(&mut self.words, run.first, end - 1);
        }
    }

    /// Marks a run clean, without any part past the last page.
    pub fn clear_run(&mut self, run: Run) {
        let end = run.first.saturating_add(run.count).min(self.pages);
        if run.first >= end {
            return;
        }
        let (low, high) = (run.first / 64, (end - 1) / 64);
        let from = u64::MAX << (run.first % 64);
        let to = u64::MAX >> (63 - (end - 1) % 64);
        if low == high {
            self.words[low] &= !(from & to);
        } else {
            self.words[low] &= !from;
            self.words[low + 1..high].fill(0);
            self.words[high] &= !to;
        }
    }

    /// Marks every page whose bit is set in `words`, which have the layout of this bitmap. Ignores bits past the last
    /// page.
    pub fn merge(&mut self, words: &[u64]) {
        self.merge_at(0, words);
    }

    /// Merges like [`PageBitmap::merge`] for `words` whose first bit stands for page `first`, a multiple of 64.
    pub fn merge_at(&mut self, first: usize, words: &[u64]) {
        debug_assert_eq!(first % 64, 0);
        for (ours, theirs) in self.words.iter_mut().skip(first / 64).zip(words) {
            *ours |= theirs;
        }
        self.trim();
    }

    /// Marks every page clean.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Returns whether no page is marked.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Returns the number of marked pages.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Returns the marked pages as runs, in ascending order.
    pub fn runs(&self) -> Runs<'_> {
        Runs { bitmap: self, at: 0 }
    }

    /// Returns the marked pages from page `first` on as runs, in ascending order.
    pub fn runs_from(&self, first: usize) -> Runs<'_> {
        Runs { bitmap: self, at: first }
    }

    fn trim(&mut self) {
        if let (Some(last), used @ 1..) = (self.words.last_mut(), self.pages % 64) {
            *last &= u64::MAX >> (64 - used);
        }
    }

    /// Returns the first page from `from` on whose mark is `marked`, or the number of pages.
    fn find(&self, from: usize, marked: bool) -> usize {
        let flip = if marked { 0 } else { u64::MAX };
        let mut index = from / 64;
        let Some(word) = self.words.get(index) else { return self.pages };
        let mut word = (word ^ flip) & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return (index * 64 + word.trailing_zeros() as usize).min(self.pages);
            }
            index += 1;
            match self.words.get(index) {
                Some(next) => word = next ^ flip,
                None => return self.pages,
            }
        }
    }
}

/// The runs of marked pages of a [`PageBitmap`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    bitmap: &'a PageBitmap,
    at: usize,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let first = self.bitmap.find(self.at, true);
        if first >= self.bitmap.pages {
            self.at = first;
            return None;
        }
        self.at = self.bitmap.find(first, false);
        Some(Run { first, count: self.at - first })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_hold_exactly_the_pages_that_were_set(
            pages in 0usize..400,
            runs in proptest::collection::vec((0usize..450, 0usize..150), 0..8),
        ) {
            let mut bitmap = PageBitmap::new(pages);
            let mut model = BTreeSet::new();
            for (first, count) in runs {
                bitmap.set_run(Run { first, count });
                model.extend((first..first + count).filter(|page| *page < pages));
            }
            let found: Vec<Run> = bitmap.runs().collect();
            let listed: Vec<usize> = found.iter().flat_map(|run| run.first..run.first + run.count).collect();
            prop_assert_eq!(listed, model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bitmap.count(), model.len());
            prop_assert_eq!(bitmap.is_empty(), model.is_empty());
            for pair in found.windows(2) {
                prop_assert!(pair[0].first + pair[0].count < pair[1].first, "runs that touch are one run");
            }
        }
    }

    proptest! {
        #[test]
        fn clearing_a_run_clears_exactly_its_pages(
            pages in 1usize..400,
            first in 0usize..450,
            count in 0usize..300,
            from in 0usize..450,
        ) {
            let mut bitmap = PageBitmap::new(pages);
            bitmap.set_all();
            bitmap.clear_run(Run { first, count });
            let expected: Vec<usize> =
                (from..pages).filter(|page| !(first..first + count).contains(page)).collect();
            let found: Vec<usize> =
                bitmap.runs_from(from).flat_map(|run| run.first..run.first + run.count).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn bits_past_the_last_page_are_not_merged() {
        let mut bitmap = PageBitmap::new(70);
        bitmap.merge(&[u64::MAX, u64::MAX, u64::MAX]);
        assert_eq!(bitmap.count(), 70);
        assert_eq!(bitmap.runs().collect::<Vec<_>>(), [Run { first: 0, count: 70 }]);
    }

    #[test]
    fn a_part_is_merged_where_it_belongs() {
        let mut bitmap = PageBitmap::new(130);
        bitmap.merge_at(64, &[1, u64::MAX, u64::MAX]);
        assert_eq!(
            bitmap.runs().collect::<Vec<_>>(),
            [Run { first: 64, count: 1 }, Run { first: 128, count: 2 }]
        );
    }

    #[test]
    fn a_run_that_overflows_is_clipped() {
        let mut bitmap = PageBitmap::new(10);
        bitmap.set_run(Run { first: 8, count: usize::MAX });
        assert_eq!(bitmap.count(), 2);
        bitmap.set_run(Run { first: usize::MAX, count: 1 });
        assert_eq!(bitmap.count(), 2);
    }
}
