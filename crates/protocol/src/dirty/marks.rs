//! The marks of neighbouring pages that a dirty log reports at a time.

/// Marks taken from a dirty log, for at most 4096 contiguous pages. The log determines the page size.
#[derive(Clone, Debug)]
pub struct Marks {
    iova: u64,
    words: [u64; Marks::MAX_WORDS],
    count: usize,
    /// The words that can have marks: bit n for word n.
    marked: u64,
}

impl Marks {
    /// The maximum number of words, equal to the number of bits in a word.
    pub const MAX_WORDS: usize = 64;

    /// Returns `count` words without marks, at most [`Marks::MAX_WORDS`]; the first bit stands for the page at
    /// `iova`.
    #[inline]
    pub const fn new(iova: u64, count: usize) -> Marks {
        let count = if count < Self::MAX_WORDS { count } else { Self::MAX_WORDS };
        Marks { iova, words: [0; Self::MAX_WORDS], count, marked: 0 }
    }

    /// Sets one of the words.
    #[inline]
    pub fn set(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.words[..self.count].get_mut(index) {
            *word = bits;
            self.marked |= 1 << index;
        }
    }

    /// Returns the address of the page that the first bit stands for.
    pub const fn iova(&self) -> u64 {
        self.iova
    }

    /// Returns one bit for each page of the log from [`Marks::iova`] on, lowest first.
    pub fn words(&self) -> &[u64] {
        &self.words[..self.count]
    }

    /// Iterates over the words that can have marks, with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u64)> {
        let mut left = self.marked;
        std::iter::from_fn(move || {
            let slot = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            Some((slot, *self.words.get(slot)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_in_ascending_order_and_only_those_that_were_set() {
        let mut marks = Marks::new(0x1000, 100);
        for (index, bits) in [(63, 1), (0, 2), (64, 4), (5, 0)] {
            marks.set(index, bits);
        }
        assert_eq!(marks.words().len(), 64);
        assert_eq!(marks.iter().collect::<Vec<_>>(), [(0, 2), (5, 0), (63, 1)]);
    }
}
