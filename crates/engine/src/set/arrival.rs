//! Memory that arrives at the destination and is put into its place.

use whimbrel_protocol::dirty::{PageBitmap, Run};

use super::memory::{PAGE, Ram, RamError, RamRegion, Receive};
use super::pagemap::Pagemap;
use super::populate::Population;
use crate::proto::lanes::{STRIPE, Share};

/// The maximum number of bytes populated ahead of the data.
const WINDOW: u64 = 16 << 20;
/// The bound of the bytes populated ahead: this part of the contiguous data received so far, so that holes stay holes.
const AHEAD: u64 = 8;
/// The minimum of a request: less is not worth another thread.
const MIN_REQUEST: u64 = 64 << 10;
/// The maximum number of stretches of data found at first in each region. A region with more counts as data from there
/// on.
const MAX_STRETCHES: usize = 1 << 16;

/// The destination's memory while it arrives. It tracks the pages that may hold non-zero data, so that clearing zero
/// pages again is nearly free, however often the peer requests it.
///
/// No other thread or device may write the memory as long as this exists, except other lanes their own share of it.
///
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use whimbrel_engine::Ram;
/// use whimbrel_engine::set::Arrival;
///
/// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
/// let mut arrival = Arrival::new(&memory);
/// let mut socket: &[u8] = &[7; 0x1000];
/// arrival.receive(0x1000, 0x1000, &mut |place| {
///     let (now, later) = socket.split_at(place.len());
///     place.copy_from_slice(now);
///     socket = later;
///     std::ops::ControlFlow::Continue(())
/// })?;
/// arrival.clear(0, 0x4000)?;
/// let mut page = [1; 0x1000];
/// Ram::read(&memory, 0x1000, &mut page)?;
/// assert_eq!(page, [0; 0x1000]);
/// # Ok::<(), whimbrel_engine::RamError>(())
/// ```
pub struct Arrival<'a> {
    ram: &'a dyn Ram,
    pagemap: Pagemap,
    regions: Vec<Region>,
    /// The part of the memory that arrives here.
    share: Share,
    population: Option<&'a Population>,
    /// The last contiguous data that arrived, apart from what is of other shares: its size, and the address that follows.
    piece: (u64, u64),
    /// The end of the memory populated ahead of `piece`.
    requested: u64,
}

/// A region, and the known contents of its pages.
struct Region {
    range: RamRegion,
    /// Pages that may hold anything but zeros, once its holes are known.
    may_hold: PageBitmap,
    /// Set once its holes have been looked for.
    is_known: bool,
    /// Pages that have been written since the start, which need not be populated.
    written: PageBitmap,
}

impl<'a> Arrival<'a> {
    /// Returns the memory as it is before any data has arrived.
    pub fn new(ram: &'a dyn Ram) -> Arrival<'a> {
        let regions = ram.regions().into_iter().map(Region::new).collect();
        Arrival {
            ram,
            pagemap: Pagemap::new(),
            regions,
            share: Share::ALL,
            population: None,
            piece: (0, 0),
            requested: 0,
        }
    }

    /// Sets the share of the memory that arrives here: that of a lane. All of it by default.
    pub fn set_share(&mut self, share: Share) {
        self.share = share;
    }

    /// Makes another thread populate memory ahead of the data ([`Population::run`]). The thread ends when this is
    /// dropped.
    #[must_use]
    pub fn populated_by(mut self, population: &'a Population) -> Self {
        self.population = Some(population);
        self
    }

    /// Fills memory in place with `receive`, piece by piece in ascending order.
    pub fn receive(&mut self, address: u64, length: u64, receive: &mut Receive<'_>) -> Result<(), RamError> {
        self.mark(address, length)?;
        self.ram.receive_into(address, length, receive)
    }

    /// Copies memory in.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), RamError> {
        self.mark(address, data.len() as u64)?;
        self.ram.write(address, data)
    }

    /// Sets memory to zero. Memory that is already zero is left untouched.
    pub fn clear(&mut self, address: u64, length: u64) -> Result<(), RamError> {
        let (ram, pagemap) = (self.ram, &self.pagemap);
        each(&mut self.regions, address, length, |region, part| {
            region.look(ram, pagemap);
            region.clear(ram, part)
        })
    }

    /// Notes that data arrives.
    fn mark(&mut self, address: u64, length: u64) -> Result<(), RamError> {
        if self.population.is_some() {
            self.populate_ahead(address, length);
        }
        each(&mut self.regions, address, length, |region, part| {
            region.may_hold.set_run(region.pages_of(part));
            region.written.set_run(region.pages_of(part));
            Ok(())
        })
    }

    fn populate_ahead(&mut self, address: u64, length: u64) {
        let Some(population) = self.population else { return };
        let Some(region) = self.regions.iter().find(|region| {
            region.range.start <= address && address.saturating_add(length) <= region.range.end()
        }) else {
            return;
        };
        let end = address + length;
        if address != self.piece.1 || address == region.range.start {
            self.piece.0 = 0;
            self.requested = address;
        }
        self.piece = (self.piece.0 + length, self.share.from(end));
        let window = if self.share == Share::ALL { WINDOW } else { STRIPE };
        let ahead = (self.piece.0 / AHEAD).min(window);
        // This thread populates the near memory itself, because another thread needs a moment to wake up.
        let mut start = address + (length / 4).next_multiple_of(PAGE);
        let mut until = end.saturating_add(ahead).min(self.share.until(address));
        if end == self.share.until(address) && self.requested >= end && self.piece.1 < region.range.end() {
            // The beginning of the next stripe.
            start = self.piece.1;
            until = start.saturating_add(ahead).min(self.share.until(start));
        }
        let wanted = region.unwritten_until(start, until.min(region.range.end()));
        // No request for every frame if there is enough for the next one.
        if wanted.saturating_sub(self.requested.max(start)) >= MIN_REQUEST.max(ahead / 4) {
            population.request(start.max(address), wanted);
            self.requested = wanted;
        }
    }
}

/// Calls `act` for the part of each region that lies in `length` bytes from `address` on, all of which must be memory.
fn each(
    regions: &mut [Region],
    address: u64,
    length: u64,
    mut act: impl FnMut(&mut Region, RamRegion) -> Result<(), RamError>,
) -> Result<(), RamError> {
    let wanted = RamRegion { start: address, size: length };
    let parts = |region: &Region| region.range.intersection(wanted);
    let covered: u64 = regions.iter().filter_map(parts).map(|part| part.size).sum();
    if covered != length || address.checked_add(length).is_none() {
        return Err(RamError { address, length });
    }
    for region in regions {
        if let Some(part) = region.range.intersection(wanted) {
            act(region, part)?;
        }
    }
    Ok(())
}

impl Region {
    fn new(range: RamRegion) -> Region {
        Region {
            range,
            may_hold: PageBitmap::new(range.pages()),
            is_known: false,
            written: PageBitmap::new(range.pages()),
        }
    }

    /// Looks for the holes, once. The kernel walks all of the memory for it, which memory without zeros does not need.
    fn look(&mut self, ram: &dyn Ram, pagemap: &Pagemap) {
        if std::mem::replace(&mut self.is_known, true) {
            return;
        }
        let region = self.range;
        let mut at = region.start;
        for _ in 0..MAX_STRETCHES {
            let data =
                ram.next_data(at, region.end() - at, pagemap).and_then(|data| data.intersection(region));
            let Some(data) = data.filter(|data| data.end() > at) else { return };
            self.may_hold.set_run(self.pages_of(data));
            at = data.end();
            if at >= region.end() {
                return;
            }
        }
        self.may_hold.set_run(self.pages_of(RamRegion { start: at, size: region.end() - at }));
    }

    /// Returns the pages that lie wholly or partly in a part of the region.
    fn pages_of(&self, part: RamRegion) -> Run {
        let first = (part.start - self.range.start) / PAGE;
        let end = (part.end() - self.range.start).div_ceil(PAGE);
        Run { first: first as usize, count: (end - first) as usize }
    }

    fn clear(&mut self, ram: &dyn Ram, part: RamRegion) -> Result<(), RamError> {
        let pages = self.pages_of(part);
        let end = pages.first + pages.count;
        let mut at = pages.first;
        while let Some(run) = self.may_hold.runs_from(at).next().filter(|run| run.first < end) {
            let run = Run { count: run.count.min(end - run.first), ..run };
            let bytes = RamRegion {
                start: self.range.start + run.first as u64 * PAGE,
                size: run.count as u64 * PAGE,
            };
            if let Some(bytes) = bytes.intersection(part) {
                ram.clear(bytes.start, bytes.size)?;
                // A page that is cleared in part may hold data in the rest.
                let whole_from = (bytes.start - self.range.start).div_ceil(PAGE) as usize;
                let whole_to = if bytes.end() == self.range.end() {
                    self.range.pages()
                } else {
                    ((bytes.end() - self.range.start) / PAGE) as usize
                };
                let count = whole_to.saturating_sub(whole_from);
                self.may_hold.clear_run(Run { first: whole_from, count });
            }
            at = run.first + run.count;
        }
        Ok(())
    }

    /// Returns the start of the first page from `start` on that was written already, or `end`.
    fn unwritten_until(&self, start: u64, end: u64) -> u64 {
        let first = ((start.max(self.range.start) - self.range.start) / PAGE) as usize;
        let written = self.written.runs_from(first).next();
        written.map_or(end, |run| end.min((self.range.start + run.first as u64 * PAGE).max(start)))
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        if let Some(population) = self.population {
            population.close();
        }
    }
}

impl std::fmt::Debug for Arrival<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival").field("regions", &self.regions.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "arrival_tests.rs"]
mod tests;
