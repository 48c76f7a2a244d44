//! A set of blocks, one bit each.

/// A set of blocks out of `0..len`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockSet {
    words: Vec<u64>,
    len: u64,
}

impl BlockSet {
    /// Returns an empty set over `len` blocks.
    pub(super) fn new(len: u64) -> BlockSet {
        BlockSet { words: vec![0; len.div_ceil(64) as usize], len }
    }

    /// Returns the set of all `len` blocks.
    pub(super) fn all(len: u64) -> BlockSet {
        let mut words = vec![u64::MAX; len.div_ceil(64) as usize];
        // Bits past the end are never set.
        if let (Some(last), used @ 1..) = (words.last_mut(), len % 64) {
            *last = u64::MAX >> (64 - used);
        }
        BlockSet { words, len }
    }

    pub(super) fn contains(&self, block: u64) -> bool {
        self.words.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// Adds a block, which must be below `len`, and returns whether the set did not contain it.
    pub(super) fn insert(&mut self, block: u64) -> bool {
        debug_assert!(block < self.len);
        let word = &mut self.words[(block / 64) as usize];
        let before = *word;
        *word |= 1 << (block % 64);
        *word != before
    }

    pub(super) fn remove(&mut self, block: u64) {
        if let Some(word) = self.words.get_mut((block / 64) as usize) {
            *word &= !(1 << (block % 64));
        }
    }

    /// Returns the first block at or after `from` that is in the set (`present`) or not in it (`!present`), else `len`.
    pub(super) fn next(&self, from: u64, present: bool) -> u64 {
        let flip = if present { 0 } else { u64::MAX };
        let mut index = (from / 64) as usize;
        let mut mask = u64::MAX << (from % 64);
        while let Some(word) = self.words.get(index) {
            let found = (word ^ flip) & mask;
            if found != 0 {
                return (index as u64 * 64 + u64::from(found.trailing_zeros())).min(self.len);
            }
            mask = u64::MAX;
            index += 1;
        }
        self.len
    }

    /// Returns the number of blocks in the set.
    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns the number of runs of consecutive blocks that are not in the set.
    pub(super) fn gaps(&self) -> u64 {
        let mut gaps = 0;
        let mut at = self.next(0, false);
        while at < self.len {
            gaps += 1;
            at = self.next(self.next(at, true), false);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_blocks_are_as_many_as_there_are() {
        for len in [1, 63, 64, 65, 128, 1000] {
            let mut added = BlockSet::new(len);
            for block in 0..len {
                added.insert(block);
            }
            assert_eq!(BlockSet::all(len), added);
        }
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(
            len in 1u64..200,
            blocks in proptest::collection::vec((any::<bool>(), 0u64..200), 0..80),
        ) {
            let mut set = BlockSet::new(len);
            let mut model = BTreeSet::new();
            for (add, block) in blocks {
                let block = block % len;
                if add {
                    prop_assert_eq!(set.insert(block), model.insert(block));
                } else {
                    set.remove(block);
                    model.remove(&block);
                }
            }
            prop_assert_eq!(set.count(), model.len() as u64);
            for from in 0..len {
                prop_assert_eq!(set.contains(from), model.contains(&from));
                let present = (from..len).find(|block| model.contains(block)).unwrap_or(len);
                let absent = (from..len).find(|block| !model.contains(block)).unwrap_or(len);
                prop_assert_eq!(set.next(from, true), present);
                prop_assert_eq!(set.next(from, false), absent);
            }
            let gaps = (0..len)
                .filter(|block| !model.contains(block) && (*block == 0 || model.contains(&(block - 1))))
                .count();
            prop_assert_eq!(set.gaps(), gaps as u64);
        }
    }
}
