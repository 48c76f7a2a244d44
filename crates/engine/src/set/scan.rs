//! The walk over dirty memory at the source: only the ranges of holes and zero pages are sent, everything else is read.

use std::time::{Duration, Instant};

use whimbrel_protocol::dirty::PageBitmap;

use super::memory::{PAGE, Ram, RamError, RamRegion, is_zero};
use super::pagemap::Pagemap;

/// The maximum number of bytes of data in one stretch.
const PIECE: u64 = 1 << 20;
/// The maximum number of bytes of zeros in one stretch, which the destination clears in a single step.
const ZERO_PIECE: u64 = 64 << 20;

/// A walk over dirty memory, one stretch at a time.
///
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use whimbrel_engine::{Ram, RamError};
/// use whimbrel_engine::set::{Ledger, Pagemap, Scan, Stretch};
///
/// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
/// Ram::write(&memory, 0x1000, b"data")?;
/// // All of it is dirty at first.
/// let pagemap = Pagemap::new();
/// let mut scan = Scan::new(&memory, &pagemap, Ledger::new(memory.regions()).take());
/// let mut found = Vec::new();
/// while let Some(stretch) = scan.next()? {
///     found.push(match stretch {
///         Stretch::Data { address, data } => (address, data.len() as u64, "data"),
///         Stretch::Zero { address, length } => (address, length, "zero"),
///     });
/// }
/// assert_eq!(found, [(0, 0x1000, "zero"), (0x1000, 0x1000, "data"), (0x2000, 0x2000, "zero")]);
/// # Ok::<(), RamError>(())
/// ```
pub struct Scan<'a> {
    ram: &'a dyn Ram,
    pagemap: &'a Pagemap,
    dirty: Vec<(RamRegion, PageBitmap)>,
    /// The region in `dirty` and the next address in it.
    region: usize,
    at: u64,
    /// The end of the dirty run that contains `at`.
    run_end: u64,
    /// The start and end of the data at `at` or after it. Before it is a hole.
    data: (u64, u64),
    looks_for_holes: bool,
    /// Zeros that have not been returned yet, up to `at`.
    zero: u64,
    /// The bytes read, of which `unread.0` to `unread.1` have not been returned yet. It ends at `at`.
    buffer: Vec<u8>,
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
        let bytes = |pages: usize| pages as u64 * PAGE;
        let all: u64 = dirty.iter().map(|(region, _)| bytes(region.pages())).sum();
        let marked: u64 = dirty.iter().map(|(_, bitmap)| bytes(bitmap.count())).sum();
        let at = dirty.first().map_or(0, |(region, _)| region.start);
        Scan {
            ram,
            pagemap,
            dirty,
            region: 0,
            at,
            run_end: at,
            data: (at, at),
            // A written page is not a hole. Looking for the end of data takes time for all of the data, which pays off
            // only if much of the memory is marked.
            looks_for_holes: marked >= all / 4,
            zero: 0,
            buffer: Vec::new(),
            unread: (0, 0),
            scanning: Duration::ZERO,
        }
    }

    /// Returns the next stretch, by ascending address; `None` at the end.
    #[expect(clippy::should_implement_trait, reason = "the data is borrowed from the walk")]
    pub fn next(&mut self) -> Result<Option<Stretch<'_>>, RamError> {
        let started = Instant::now();
        Ok(match self.find()? {
            Found::Nothing => None,
            Found::Zero(address, length) => {
                self.scanning += started.elapsed();
                Some(Stretch::Zero { address, length })
            }
            Found::Data(address, from, to) => Some(Stretch::Data { address, data: &self.buffer[from..to] }),
        })
    }

    /// Returns the time spent on zeros, which does not depend on the link.
    pub fn scanning(&self) -> Duration {
        self.scanning
    }

    fn find(&mut self) -> Result<Found, RamError> {
        loop {
            if self.unread.0 < self.unread.1 {
                if let Some(found) = self.find_in_buffer() {
                    return Ok(found);
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
                } else {
                    self.read()?;
                }
            } else if let Some((first, end)) = self.next_run() {
                // Zeros are counted back from `at`.
                if first != self.at && self.zero > 0 {
                    return Ok(self.take_zero(self.at));
                }
                (self.at, self.run_end) = (first, end);
            } else if self.zero > 0 {
                return Ok(self.take_zero(self.at));
            } else if self.region + 1 < self.dirty.len() {
                self.region += 1;
                self.at = self.dirty[self.region].0.start;
                (self.run_end, self.data) = (self.at, (self.at, self.at));
            } else {
                return Ok(Found::Nothing);
            }
            if self.zero >= ZERO_PIECE && self.unread.0 >= self.unread.1 {
                return Ok(self.take_zero(self.at));
            }
        }
    }

    /// Returns the next run of marked pages in the region.
    fn next_run(&self) -> Option<(u64, u64)> {
        let (region, bitmap) = self.dirty.get(self.region)?;
        let first = (self.at - region.start).div_ceil(PAGE) as usize;
        let run = bitmap.runs_from(first).next()?;
        let start = region.start + run.first as u64 * PAGE;
        Some((start, start.saturating_add(run.count as u64 * PAGE).min(region.end())))
    }

    fn look_for_data(&mut self) {
        let region = self.dirty[self.region].0;
        // Up to the region's end, so that later runs need no lookup.
        let found = self.ram.next_data(self.at, region.end() - self.at, self.pagemap);
        let (start, end) = found.map_or((region.end(), region.end()), |data| (data.start, data.end()));
        // Pages that hold data in part are read completely.
        let start = (start - (start - region.start) % PAGE).max(self.at);
        let end = region.start + (end - region.start).next_multiple_of(PAGE);
        self.data = (start, end.max(self.at + 1));
    }

    fn read(&mut self) -> Result<(), RamError> {
        let mut end = self.run_end.min(self.at + PIECE.min(ZERO_PIECE - self.zero));
        if self.looks_for_holes {
            end = end.min(self.data.1);
        }
        let length = (end - self.at) as usize;
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        self.ram.read(self.at, &mut self.buffer[..length])?;
        self.unread = (0, length);
        self.at = end;
        Ok(())
    }

    /// Returns the next stretch of the bytes read; `None` for zeros that may continue.
    fn find_in_buffer(&mut self) -> Option<Found> {
        let (from, to) = self.unread;
        let address = self.at - (to - from) as u64;
        let mut pages = self.buffer[from..to].chunks(PAGE as usize);
        let zeros: usize = pages.by_ref().take_while(|page| is_zero(page)).map(<[u8]>::len).sum();
        if zeros > 0 {
            self.zero += zeros as u64;
            self.unread.0 += zeros;
            return None;
        }
        if self.zero > 0 {
            return Some(self.take_zero(address));
        }
        let data: usize = self.buffer[from..to]
            .chunks(PAGE as usize)
            .take_while(|page| !is_zero(page))
            .map(<[u8]>::len)
            .sum();
        self.unread.0 += data;
        Some(Found::Data(address, from, from + data))
    }

    fn take_zero(&mut self, end: u64) -> Found {
        let length = std::mem::take(&mut self.zero);
        Found::Zero(end - length, length)
    }
}

/// A stretch, with its data by position in the buffer.
enum Found {
    Nothing,
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
