//! The draft's query of dirty pages: `start_pfn`, `page_size`, `total_pfns`, and the answers of
//! `copied_pfns`.

use whimbrel_uapi::region_draft::{VFIO_DEVICE_DIRTY_PFNS_ALL, VFIO_DEVICE_DIRTY_PFNS_NONE};

use super::super::layout::Field;
use super::super::{Backend, SectionMemory};
use crate::Errno;
use crate::dirty::{DirtyReport, PageBitmap, Run};

/// How many bitmaps' worth of pages are looked at ahead, at most, to tell NONE or ALL of the rest of a range.
/// Beyond it a bitmap is given, which is right as well.
const LOOK_AHEAD: u32 = 1 << 14;

/// A device's log forgets what it has told. What was told and did not reach the user is kept in `owed`.
#[derive(Debug)]
pub(super) struct DirtyQuery {
    start_pfn: Option<u64>,
    page_size: Option<u64>,
    total_pfns: Option<u64>,
    /// Pages of the range that have been answered for.
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
    /// A bitmap for so many pages.
    Bitmap {
        pages: u64,
        /// The user has been told where it is.
        taken: bool,
        /// The next `data_offset` is that of the bitmap.
        current: bool,
    },
}

/// What looking ahead has found: the rest of the range holds both clean and dirty pages. It need not be
/// looked at again by a query that goes on where the last answer ended, whether its user writes the three
/// fields anew or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mixed {
    /// Where the next answer begins, in bytes.
    next: u64,
    page_size: u64,
    /// Where the range ends, in bytes.
    end: u64,
    /// Up to here all is of one kind, in bytes.
    until: u64,
}

/// What is to be answered for, once checked.
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

    /// Saving is over, or the device was reset: the log is too.
    pub(super) fn clear(&mut self) {
        *self = DirtyQuery::new(self.words.len() * 8);
    }

    /// The user writes one of the three fields: a new query.
    pub(super) fn ask(&mut self, field: Field, value: u64) {
        self.keep_untaken();
        match field {
            Field::StartPfn => self.start_pfn = Some(value),
            Field::PageSize => self.page_size = Some(value),
            _ => self.total_pfns = Some(value),
        }
        self.done = 0;
    }

    /// The user turns to the device's data.
    pub(super) fn leave_bitmap(&mut self) {
        if let Some(Answer::Bitmap { current, .. }) = &mut self.answer {
            *current = false;
        }
    }

    /// Whether `data_offset` is that of the bitmap, which the user then has.
    pub(super) fn show_bitmap(&mut self) -> bool {
        match &mut self.answer {
            Some(Answer::Bitmap { current, taken, .. }) if *current => {
                *taken = true;
                true
            }
            _ => false,
        }
    }

    /// Bytes of the bitmap that can be read.
    pub(super) fn bitmap_bytes(&self) -> u64 {
        match self.answer {
            Some(Answer::Bitmap { pages, current: true, .. }) => pages.div_ceil(64) * 8,
            _ => 0,
        }
    }

    /// The user reads `copied_pfns`. Read again before the bitmap was asked for, it says the same.
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
                // Kept first: what cannot be shown has still been told by the log.
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

    /// EINVAL unless all three fields were written, and for a page size the log cannot answer in; EOVERFLOW
    /// for pages past the end of the address space.
    fn range(&self) -> Result<Range, Errno> {
        let fields = (self.start_pfn, self.page_size, self.total_pfns);
        let (Some(start), Some(page_size), Some(total)) = fields else { return Err(Errno::EINVAL) };
        let bytes = |pages: u64| pages.checked_mul(page_size).ok_or(Errno::EOVERFLOW);
        let iova = bytes(start)?;
        DirtyReport::check(iova, bytes(total)?, page_size)?;
        Ok(Range { iova, page_size, total })
    }

    /// The next bitmap, or what the whole rest is.
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
                    // The first pages have been told by the log and not to the user.
                    self.owe(range, self.done, pages, words);
                    return Err(errno);
                }
            }
        }
        self.mixed = Some(Mixed { next, page_size: range.page_size, end, until });
        Ok(Told::Bitmap(pages))
    }

    /// Goes on from page `at` while all pages are `dirty`, or all are not, and returns where that ends.
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

    /// Fills `words` for `pages` pages from page `first` of the range, and says whether they are all dirty,
    /// all not, or both (`None`).
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

    /// Keeps what the log has told for another time.
    fn owe(&mut self, range: Range, first: u64, pages: u64, words: &[u64]) {
        let mut bitmap = PageBitmap::new(pages as usize);
        bitmap.merge(words);
        for Run { first: run, count } in bitmap.runs() {
            let from = first + run as u64;
            self.owed.add(range.address(from), range.address(from + count as u64));
        }
    }

    /// The bitmap in the section was never asked for, and its place is needed.
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
    /// Byte address of a page of the range, which [`DirtyQuery::range`] has checked.
    fn address(self, page: u64) -> u64 {
        self.iova + page * self.page_size
    }
}

/// Dirty memory that a log has told of and the user has not heard of: start and end of each stretch, in
/// bytes.
#[derive(Debug, Default)]
struct Owed(std::collections::BTreeMap<u64, u64>);

impl Owed {
    /// The most stretches kept apart. More are taken as one, which tells too much and loses nothing.
    const MOST: usize = 1 << 16;

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
        if self.0.len() > Self::MOST
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
