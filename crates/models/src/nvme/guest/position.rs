//! The position of a driver, and its form in the memory of a guest.

use std::collections::BTreeMap;
use std::ops::Range;

use super::queue::QueuePair;

/// The position of a driver: its queues, and the memory that is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub(super) queues: BTreeMap<u16, QueuePair>,
    pub(super) free: Range<u64>,
    /// A page for the data of the driver's own commands.
    pub(super) page: u64,
}

impl Position {
    /// Returns the position as bytes: at most 88 for each pair of queues, 8 for each command in flight, and 32.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut words = vec![self.page, self.free.start, self.free.end, self.queues.len() as u64];
        for (id, pair) in &self.queues {
            words.push((*id).into());
            pair.write(&mut words);
        }
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// Returns the position that [`Position::to_bytes`] has written; `None` for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Position> {
        let (words, []) = bytes.as_chunks() else { return None };
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let page = words.next()?;
        let free = words.next()?..words.next()?;
        let mut queues = BTreeMap::new();
        for _ in 0..words.next()? {
            let id = u16::try_from(words.next()?).ok()?;
            queues.insert(id, QueuePair::read(&mut words)?);
        }
        words.next().is_none().then_some(Position { queues, free, page })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        let mut busy = QueuePair::new(0x8000, 16);
        (busy.tail, busy.head, busy.phase, busy.fetched) = (5, 15, false, 3);
        busy.in_flight.extend([0, 7, 14]);
        let queues = BTreeMap::from([(0, QueuePair::new(0x1000, 8)), (3, busy)]);
        Position { queues, free: 0x10_0000..0x20_0000, page: 0 }
    }

    #[test]
    fn a_position_comes_back_from_memory() {
        let bytes = position().to_bytes();
        assert_eq!(Position::from_bytes(&bytes), Some(position()));
        assert!(bytes.len() <= 2 * 88 + 3 * 8 + 32);
    }

    #[test]
    fn bytes_that_are_no_position_are_refused() {
        let bytes = position().to_bytes();
        for length in 0..bytes.len() {
            assert_eq!(Position::from_bytes(&bytes[..length]), None, "{length}");
        }
        assert_eq!(Position::from_bytes(&[&bytes[..], &[0; 8]].concat()), None);
        // The number of queues, a queue's identifier, its entries, tail, head, phase, fetched head, and a command's identifier.
        for (word, value) in [
            (3, u64::MAX),
            (4, 1 << 16),
            (5, 1),
            (5, 1 << 17),
            (9, 8),
            (10, 8),
            (11, 2),
            (12, 8),
            (24, 1 << 16),
        ] {
            let mut wrong = bytes.clone();
            wrong[word * 8..][..8].copy_from_slice(&u64::to_le_bytes(value));
            assert_eq!(Position::from_bytes(&wrong), None, "word {word}");
        }
    }
}
