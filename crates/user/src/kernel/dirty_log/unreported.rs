//! Dirty pages that were read from the kernel and that no report has contained yet: plain data.

use std::collections::BTreeMap;

/// Ranges of bytes, joined where they touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unreported {
    /// The last byte of each range, by its first byte.
    ranges: BTreeMap<u64, u64>,
}

impl Unreported {
    /// Adds `length` bytes from `iova` on.
    pub(super) fn add(&mut self, iova: u64, length: u64) {
        let Some(past_first) = length.checked_sub(1) else { return };
        let (mut first, mut last) = (iova, iova.saturating_add(past_first));
        // Ranges that begin before the end of this one, or right behind it.
        while let Some((start, end)) = self.ranges.range(..=last.saturating_add(1)).next_back() {
            let (start, end) = (*start, *end);
            if end.saturating_add(1) < first {
                break;
            }
            self.ranges.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.ranges.insert(first, last);
    }

    /// Removes everything from `iova` to `end`, and calls `each` with the start and length of each range removed.
    pub(super) fn take(&mut self, iova: u64, end: u64, mut each: impl FnMut(u64, u64)) {
        let Some(last) = end.checked_sub(1).filter(|last| *last >= iova) else { return };
        while let Some((start, until)) = self.ranges.range(..=last).next_back() {
            let (start, until) = (*start, *until);
            if until < iova {
                break;
            }
            self.ranges.remove(&start);
            if until > last {
                self.ranges.insert(last + 1, until);
            }
            if start < iova {
                self.ranges.insert(start, iova - 1);
            }
            let (from, to) = (start.max(iova), until.min(last));
            each(from, to - from + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_added_is_taken_once(
            steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..60),
        ) {
            let (mut unreported, mut model) = (Unreported::default(), BTreeSet::new());
            for (adds, start, length) in steps {
                if adds {
                    unreported.add(start, length);
                    model.extend(start..start + length);
                } else {
                    let mut taken = BTreeSet::new();
                    unreported.take(start, start + length, |from, count| taken.extend(from..from + count));
                    let expected: BTreeSet<u64> = model.range(start..start + length).copied().collect();
                    model.retain(|byte| !expected.contains(byte));
                    prop_assert_eq!(taken, expected);
                }
                let mut ranges = unreported.ranges.iter();
                let mut before = ranges.next();
                for next in ranges {
                    prop_assert!(*before.unwrap().1 + 1 < *next.0, "ranges that touch are joined");
                    before = Some(next);
                }
            }
        }
    }

    #[test]
    fn the_last_byte_of_all_is_kept_too() {
        let mut unreported = Unreported::default();
        unreported.add(u64::MAX - 1, 2);
        let mut taken = Vec::new();
        unreported.take(0, u64::MAX, |from, count| taken.push((from, count)));
        assert_eq!(taken, [(u64::MAX - 1, 1)], "the end is exclusive");
    }
}
