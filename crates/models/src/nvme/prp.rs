//! Physical region pages: the pieces of memory that hold a command's data. No I/O.
//!
//! The two entries of a command either name the data's pages or lead to lists of them. A walk says which list to read
//! next, and which piece of data comes next. It allocates no more than one list, and ends after a number of steps that
//! the length bounds: each list but the first names at least 511 pages.

use std::collections::VecDeque;

use super::command::Status;
use super::registers::PAGE_BYTES;

const ENTRY_BYTES: u64 = 8;

/// The walk through a command's data, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PrpWalk {
    /// Pieces that are known and were not returned.
    known: VecDeque<Piece>,
    /// Bytes of data after those.
    left: u64,
    /// The list that names them.
    list: u64,
}

/// A piece of memory with data in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

/// The next step of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrpStep {
    /// Read this part of a list, and give it to [`PrpWalk::take_list`].
    List(Piece),
    /// The next piece of data.
    Data(Piece),
    End,
}

impl PrpWalk {
    /// Returns the walk through `bytes` bytes of data that a command's two entries describe.
    pub(super) fn new(prp1: u64, prp2: u64, bytes: u64) -> Result<PrpWalk, Status> {
        if !prp1.is_multiple_of(4) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let mut walk = PrpWalk { known: VecDeque::new(), left: bytes, list: 0 };
        walk.add(prp1);
        if (1..=PAGE_BYTES).contains(&walk.left) {
            walk.add_page(prp2)?;
        } else if walk.left > 0 {
            if !prp2.is_multiple_of(ENTRY_BYTES) {
                return Err(Status::PRP_OFFSET_INVALID);
            }
            walk.list = prp2;
        }
        Ok(walk)
    }

    /// Returns the next step. Pieces that follow each other in memory come as one.
    pub(super) fn step(&mut self) -> PrpStep {
        let Some(mut piece) = self.known.pop_front() else {
            return if self.left == 0 { PrpStep::End } else { PrpStep::List(self.list_piece()) };
        };
        while let Some(next) = self.known.front()
            && piece.address.checked_add(piece.bytes) == Some(next.address)
        {
            piece.bytes += next.bytes;
            self.known.pop_front();
        }
        PrpStep::Data(piece)
    }

    /// Takes the bytes of the list that [`PrpWalk::step`] asked for.
    pub(super) fn take_list(&mut self, list: &[u8]) -> Result<(), Status> {
        let (entries, _) = list.as_chunks::<8>();
        let pages = self.left.div_ceil(PAGE_BYTES);
        let is_chained = entries.len() as u64 != pages;
        let (named, next) = match entries.split_last() {
            Some((link, named)) if is_chained => (named, Some(u64::from_le_bytes(*link))),
            _ => (entries, None),
        };
        for entry in named {
            self.add_page(u64::from_le_bytes(*entry))?;
        }
        if let Some(next) = next {
            if !next.is_multiple_of(PAGE_BYTES) {
                return Err(Status::PRP_OFFSET_INVALID);
            }
            self.list = next;
        }
        Ok(())
    }

    /// Returns the part of the current list that has entries: up to the end of its page.
    fn list_piece(&self) -> Piece {
        let room = (PAGE_BYTES - self.list % PAGE_BYTES) / ENTRY_BYTES;
        let entries = self.left.div_ceil(PAGE_BYTES).min(room);
        Piece { address: self.list, bytes: entries * ENTRY_BYTES }
    }

    /// Adds the page of an entry that must not have an offset.
    fn add_page(&mut self, entry: u64) -> Result<(), Status> {
        if !entry.is_multiple_of(PAGE_BYTES) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        self.add(entry);
        Ok(())
    }

    /// Adds the data from an address to the end of its page.
    fn add(&mut self, address: u64) {
        let bytes = self.left.min(PAGE_BYTES - address % PAGE_BYTES);
        if bytes > 0 {
            self.known.push_back(Piece { address, bytes });
            self.left -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Walks with lists from this memory of 64-bit words; absent words are zero.
    fn walk(
        prp1: u64,
        prp2: u64,
        bytes: u64,
        memory: &BTreeMap<u64, u64>,
    ) -> Result<(Vec<Piece>, usize), Status> {
        let mut walk = PrpWalk::new(prp1, prp2, bytes)?;
        let (mut pieces, mut lists) = (Vec::new(), 0);
        loop {
            match walk.step() {
                PrpStep::End => return Ok((pieces, lists)),
                PrpStep::Data(piece) => pieces.push(piece),
                PrpStep::List(Piece { address, bytes }) => {
                    lists += 1;
                    assert!(bytes > 0 && address % PAGE_BYTES + bytes <= PAGE_BYTES, "within a page");
                    let words = (address..address + bytes).step_by(8);
                    let list: Vec<u8> =
                        words.flat_map(|at| memory.get(&at).copied().unwrap_or(0).to_le_bytes()).collect();
                    walk.take_list(&list)?;
                }
            }
        }
    }

    fn piece(address: u64, bytes: u64) -> Piece {
        Piece { address, bytes }
    }

    #[test]
    fn one_or_two_pages_need_no_list() {
        let none = BTreeMap::new();
        assert_eq!(walk(0x5004, u64::MAX, 8, &none), Ok((vec![piece(0x5004, 8)], 0)));
        assert_eq!(walk(0x5e00, 0x9000, 1024, &none), Ok((vec![piece(0x5e00, 512), piece(0x9000, 512)], 0)));
        assert_eq!(walk(0x5000, 0x6000, 8192, &none), Ok((vec![piece(0x5000, 8192)], 0)), "as one piece");
        assert_eq!(walk(0x5000, 1, 0, &none), Ok((vec![], 0)));
    }

    #[test]
    fn offsets_are_allowed_only_where_the_specification_allows_them() {
        let memory = BTreeMap::from([(0x8000, 0x1000), (0x8008, 0x2001)]);
        let refused = Err(Status::PRP_OFFSET_INVALID);
        assert_eq!(walk(0x5002, 0, 512, &memory), refused, "not a dword");
        assert_eq!(walk(0x5000, 0x6004, 8192, &memory), refused, "a second page with an offset");
        assert_eq!(walk(0x5000, 0x8004, 12288, &memory), refused, "a list that is not aligned");
        assert_eq!(walk(0x5000, 0x8000, 12288, &memory), refused, "a page of a list with an offset");
    }

    #[test]
    fn the_last_entry_of_a_list_leads_to_the_next_one_if_more_pages_follow() {
        // A list with room for two entries: the first page, and the next list.
        let memory =
            BTreeMap::from([(0x8ff0, 0x1000), (0x8ff8, 0x20000), (0x20000, 0x5000), (0x20008, 0x7000)]);
        let found = walk(0xa000, 0x8ff0, 4 * 4096, &memory);
        let pages = [0xa000, 0x1000, 0x5000, 0x7000].map(|address| piece(address, 4096));
        assert_eq!(found, Ok((pages.to_vec(), 2)));
        // The same with as many pages as there is room for: the last entry is a page.
        let found = walk(0xa000, 0x8ff0, 3 * 4096, &memory);
        let pages = [0xa000, 0x1000, 0x20000].map(|address| piece(address, 4096));
        assert_eq!(found, Ok((pages.to_vec(), 1)));
        // Room for one entry, which leads on.
        let memory = BTreeMap::from([(0x8ff8, 0x20000), (0x20000, 0x5000), (0x20008, 0x7000)]);
        assert_eq!(walk(0xa000, 0x8ff8, 3 * 4096, &memory).unwrap().1, 2);
        let memory = BTreeMap::from([(0x8ff8, 0x20008), (0x20008, 0x5000)]);
        assert_eq!(walk(0xa000, 0x8ff8, 3 * 4096, &memory), Err(Status::PRP_OFFSET_INVALID));
    }

    #[test]
    fn the_last_page_of_memory_is_not_followed_by_the_first() {
        let found = walk(u64::MAX - 0xfff, 0, 8192, &BTreeMap::new());
        assert_eq!(found, Ok((vec![piece(u64::MAX - 0xfff, 4096), piece(0, 4096)], 0)));
    }

    proptest! {
        /// Whatever memory says, a walk ends, and its pieces are exactly the data.
        #[test]
        fn a_walk_ends_and_covers_the_data(
            prp1 in any::<u64>(),
            prp2 in any::<u64>(),
            is_aligned in any::<bool>(),
            bytes in 0u64..=(3 << 20),
            lists in proptest::collection::vec((0u64..0x8000, any::<u64>()), 0..50),
        ) {
            let mask = if is_aligned { !0xfff } else { u64::MAX };
            // Lists lie where they are found often.
            let prp2 = if is_aligned { prp2 & 0x7ff8 } else { prp2 };
            let memory = lists.into_iter().map(|(at, entry)| (at & !7, entry & mask)).collect();
            if let Ok((pieces, lists)) = walk(prp1 & mask | prp1 & 0xffc, prp2, bytes, &memory) {
                prop_assert_eq!(pieces.iter().map(|piece| piece.bytes).sum::<u64>(), bytes);
                prop_assert!(lists as u64 <= 2 + bytes / (511 * PAGE_BYTES));
                for piece in pieces {
                    prop_assert!(piece.address.checked_add(piece.bytes - 1).is_some());
                }
            }
        }
    }
}
