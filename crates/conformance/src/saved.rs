//! A saved state: its bytes, and how a migration region has divided them.

use std::collections::HashSet;
use std::ops::Deref;

/// Bytes that a case may load in pieces of states, at most.
const TRIED_BYTES: usize = 512 << 20;
/// Pieces of a state that a case tries, at most.
const TRIED: usize = 64;

/// A state as a data session gave it. It dereferences to its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    bytes: Vec<u8>,
    /// The ends of a migration region's transactions; empty without a region.
    ends: Vec<usize>,
}

impl Saved {
    /// Returns a state of these bytes, whose transactions end at `ends`.
    pub(crate) fn new(bytes: Vec<u8>, ends: Vec<usize>) -> Saved {
        Saved { bytes, ends }
    }

    /// Returns the pieces that a v1 region has to get whole; `None` if the bytes may be divided at will.
    pub(crate) fn transactions(&self) -> Option<impl Iterator<Item = &[u8]>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let ends = self.ends.iter().copied().chain([self.bytes.len()]);
        let pieces = starts.zip(ends).filter_map(|(start, end)| self.bytes.get(start..end));
        (!self.ends.is_empty()).then(|| pieces.filter(|piece| !piece.is_empty()))
    }

    /// Returns lengths at which to cut the state, each shorter than it, the most telling first: its ends and its middle,
    /// then all of a small state, and of a larger one powers of two with their neighbours, and random ones.
    pub(crate) fn cuts(&self, random: &mut fastrand::Rng) -> Vec<usize> {
        let length = self.bytes.len();
        let count = (TRIED_BYTES / length.max(1)).clamp(5, TRIED).min(length);
        let first = [length.saturating_sub(1), 0, length / 2, 1, length.saturating_sub(8)];
        let mut rest: Vec<usize> = if length <= TRIED {
            (0..length).collect()
        } else {
            let powers = std::iter::successors(Some(8_usize), |power| power.checked_mul(2));
            let edges =
                powers.take_while(|power| *power < length).flat_map(|power| [power - 1, power, power + 1]);
            edges.chain(std::iter::repeat_with(|| random.usize(..length)).take(count)).collect()
        };
        random.shuffle(&mut rest);
        let mut seen = HashSet::new();
        let cuts = first.into_iter().chain(rest).filter(|cut| *cut < length && seen.insert(*cut));
        cuts.take(count).collect()
    }
}

impl From<Vec<u8>> for Saved {
    fn from(bytes: Vec<u8>) -> Saved {
        Saved::new(bytes, Vec::new())
    }
}

impl Deref for Saved {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_make_up_the_state() {
        let saved = Saved::new((0..10).collect(), vec![3, 3, 7]);
        let pieces: Vec<&[u8]> = saved.transactions().unwrap().collect();
        assert_eq!(pieces, [&[0, 1, 2][..], &[3, 4, 5, 6], &[7, 8, 9]]);
        assert!(Saved::from(vec![1]).transactions().is_none());
    }

    #[test]
    fn a_state_is_cut_at_its_ends_and_in_between() {
        let cuts = |length| Saved::from(vec![0; length]).cuts(&mut fastrand::Rng::with_seed(1));
        assert!(cuts(0).is_empty());
        assert_eq!(cuts(60).len(), 60);
        for length in [1, 2, 60, 65, 100, 65_000, 50 << 20] {
            let cuts = cuts(length);
            assert_eq!(cuts[0], length - 1);
            assert!([0, length / 2].iter().all(|cut| cuts.contains(cut)), "{length}");
            assert!(cuts.len() <= TRIED && cuts.iter().all(|cut| *cut < length), "{length}");
        }
    }
}
