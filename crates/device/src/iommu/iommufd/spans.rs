//! A set of addresses as ranges: allocated, reserved or allowed ones.

use std::collections::BTreeMap;

/// Addresses as disjoint ranges, both ends included. Adjacent ranges are merged, so that a set filled in order stays
/// small.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans {
    lasts: BTreeMap<u64, u64>,
}

impl Spans {
    pub(crate) fn is_empty(&self) -> bool {
        self.lasts.is_empty()
    }

    /// Returns whether an address from `start` to `last` is in the set.
    pub(crate) fn touches(&self, start: u64, last: u64) -> bool {
        self.lasts.range(..=last).next_back().is_some_and(|(_, end)| *end >= start)
    }

    /// Adds the addresses from `start` to `last`.
    pub(crate) fn insert(&mut self, mut start: u64, mut last: u64) {
        while let Some((at, end)) = self.lasts.range(..=last.saturating_add(1)).next_back() {
            let (at, end) = (*at, *end);
            if end.saturating_add(1) < start {
                break;
            }
            self.lasts.remove(&at);
            start = start.min(at);
            last = last.max(end);
        }
        self.lasts.insert(start, last);
    }

    /// Removes the addresses from `start` to `last`.
    pub(crate) fn remove(&mut self, start: u64, last: u64) {
        while let Some((at, end)) = self.lasts.range(..=last).next_back() {
            let (at, end) = (*at, *end);
            if end < start {
                break;
            }
            self.lasts.remove(&at);
            if at < start {
                self.lasts.insert(at, start - 1);
            }
            if end > last {
                self.lasts.insert(last + 1, end);
            }
        }
    }

    /// Returns the ranges between `start` and `last`, ascending and clipped.
    pub(crate) fn within(&self, start: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
        let from = self.lasts.range(..=start).next_back().map_or(start, |(at, _)| *at);
        self.lasts
            .range(from..=last)
            .filter(move |(_, end)| **end >= start)
            .map(move |(at, end)| ((*at).max(start), (*end).min(last)))
    }

    /// Returns the ranges between `start` and `last` that are not in the set, ascending.
    pub(crate) fn holes(&self, start: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut next = Some(start);
        let ends = self.within(start, last).map(Some).chain(std::iter::once(None));
        ends.filter_map(move |taken| {
            let from = next?;
            match taken {
                Some((at, end)) => {
                    next = end.checked_add(1).filter(|next| *next <= last);
                    (from < at).then(|| (from, at - 1))
                }
                None => Some((from, last)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_ends_of_the_address_space_can_be_in_the_set() {
        let mut spans = Spans::default();
        assert_eq!(spans.holes(0, u64::MAX).collect::<Vec<_>>(), [(0, u64::MAX)]);
        spans.insert(u64::MAX, u64::MAX);
        spans.insert(0, 0);
        assert!(spans.touches(u64::MAX, u64::MAX));
        assert_eq!(spans.holes(0, u64::MAX).collect::<Vec<_>>(), [(1, u64::MAX - 1)]);
        spans.insert(1, u64::MAX - 1);
        assert_eq!(spans.within(0, u64::MAX).collect::<Vec<_>>(), [(0, u64::MAX)]);
        assert_eq!(spans.holes(0, u64::MAX).count(), 0);
        spans.remove(0, u64::MAX);
        assert!(spans.is_empty());
    }

    proptest! {
        #[test]
        fn the_set_holds_exactly_the_addresses_put_in_and_not_taken_out(
            steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..30),
            start in 0u64..80,
            length in 0u64..80,
        ) {
            let mut spans = Spans::default();
            let mut model = BTreeSet::new();
            for (put, at, length) in steps {
                if put {
                    spans.insert(at, at + length);
                    model.extend(at..=at + length);
                } else {
                    spans.remove(at, at + length);
                    model.retain(|address| !(at..=at + length).contains(address));
                }
            }
            let last = start + length;
            let listed: Vec<u64> = spans.within(start, last).flat_map(|(at, end)| at..=end).collect();
            let expected: Vec<u64> = model.range(start..=last).copied().collect();
            prop_assert_eq!(spans.touches(start, last), !expected.is_empty());
            prop_assert_eq!(&listed, &expected);
            let holes: Vec<u64> = spans.holes(start, last).flat_map(|(at, end)| at..=end).collect();
            let free: Vec<u64> = (start..=last).filter(|address| !model.contains(address)).collect();
            prop_assert_eq!(holes, free);
            let all: Vec<(u64, u64)> = spans.within(0, u64::MAX).collect();
            let apart = all.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0);
            prop_assert!(apart, "stretches that touch are one");
        }
    }
}
