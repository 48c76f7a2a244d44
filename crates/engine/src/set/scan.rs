//! The walk over dirty memory at the source: only the ranges of holes and zero pages are sent, everything else is read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_protocol::dirty::PageBitmap;

use super::memory::{PAGE, Ram, RamError, RamRegion, is_zero};
use super::pagemap::Pagemap;
use super::walk::Extents;
use crate::proto::lanes::Share;

/// The maximum number of bytes of data in one stretch.
const PIECE: u64 = 1 << 20;
/// The maximum number of bytes of zeros in one stretch, which the destination clears in a single step.
const ZERO_PIECE: u64 = 64 << 20;
/// The number of stretches that fills a batch, beside those of the bytes already read.
const MAX_STRETCHES: usize = 64;

/// A walk over dirty memory, one batch of stretches at a time.
///
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use whimbrel_engine::{Ram, RamError};
/// use whimbrel_engine::set::{Batch, Ledger, Pagemap, Scan, Stretch};
///
/// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
/// Ram::write(&memory, 0x1000, b"data")?;
/// // All of it is dirty at first.
/// let pagemap = Pagemap::new();
/// let mut scan = Scan::new(&memory, &pagemap, Ledger::new(memory.regions()).take());
/// let mut batch = Batch::default();
/// let mut found = Vec::new();
/// while scan.fill(&mut batch)? {
///     found.extend(batch.stretches().map(|stretch| match stretch {
///         Stretch::Data { address, data } => (address, data.len() as u64, "data"),
///         Stretch::Zero { address, length } => (address, length, "zero"),
///     }));
/// }
/// assert_eq!(found, [(0, 0x1000, "zero"), (0x1000, 0x1000, "data"), (0x2000, 0x2000, "zero")]);
/// # Ok::<(), RamError>(())
/// ```
pub struct Scan<'a> {
    ram: &'a dyn Ram,
    pagemap: &'a Pagemap,
    dirty: Arc<Vec<(RamRegion, PageBitmap)>>,
    /// The part of the memory that is walked over.
    share: Share,
    /// The data that other scans of the same walk have found.
    extents: Option<&'a Extents>,
    /// The region in `dirty` and the next address in it.
    region: usize,
    at: u64,
    /// The end of the dirty run that contains `at`.
    run_end: u64,
    /// The start and end of the data at `at` or after it. Before it is a hole.
    data: (u64, u64),
    looks_for_holes: bool,
    bytes: u64,
    /// Zeros that have not been returned yet, up to `at`.
    zero: u64,
    /// The bytes of the batch's buffer that have not been looked at yet. They end at `at`.
    unread: (usize, usize),
    scanning: Duration,
}

/// A part of dirty memory.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "memory is zero or it is not")]
pub enum Stretch<'a> {
    /// Whole pages of zeros, at most 64 MiB. They are not read if they are a hole.
    Zero {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// Anything else, at most 1 MiB.
    Data {
        /// Guest physical address.
        address: u64,
        /// The bytes, as they were when read.
        data: &'a [u8],
    },
}

impl<'a> Scan<'a> {
    /// Begins a walk over the marked pages of each region. Walks over the same memory share a pagemap.
    pub fn new(ram: &'a dyn Ram, pagemap: &'a Pagemap, dirty: Vec<(RamRegion, PageBitmap)>) -> Scan<'a> {
        Scan::of_share(ram, pagemap, Arc::new(dirty), Share::ALL, None)
    }

    /// Begins a walk over a share of the marked pages.
    pub(super) fn of_share(
        ram: &'a dyn Ram,
        pagemap: &'a Pagemap,
        dirty: Arc<Vec<(RamRegion, PageBitmap)>>,
        share: Share,
        extents: Option<&'a Extents>,
    ) -> Scan<'a> {
        let bytes = |pages: usize| pages as u64 * PAGE;
        let all: u64 = dirty.iter().map(|(region, _)| bytes(region.pages())).sum();
        let marked: u64 = dirty.iter().map(|(_, bitmap)| bytes(bitmap.count())).sum();
        let at = dirty.first().map_or(0, |(region, _)| region.start);
        Scan {
            ram,
            pagemap,
            dirty,
            share,
            extents,
            region: 0,
            at,
            run_end: at,
            data: (at, at),
            // A written page is not a hole. Looking for the end of data takes time for all of the data, which pays off
            // only if much of the memory is marked.
            looks_for_holes: marked >= all / 4,
            bytes: marked,
            zero: 0,
            unread: (0, 0),
            scanning: Duration::ZERO,
        }
    }

    /// Returns the number of bytes marked, including holes and those of other shares.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Replaces the batch by the next stretches, by ascending address. Returns whether there are any.
    pub fn fill(&mut self, batch: &mut Batch) -> Result<bool, RamError> {
        batch.found.clear();
        let mut started = Instant::now();
        while batch.found.len() < MAX_STRETCHES || self.unread.0 < self.unread.1 {
            match self.find(batch)? {
                Some(found @ Found::Zero(..)) => {
                    self.scanning += started.elapsed();
                    batch.found.push(found);
                }
                Some(found @ Found::Data(..)) => batch.found.push(found),
                None => break,
            }
            started = Instant::now();
        }
        Ok(!batch.found.is_empty())
    }

    /// Returns the time spent on zeros, which does not depend on the link.
    pub fn scanning(&self) -> Duration {
        self.scanning
    }

    /// Returns the next stretch; `None` at the end, or if it is to be read while the buffer holds data of the batch.
    fn find(&mut self, batch: &mut Batch) -> Result<Option<Found>, RamError> {
        loop {
            if self.unread.0 < self.unread.1 {
                if let Some(found) = self.find_in_buffer(&batch.buffer) {
                    return Ok(Some(found));
                }
            } else if self.at < self.run_end {
                if self.looks_for_holes && self.at >= self.data.1 {
                    self.look_for_data();
                }
                if self.looks_for_holes && self.at < self.data.0 {
                    let hole = self.data.0.min(self.run_end) - self.at;
                    let hole = hole.min(ZERO_PIECE - self.zero);
                    self.zero += hole;
                    self.at += hole;
                } else if batch.has_data() {
                    return Ok(None);
                } else {
                    self.read(&mut batch.buffer)?;
                }
            } else if let Some((first, end)) = self.next_run() {
                // Zeros are counted back from `at`.
                if first != self.at && self.zero > 0 {
                    return Ok(Some(self.take_zero(self.at)));
                }
                (self.at, self.run_end) = (first, end);
            } else if self.zero > 0 {
                return Ok(Some(self.take_zero(self.at)));
            } else if self.region + 1 < self.dirty.len() {
                self.region += 1;
                self.at = self.dirty[self.region].0.start;
                (self.run_end, self.data) = (self.at, (self.at, self.at));
            } else {
                return Ok(None);
            }
            if self.zero >= ZERO_PIECE && self.unread.0 >= self.unread.1 {
                return Ok(Some(self.take_zero(self.at)));
            }
        }
    }

    /// Returns the next run of marked pages in the region.
    fn next_run(&self) -> Option<(u64, u64)> {
        let (region, bitmap) = self.dirty.get(self.region)?;
        let mut at = self.share.from(self.at);
        while at < region.end() {
            let first = (at - region.start).div_ceil(PAGE) as usize;
            let run = bitmap.runs_from(first).next()?;
            let start = region.start + run.first as u64 * PAGE;
            at = self.share.from(start);
            if at == start {
                let end = start.saturating_add(run.count as u64 * PAGE);
                return Some((start, end.min(region.end()).min(self.share.until(start))));
            }
        }
        None
    }

    fn look_for_data(&mut self) {
        let region = self.dirty[self.region].0;
        // Up to the region's end, so that later runs need no lookup: the kernel walks to the end of the data anyway.
        let look = || {
            let found = self.ram.next_data(self.at, region.end() - self.at, self.pagemap);
            found.map_or((region.end(), region.end()), |data| (data.start, data.end()))
        };
        let (start, end) = self.extents.map_or_else(look, |extents| extents.find(self.at, look));
        // Pages that hold data in part are read completely.
        let start = (start - (start - region.start) % PAGE).max(self.at);
        let end = region.start + (end - region.start).next_multiple_of(PAGE);
        self.data = (start, end.max(self.at + 1));
    }

    fn read(&mut self, buffer: &mut Vec<u8>) -> Result<(), RamError> {
        let mut end = self.run_end.min(self.at + PIECE.min(ZERO_PIECE - self.zero));
        if self.looks_for_holes {
            end = end.min(self.data.1);
        }
        let length = (end - self.at) as usize;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        self.ram.read(self.at, &mut buffer[..length])?;
        self.unread = (0, length);
        self.at = end;
        Ok(())
    }

    /// Returns the next stretch of the bytes read; `None` for zeros that may continue.
    fn find_in_buffer(&mut self, buffer: &[u8]) -> Option<Found> {
        let (from, to) = self.unread;
        let address = self.at - (to - from) as u64;
        let mut pages = buffer[from..to].chunks(PAGE as usize);
        let zeros: usize = pages.by_ref().take_while(|page| is_zero(page)).map(<[u8]>::len).sum();
        if zeros > 0 {
            self.zero += zeros as u64;
            self.unread.0 += zeros;
            return None;
        }
        if self.zero > 0 {
            return Some(self.take_zero(address));
        }
        let data: usize =
            buffer[from..to].chunks(PAGE as usize).take_while(|page| !is_zero(page)).map(<[u8]>::len).sum();
        self.unread.0 += data;
        Some(Found::Data(address, from, from + data))
    }

    fn take_zero(&mut self, end: u64) -> Found {
        let length = std::mem::take(&mut self.zero);
        Found::Zero(end - length, length)
    }
}

/// Stretches of dirty memory, and a buffer for the bytes of those that are not zero. It is reused from one
/// [`Scan::fill`] to the next, and may be handed to another thread.
#[derive(Default)]
pub struct Batch {
    /// The bytes read. It never shrinks.
    buffer: Vec<u8>,
    found: Vec<Found>,
}

impl Batch {
    /// Returns the stretches, by ascending address.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch<'_>> {
        self.found.iter().map(|found| match *found {
            Found::Zero(address, length) => Stretch::Zero { address, length },
            Found::Data(address, from, to) => Stretch::Data { address, data: &self.buffer[from..to] },
        })
    }

    /// Returns whether the buffer holds bytes of a stretch.
    fn has_data(&self) -> bool {
        self.found.iter().any(|found| matches!(found, Found::Data(..)))
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("stretches", &self.found.len()).finish_non_exhaustive()
    }
}

/// A stretch, with its data by position in the buffer.
#[derive(Clone, Copy)]
enum Found {
    Zero(u64, u64),
    Data(u64, usize, usize),
}

impl std::fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("at", &format_args!("{:#x}", self.at)).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
