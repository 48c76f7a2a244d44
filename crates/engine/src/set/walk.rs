//! One walk over dirty memory by several lanes: each scans its own share, and what one finds out about holes the others know.

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::dirty::PageBitmap;

use super::memory::{Ram, RamRegion};
use super::pagemap::Pagemap;
use super::scan::Scan;
use crate::proto::lanes::Share;

/// The maximum number of stretches of data that are remembered.
const MAX_KNOWN: usize = 4096;

/// A walk over the marked pages of each region that is shared by several lanes.
pub struct Walk<'a> {
    ram: &'a dyn Ram,
    pagemap: &'a Pagemap,
    dirty: Arc<Vec<(RamRegion, PageBitmap)>>,
    extents: Extents,
}

impl<'a> Walk<'a> {
    /// Begins a walk. Walks over the same memory share a pagemap.
    pub fn new(ram: &'a dyn Ram, pagemap: &'a Pagemap, dirty: Vec<(RamRegion, PageBitmap)>) -> Walk<'a> {
        Walk { ram, pagemap, dirty: Arc::new(dirty), extents: Extents::default() }
    }

    /// Returns the scan of a lane's share.
    pub fn scan(&self, share: Share) -> Scan<'_> {
        Scan::of_share(self.ram, self.pagemap, self.dirty.clone(), share, Some(&self.extents))
    }
}

impl std::fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("regions", &self.dirty.len()).finish_non_exhaustive()
    }
}

/// The stretches of data that have been found: each with the address from which on it is the first.
#[derive(Debug, Default)]
pub(super) struct Extents(Mutex<Vec<(u64, (u64, u64))>>);

impl Extents {
    /// Returns the start and end of the first data from `at` on, which `look` finds if no lane has found it. One lane looks at
    /// a time: the others would look for the same.
    pub(super) fn find(&self, at: u64, look: impl FnOnce() -> (u64, u64)) -> (u64, u64) {
        let mut known = self.0.lock();
        let place = known.partition_point(|(from, _)| *from <= at);
        if let Some((_, (start, end))) = place.checked_sub(1).and_then(|before| known.get(before))
            && at < *end
        {
            return ((*start).max(at), *end);
        }
        let found = look();
        if known.len() >= MAX_KNOWN {
            known.clear();
            known.push((at, found));
        } else {
            known.insert(place, (at, found));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_not_looked_for_again() {
        let extents = Extents::default();
        assert_eq!(extents.find(10, || (20, 40)), (20, 40));
        let known = || panic!("it is known");
        assert_eq!(extents.find(10, known), (20, 40));
        assert_eq!(extents.find(15, known), (20, 40));
        assert_eq!(extents.find(30, known), (30, 40));
        assert_eq!(extents.find(40, || (50, 60)), (50, 60));
        assert_eq!(extents.find(5, || (20, 40)), (20, 40));
        assert_eq!(extents.find(45, known), (50, 60));
    }

    #[test]
    fn only_so_much_is_remembered() {
        let extents = Extents::default();
        for at in (0..3 * MAX_KNOWN as u64).map(|number| number * 10) {
            assert_eq!(extents.find(at, || (at, at + 5)), (at, at + 5));
        }
        assert!(extents.0.lock().len() <= MAX_KNOWN);
    }
}
