//! What a log of dirty pages tells at a time: the marks of pages that lie near each other.

/// Marks that were in a log, of at most 4096 pages that lie next to each other. The log decides how large a page is.
#[derive(Clone, Debug)]
pub struct Marks {
    iova: u64,
    words: [u64; Marks::MAX_WORDS],
    count: usize,
    /// Which of the words can have marks: bit n for word n.
    marked: u64,
}

impl Marks {
    /// How many words there are at most: as many as a word has bits.
    pub const MAX_WORDS: usize = 64;

    /// No marks yet, in `count` words, the first of which begins with the page at `iova`. More words than
    /// [`Marks::MAX_WORDS`] are left out.
    #[inline]
    pub const fn new(iova: u64, count: usize) -> Marks {
        let count = if count < Self::MAX_WORDS { count } else { Self::MAX_WORDS };
        Marks { iova, words: [0; Self::MAX_WORDS], count, marked: 0 }
    }

    /// Sets a word, one of those there are.
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

    /// Returns a bit for each page of the log, from [`Marks::iova`] on, the lowest first.
    pub fn words(&self) -> &[u64] {
        &self.words[..self.count]
    }

    /// Iterates over the words that can have marks, with their index.
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
