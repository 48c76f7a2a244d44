//! The pages that still have to be sent, from any source: plain data.

use parking_lot::Mutex;
use whimbrel_protocol::dirty::PageBitmap;

use super::dirtiest::dirtiest;
use super::memory::{PAGE, RamRegion};

/// The dirty pages of each region of memory.
///
/// The threads of the devices and the one that sends the memory share it as a [`SharedLedger`].
///
/// ```
/// use whimbrel_engine::RamRegion;
/// use whimbrel_engine::set::Ledger;
///
/// let mut ledger = Ledger::new(vec![RamRegion::new(0x10000, 0x4000)]);
/// assert_eq!(ledger.bytes_left(), 0x4000, "all of it at first");
/// ledger.take();
/// ledger.merge_report(0, 0, &[0b1010]);
/// assert_eq!(ledger.bytes_left(), 0x2000);
/// // From now on anything may be written at any time.
/// ledger.set_unlogged();
/// assert_eq!(ledger.bytes_left(), 0x4000);
/// ```
#[derive(Clone, Debug)]
pub struct Ledger {
    regions: Vec<RamRegion>,
    bitmaps: Vec<PageBitmap>,
    /// The pages that were taken since the last round that arrived, if that is kept.
    unconfirmed: Option<Vec<PageBitmap>>,
    unlogged: bool,
    /// Set if the logs of address spaces have been running since the start.
    has_space_logs: bool,
    space_users: usize,
}

/// The error that the memory's regions have changed during a migration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}, which a migration cannot follow: add or remove memory before or after it")]
#[non_exhaustive]
pub struct LayoutChanged(String);

impl Ledger {
    /// Returns the ledger of these regions, with every page marked.
    pub fn new(regions: Vec<RamRegion>) -> Ledger {
        let bitmaps = regions.iter().map(|region| PageBitmap::new(region.pages())).collect();
        let mut ledger = Ledger {
            regions,
            bitmaps,
            unconfirmed: None,
            unlogged: false,
            has_space_logs: false,
            space_users: 0,
        };
        ledger.mark_all();
        ledger
    }

    /// Returns the regions, by ascending address.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Compares the regions with the memory's current ones.
    pub fn check_layout(&self, now: &[RamRegion]) -> Result<(), LayoutChanged> {
        if let Some(region) = now.iter().find(|region| !self.regions.contains(region)) {
            let (start, size) = (region.start, region.size);
            return Err(LayoutChanged(format!("memory was added: {size} bytes at guest address {start:#x}")));
        }
        if let Some(region) = self.regions.iter().find(|region| !now.contains(region)) {
            let (start, size) = (region.start, region.size);
            return Err(LayoutChanged(format!(
                "memory was removed: {size} bytes at guest address {start:#x}"
            )));
        }
        Ok(())
    }

    /// Marks every page.
    pub fn mark_all(&mut self) {
        self.bitmaps.iter_mut().for_each(PageBitmap::set_all);
    }

    /// Marks the pages of a region whose bit is set in `words`. The first bit is that of page `first`, a multiple of
    /// 64.
    pub fn merge_report(&mut self, region: usize, first: usize, words: &[u64]) {
        if let Some(bitmap) = self.bitmaps.get_mut(region) {
            bitmap.merge_at(first, words);
        }
    }

    /// Returns a bitmap for each region, in order, to mark more pages.
    pub fn bitmaps_mut(&mut self) -> &mut [PageBitmap] {
        &mut self.bitmaps
    }

    /// Notes that some writes are not logged: until everything has stopped, any page may be dirty.
    pub fn set_unlogged(&mut self) {
        self.unlogged = true;
    }

    /// Returns whether some writes are not logged.
    pub fn is_unlogged(&self) -> bool {
        self.unlogged
    }

    /// Returns the bytes that would have to be sent if everything stopped now.
    pub fn bytes_left(&self) -> u64 {
        let regions = self.regions.iter().zip(&self.bitmaps);
        if self.unlogged {
            return regions.map(|(region, _)| region.size).sum();
        }
        regions.map(|(region, bitmap)| (bitmap.count() as u64 * PAGE).min(region.size)).sum()
    }

    /// Returns the part of the memory with most marked pages, at most 64 MiB, and the size of these in bytes. `None` without
    /// marks, or if some writes are not logged.
    pub fn dirtiest(&self) -> Option<(RamRegion, u64)> {
        if self.unlogged { None } else { dirtiest(&self.regions, &self.bitmaps) }
    }

    /// Returns the marked pages of each region, and clears the marks.
    pub fn take(&mut self) -> Vec<(RamRegion, PageBitmap)> {
        let taken = self.bitmaps.iter_mut().map(|bitmap| {
            let pages = bitmap.pages();
            std::mem::replace(bitmap, PageBitmap::new(pages))
        });
        let taken: Vec<(RamRegion, PageBitmap)> = self.regions.iter().copied().zip(taken).collect();
        if let Some(unconfirmed) = &mut self.unconfirmed {
            merge(unconfirmed, taken.iter().map(|(_, bitmap)| bitmap));
        }
        taken
    }

    /// Keeps which pages are taken, until their round has arrived.
    pub fn keep_rounds(&mut self) {
        self.unconfirmed = Some(self.regions.iter().map(|region| PageBitmap::new(region.pages())).collect());
    }

    /// Notes that all pages taken so far have arrived.
    pub fn round_arrived(&mut self) {
        self.unconfirmed.iter_mut().flatten().for_each(PageBitmap::clear);
    }

    /// Marks the pages again that were taken since the last round that arrived.
    pub fn round_lost(&mut self) {
        if let Some(unconfirmed) = &self.unconfirmed {
            merge(&mut self.bitmaps, unconfirmed.iter());
        }
        self.round_arrived();
    }

    /// Clears the marks, which mean nothing once some writes are not logged: all memory is resent after the stop. A round
    /// would send in vain.
    pub(super) fn discard(&mut self) {
        debug_assert!(self.unlogged, "marks of logged writes are needed");
        if self.unlogged {
            self.bitmaps.iter_mut().for_each(PageBitmap::clear);
        }
    }

    pub(super) fn set_space_logs(&mut self, run: bool) {
        self.has_space_logs = run;
    }

    /// Returns whether the logs of the address spaces run.
    pub(super) fn has_space_logs(&self) -> bool {
        self.has_space_logs
    }

    /// Notes that a device depends on the logs of the address spaces. Returns whether they have been running since the
    /// start.
    pub(super) fn use_space_logs(&mut self) -> bool {
        self.space_users += 1;
        self.has_space_logs
    }

    /// Returns whether a device depends on the logs of the address spaces.
    pub(super) fn needs_space_logs(&self) -> bool {
        self.space_users > 0
    }
}

/// Marks the pages that are marked in other bitmaps of the same regions.
fn merge<'a>(bitmaps: &mut [PageBitmap], others: impl Iterator<Item = &'a PageBitmap>) {
    for (bitmap, other) in bitmaps.iter_mut().zip(others) {
        other.runs().for_each(|run| bitmap.set_run(run));
    }
}

/// A ledger that several threads share.
pub type SharedLedger = Mutex<Ledger>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_marked_no_more() {
        let regions = vec![RamRegion::new(0, 0x3000), RamRegion::new(0x10000, 0x1800)];
        let mut ledger = Ledger::new(regions.clone());
        assert_eq!(ledger.bytes_left(), 0x3000 + 0x1800, "the last page counts in part");
        let taken = ledger.take();
        assert_eq!(taken.iter().map(|(_, bitmap)| bitmap.count()).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(taken.iter().map(|(region, _)| *region).collect::<Vec<_>>(), regions);
        assert_eq!(ledger.bytes_left(), 0);
    }

    #[test]
    fn pages_of_a_lost_round_are_marked_again_and_those_that_arrived_are_not() {
        let mut ledger = Ledger::new(vec![RamRegion::new(0, 0x3000), RamRegion::new(0x10000, 0x2000)]);
        ledger.keep_rounds();
        ledger.take();
        ledger.round_arrived();
        ledger.round_lost();
        assert_eq!(ledger.bytes_left(), 0, "the first round arrived");
        ledger.merge_report(0, 0, &[0b011]);
        ledger.take();
        ledger.merge_report(0, 0, &[0b001]);
        ledger.merge_report(1, 0, &[0b10]);
        ledger.take();
        ledger.merge_report(0, 0, &[0b100]);
        ledger.round_lost();
        assert_eq!(
            ledger.bytes_left(),
            4 * PAGE,
            "two of both takes, one of the second, and one that was not taken"
        );
        ledger.take();
        ledger.round_lost();
        assert_eq!(ledger.bytes_left(), 4 * PAGE, "lost twice in a row");
    }

    #[test]
    fn reports_of_several_logs_add_up() {
        let mut ledger = Ledger::new(vec![RamRegion::new(0, 200 * PAGE)]);
        ledger.take();
        ledger.merge_report(0, 64, &[0b11]);
        ledger.merge_report(0, 64, &[0b110]);
        ledger.merge_report(7, 0, &[1]);
        assert_eq!(ledger.bytes_left(), 3 * PAGE);
    }

    #[test]
    fn memory_that_comes_or_goes_is_named() {
        let region = RamRegion::new;
        let ledger = Ledger::new(vec![region(0, 0x1000), region(0x8000, 0x1000)]);
        assert_eq!(ledger.check_layout(&[region(0, 0x1000), region(0x8000, 0x1000)]), Ok(()));
        let told = |now: &[RamRegion]| ledger.check_layout(now).unwrap_err().to_string();
        assert!(
            told(&[region(0, 0x1000)]).starts_with("memory was removed: 4096 bytes at guest address 0x8000")
        );
        let more = [region(0, 0x1000), region(0x8000, 0x1000), region(0x20000, 0x2000)];
        assert!(told(&more).starts_with("memory was added: 8192 bytes at guest address 0x20000"));
        assert!(ledger.check_layout(&[region(0, 0x2000), region(0x8000, 0x1000)]).is_err(), "resized");
    }
}
