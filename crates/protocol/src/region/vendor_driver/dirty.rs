//! The draft's query of dirty pages: `start_pfn`, `page_size`, `total_pfns`, and the answers of
//! `copied_pfns`.

use whimbrel_uapi::region_draft::{VFIO_DEVICE_DIRTY_PFNS_ALL, VFIO_DEVICE_DIRTY_PFNS_NONE};

use super::super::layout::Field;
use super::super::{Backend, SectionMemory};
use crate::Errno;
use crate::dirty::{DirtyReport, PageBitmap, Run};

/// Maximum look-ahead, in bitmaps, to answer NONE or ALL for the rest of a range. Beyond it the answer is a
/// bitmap, which is correct as well.
const LOOK_AHEAD: u32 = 1 << 14;

/// A query of dirty pages. A device's log forgets the pages it has reported, so pages that did not reach the
/// user are kept in `owed`.
#[derive(Debug)]
pub(super) struct DirtyQuery {
    start_pfn: Option<u64>,
    page_size: Option<u64>,
    total_pfns: Option<u64>,
    /// Number of pages of the range that have been answered.
    done: u64,
    answer: Option<Answer>,
    owed: Owed,
    mixed: Option<Mixed>,
    words: Vec<u64>,
    ahead: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// NONE or ALL.
    Rest(u64),
    /// A bitmap for this number of pages.
    Bitmap {
        pages: u64,
        /// The user has read its offset.
        taken: bool,
        /// The next `data_offset` is that of the bitmap.
        current: bool,
    },
}

/// A result of the look-ahead: the rest of the range holds both clean and dirty pages. A query that continues
/// where the last answer ended need not look again, whether or not the user rewrites the three fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mixed {
    /// Start of the next answer, in bytes.
    next: u64,
    page_size: u64,
    /// End of the range, in bytes.
    end: u64,
    /// End of the uniform part, in bytes.
    until: u64,
}

/// The range of a query, checked.
#[derive(Clone, Copy)]
struct Range {
    /// Byte address of the first page asked about.
    iova: u64,
    page_size: u64,
    total: u64,
}

impl DirtyQuery {
    pub(super) fn new(bitmap_bytes: usize) -> DirtyQuery {
        DirtyQuery {
            start_pfn: None,
            page_size: None,
            total_pfns: None,
            done: 0,
            answer: None,
            owed: Owed::default(),
            mixed: None,
            words: vec![0; bitmap_bytes / 8],
            ahead: Vec::new(),
        }
    }

    /// Clears the query: saving has ended or the device was reset, and the log with it.
    pub(super) fn clear(&mut self) {
        *self = DirtyQuery::new(self.words.len() * 8);
    }

    /// Takes a write of one of the three fields: a new query.
    pub(super) fn ask(&mut self, field: Field, value: u64) {
        self.keep_untaken();
        match field {
            Field::StartPfn => self.start_pfn = Some(value),
            Field::PageSize => self.page_size = Some(value),
            _ => self.total_pfns = Some(value),
        }
        self.done = 0;
    }

    /// Takes in that the user turns to the device's data.
    pub(super) fn leave_bitmap(&mut self) {
        if let Some(Answer::Bitmap { current, .. }) = &mut self.answer {
            *current = false;
        }
    }

    /// Returns whether `data_offset` is that of the bitmap, which the user then knows.
    pub(super) fn show_bitmap(&mut self) -> bool {
        match &mut self.answer {
            Some(Answer::Bitmap { current, taken, .. }) if *current => {
                *taken = true;
                true
            }
            _ => false,
        }
    }

    /// Returns the number of bitmap bytes that can be read.
    pub(super) fn bitmap_bytes(&self) -> u64 {
        match self.answer {
            Some(Answer::Bitmap { pages, current: true, .. }) => pages.div_ceil(64) * 8,
            _ => 0,
        }
    }

    /// Answers a read of `copied_pfns`. A repeated read before the bitmap is read gets the same answer.
    pub(super) fn copied_pfns(
        &mut self,
        device: &mut dyn Backend,
        offset: u64,
        memory: &mut impl SectionMemory,
    ) -> Result<u64, Errno> {
        let range = self.range()?;
        match &mut self.answer {
            Some(Answer::Rest(answer)) => return Ok(*answer),
            Some(Answer::Bitmap { pages, taken: false, current }) => {
                *current = true;
                return Ok(*pages);
            }
            Some(Answer::Bitmap { pages, taken: true, .. }) => {
                self.done += *pages;
                self.answer = None;
            }
            None => {}
        }
        if self.done == range.total {
            return Ok(self.rest(VFIO_DEVICE_DIRTY_PFNS_NONE));
        }
        if self.words.is_empty() {
            return Ok(self.rest(VFIO_DEVICE_DIRTY_PFNS_ALL));
        }
        let mut words = std::mem::take(&mut self.words);
        let told = self.tell(device, range, &mut words);
        self.words = words;
        match told? {
            Told::Rest(answer) => Ok(self.rest(answer)),
            Told::Bitmap(pages) => {
                let used = (pages.div_ceil(64) as usize).min(self.words.len());
                // Keeps the pages first: the log has reported them even if they cannot be shown.
                self.answer = Some(Answer::Bitmap { pages, taken: false, current: false });
                for (index, word) in self.words[..used].iter().enumerate() {
                    memory.write(offset + index as u64 * 8, &word.to_le_bytes())?;
                }
                self.answer = Some(Answer::Bitmap { pages, taken: false, current: true });
                Ok(pages)
            }
        }
    }

    fn rest(&mut self, answer: u64) -> u64 {
        self.answer = Some(Answer::Rest(answer));
        answer
    }

    /// Checks the query: EINVAL unless all three fields were written, or for a page size the log cannot use;
    /// EOVERFLOW for pages past the end of the address space.
    fn range(&self) -> Result<Range, Errno> {
        let fields = (self.start_pfn, self.page_size, self.total_pfns);
        let (Some(start), Some(page_size), Some(total)) = fields else { return Err(Errno::EINVAL) };
        let bytes = |pages: u64| pages.checked_mul(page_size).ok_or(Errno::EOVERFLOW);
        let iova = bytes(start)?;
        DirtyReport::check(iova, bytes(total)?, page_size)?;
        Ok(Range { iova, page_size, total })
    }

    /// Returns the next bitmap, or the answer for all of the rest.
    fn tell(&mut self, device: &mut dyn Backend, range: Range, words: &mut [u64]) -> Result<Told, Errno> {
        let pages = (words.len() as u64 * 64).min(range.total - self.done);
        let next = range.address(self.done + pages);
        let end = range.address(range.total);
        let hint = self.mixed.take().filter(|mixed| {
            (mixed.next, mixed.page_size, mixed.end) == (range.address(self.done), range.page_size, end)
        });
        let kind = self.report(device, range, self.done, pages, words)?;
        let known = hint.map_or(0, |mixed| mixed.until);
        let mut until = known;
        if let Some(dirty) = kind
            && next > known
        {
            let mut ahead = std::mem::take(&mut self.ahead);
            ahead.resize(words.len(), 0);
            let reached = self.look_ahead(device, range, self.done + pages, dirty, &mut ahead);
            self.ahead = ahead;
            match reached {
                Ok(page) if page == range.total => {
                    self.owed.remove(next, end);
                    let all = if dirty { VFIO_DEVICE_DIRTY_PFNS_ALL } else { VFIO_DEVICE_DIRTY_PFNS_NONE };
                    return Ok(Told::Rest(all));
                }
                Ok(page) => until = range.address(page),
                Err(errno) => {
                    // The log has reported the first pages, and the user has not seen them.
                    self.owe(range, self.done, pages, words);
                    return Err(errno);
                }
            }
        }
        self.mixed = Some(Mixed { next, page_size: range.page_size, end, until });
        Ok(Told::Bitmap(pages))
    }

    /// Goes on from page `at` while all pages are `dirty`, or all are not, and returns the end of that run.
    fn look_ahead(
        &mut self,
        device: &mut dyn Backend,
        range: Range,
        mut at: u64,
        dirty: bool,
        words: &mut [u64],
    ) -> Result<u64, Errno> {
        for _ in 0..LOOK_AHEAD {
            let pages = (words.len() as u64 * 64).min(range.total - at);
            if pages == 0 {
                break;
            }
            let kind = self.report(device, range, at, pages, words)?;
            self.owe(range, at, pages, words);
            if kind != Some(dirty) {
                break;
            }
            at += pages;
        }
        Ok(at)
    }

    /// Fills `words` for `pages` pages from page `first` of the range, and returns whether all or none are
    /// dirty, or `None` for a mix.
    fn report(
        &mut self,
        device: &mut dyn Backend,
        range: Range,
        first: u64,
        pages: u64,
        words: &mut [u64],
    ) -> Result<Option<bool>, Errno> {
        words.fill(0);
        let (from, to) = (range.address(first), range.address(first + pages));
        let mut report = DirtyReport::new(from, to - from, range.page_size, words)?;
        device.report_dirty(&mut report)?;
        for (iova, end) in self.owed.within(from, to) {
            report.set(iova, end - iova);
        }
        self.owed.remove(from, to);
        let mut bitmap = PageBitmap::new(pages as usize);
        bitmap.merge(words);
        // A device may set bits past the end.
        let set = bitmap.count() as u64;
        Ok(if set == 0 {
            Some(false)
        } else if set == pages {
            Some(true)
        } else {
            None
        })
    }

    /// Keeps pages that the log has reported for a later answer.
    fn owe(&mut self, range: Range, first: u64, pages: u64, words: &[u64]) {
        let mut bitmap = PageBitmap::new(pages as usize);
        bitmap.merge(words);
        for Run { first: run, count } in bitmap.runs() {
            let from = first + run as u64;
            self.owed.add(range.address(from), range.address(from + count as u64));
        }
    }

    /// Keeps the pages of a bitmap that the user never read, because its place is needed.
    fn keep_untaken(&mut self) {
        if let (Some(Answer::Bitmap { pages, taken: false, .. }), Ok(range)) =
            (self.answer.take(), self.range())
        {
            let words = std::mem::take(&mut self.words);
            self.owe(range, self.done, pages, &words);
            self.words = words;
        }
    }
}

enum Told {
    Rest(u64),
    Bitmap(u64),
}

impl Range {
    /// Returns the byte address of a page of the range, which [`DirtyQuery::range`] has checked.
    fn address(self, page: u64) -> u64 {
        self.iova + page * self.page_size
    }
}

/// Dirty memory that a log has reported and the user has not seen: start and end of each range, in bytes.
#[derive(Debug, Default)]
struct Owed(std::collections::BTreeMap<u64, u64>);

impl Owed {
    /// Maximum number of separate ranges. More are merged into one, which reports too much and loses nothing.
    const MAX_STRETCHES: usize = 1 << 16;

    fn add(&mut self, mut iova: u64, mut end: u64) {
        while let Some((&start, &other)) = self.0.range(..=end).next_back() {
            if other < iova {
                break;
            }
            self.0.remove(&start);
            iova = iova.min(start);
            end = end.max(other);
        }
        self.0.insert(iova, end);
        if self.0.len() > Self::MAX_STRETCHES
            && let (Some((&first, _)), Some((_, &last))) = (self.0.first_key_value(), self.0.last_key_value())
        {
            self.0.clear();
            self.0.insert(first, last);
        }
    }

    fn within(&self, iova: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.0.range(..=iova).next_back().map_or(iova, |(&start, _)| start);
        self.0
            .range(first..end)
            .map(move |(&start, &other)| (start.max(iova), other.min(end)))
            .filter(|(start, other)| start < other)
    }

    fn remove(&mut self, iova: u64, end: u64) {
        if iova >= end {
            return;
        }
        let first = self.0.range(..=iova).next_back().map_or(iova, |(&start, _)| start);
        let touched: Vec<(u64, u64)> =
            self.0.range(first..end).map(|(&start, &other)| (start, other)).collect();
        for (start, other) in touched {
            if other <= iova {
                continue;
            }
            self.0.remove(&start);
            if start < iova {
                self.0.insert(start, iova);
            }
            if other > end {
                self.0.insert(end, other);
            }
        }
    }
}
