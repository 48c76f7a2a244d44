//! Memory that the device under test writes to, and what its log says of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use whimbrel_memory::{FileOffset, Memory, SharedBytes};
use whimbrel_protocol::dirty::IovaRange;
use whimbrel_user::DmaRegion;

use crate::bench::Bench;
use crate::case::Need;
use crate::hooks::DmaWriter;
use crate::outcome::{Outcome, check, fail, inconclusive, skip, success};
use crate::subject::Subject;
use crate::transcript::some_of;

/// Bytes of the pages that a writer writes to.
pub(crate) const PAGE: u64 = 4096;
/// Address of the memory for the device: below 4 GiB and every window of interrupt messages, at a multiple of a huge page.
pub(crate) const BASE: u64 = 0x1000_0000;
/// Size of the memory in bytes: two huge pages.
pub(crate) const SIZE: u64 = 4 << 20;

/// Memory mapped for the device, and the author's way to make the device write there.
pub(crate) struct Target {
    writer: Arc<dyn DmaWriter>,
    memory: DmaRegion,
}

impl Target {
    /// Maps memory for the device and makes it ready to write there; skips the case without a way to do so.
    pub(crate) fn prepare(bench: &mut Bench) -> Outcome<Target> {
        let Some(writer) = bench.writer.clone() else { return skip(Need::Writer) };
        let memory = match memory() {
            Ok(memory) => DmaRegion::from(memory),
            Err(error) => {
                return inconclusive(format_args!("cannot allocate memory for the device: {error}"));
            }
        };
        let request = format!("memory for the device at {BASE:#x}+{SIZE:#x}");
        let result = bench.subject.request(
            &request,
            |device| writer.prepare(device, BASE, &memory),
            |()| "mapped".to_string(),
        )?;
        if let Err(errno) = result {
            return inconclusive(format_args!("the device cannot be made ready to write: {errno:?}"));
        }
        if writer.own_pages() >= SIZE / PAGE / 2 {
            return inconclusive("the writer uses most of the memory for itself");
        }
        Ok(Target { writer, memory })
    }

    /// Returns the address of a page that the writer does not use for itself. Page 0 is the first one at a multiple of 64
    /// pages.
    pub(crate) fn page(&self, number: u64) -> u64 {
        let own = self.writer.own_pages().next_multiple_of(64);
        BASE + (own + number) * PAGE
    }

    /// Makes the device write to pages by their numbers, which must succeed, and returns their addresses.
    pub(crate) fn write(&self, subject: &mut Subject, numbers: &[u64]) -> Outcome<BTreeSet<u64>> {
        let pages: BTreeSet<u64> = numbers.iter().map(|number| self.page(*number)).collect();
        let list: Vec<u64> = pages.iter().copied().collect();
        let texts: Vec<String> = list.iter().map(|page| format!("{page:#x}")).collect();
        let request = format!("the device writes to {}", texts.join(", "));
        let result =
            subject.request(&request, |device| self.writer.write(device, &list), |()| "done".to_string())?;
        success(request, result)?;
        Ok(pages)
    }

    /// Returns the memory behind the pages that the writer does not use for itself.
    fn bytes(&self) -> Outcome<SharedBytes<'_>> {
        let from = self.page(0) - BASE;
        let bytes = usize::try_from(SIZE - from).ok().and_then(|count| self.memory.bytes(from, count));
        bytes.map_or_else(|| inconclusive("the memory for the device is smaller than it was"), Ok)
    }

    /// Makes the device write to pages by their numbers, and fails the case unless each of them has been written to.
    pub(crate) fn must_write(&self, subject: &mut Subject, numbers: &[u64]) -> Outcome {
        let bytes = self.bytes()?;
        let mut left: BTreeSet<u64> = numbers.iter().copied().collect();
        let mut after = vec![0; bytes.len()];
        // Whatever bytes the device writes, they are unlike one of these.
        for filler in [0x00, 0xff] {
            bytes.copy_from(&vec![filler; bytes.len()]);
            self.write(subject, numbers)?;
            bytes.copy_to(&mut after);
            left.retain(|number| {
                let page = after.iter().skip((number * PAGE) as usize).take(PAGE as usize);
                page.copied().all(|byte| byte == filler)
            });
        }
        match left.first() {
            Some(number) => {
                let page = self.page(*number);
                fail(format_args!("the device writes to the page at {page:#x}"), "the memory is as it was")
            }
            None => Ok(()),
        }
    }

    /// Fills the memory behind the pages with zeros.
    pub(crate) fn clear(&self) -> Outcome {
        let bytes = self.bytes()?;
        bytes.copy_from(&vec![0; bytes.len()]);
        Ok(())
    }

    /// Returns the address of the first byte behind the pages that is not zero.
    pub(crate) fn first_written(&self) -> Outcome<Option<u64>> {
        let bytes = self.bytes()?;
        let mut found = vec![0; bytes.len()];
        bytes.copy_to(&mut found);
        let first = (0_u64..).zip(&found).find(|(_, byte)| **byte != 0);
        Ok(first.map(|(offset, _)| self.page(0) + offset))
    }

    /// Returns those of the pages that the writer does not use for itself, where a log has pages of `page_size` bytes.
    pub(crate) fn without_own(&self, pages: &BTreeSet<u64>, page_size: u64) -> BTreeSet<u64> {
        let end = (BASE + self.writer.own_pages() * PAGE).next_multiple_of(page_size.max(PAGE));
        pages.iter().copied().filter(|page| *page >= end).collect()
    }
}

fn memory() -> std::io::Result<Memory> {
    let file =
        File::from(memfd_create(c"whimbrel-conform", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(SIZE)?;
    // A program under test may open it.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(Memory::of_file(FileOffset::new(file, 0), SIZE, true)?)
}

/// All of the memory.
pub(crate) fn all_memory() -> Outcome<IovaRange> {
    range(BASE, SIZE)
}

/// Returns a range for a log.
pub(crate) fn range(iova: u64, length: u64) -> Outcome<IovaRange> {
    IovaRange::new(iova, length).or_else(|_| inconclusive("a range past the end of the address space"))
}

/// Returns the start of each page of `page_size` bytes that has one of the pages in it.
pub(crate) fn in_pages_of(page_size: u64, pages: &BTreeSet<u64>) -> BTreeSet<u64> {
    pages.iter().map(|page| page & !(page_size - 1)).collect()
}

impl Subject {
    /// Starts the log, which must succeed, and returns its page size in bytes.
    pub(crate) fn must_start_log(&mut self, page_size: u64, ranges: &[IovaRange]) -> Outcome<u64> {
        let result = self.start_log(page_size, ranges)?;
        let kept = success("DMA_LOGGING_START", result)?;
        check(kept.is_power_of_two(), "the log's page size is a power of two", format_args!("{kept:#x}"))?;
        Ok(kept)
    }

    /// Stops the log, which must succeed.
    pub(crate) fn must_stop_log(&mut self) -> Outcome {
        let result = self.stop_log()?;
        success("DMA_LOGGING_STOP", result)
    }

    /// Returns the addresses of the pages of `page_size` bytes in a range that the log reports, and clears them there. The
    /// range is a multiple of the page size. Fails the case if the report fails or goes past the range.
    pub(crate) fn dirty_pages(&mut self, range: IovaRange, page_size: u64) -> Outcome<BTreeSet<u64>> {
        let count = range.length() / page_size;
        // A word more than needed: nobody may set a bit in it.
        let mut words = vec![0; usize::try_from(count.div_ceil(64) + 1).unwrap_or(1)];
        let result = self.report_log(range.iova(), range.length(), page_size, &mut words)?;
        success("DMA_LOGGING_REPORT", result)?;
        let bits = (0_u64..).zip(&words).flat_map(|(index, word)| {
            let word = u64::from_le(*word);
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        });
        let mut pages = BTreeSet::new();
        for bit in bits {
            if bit >= count {
                return fail(
                    format_args!("a report on {count} pages sets bits below {count}"),
                    format_args!("bit {bit}"),
                );
            }
            pages.insert(range.iova() + bit * page_size);
        }
        Ok(pages)
    }
}

/// Formats addresses for a failure: the first few, and their number.
pub(crate) fn listed(pages: &BTreeSet<u64>) -> String {
    if pages.is_empty() {
        return "no page".to_string();
    }
    some_of(pages.iter().map(|page| format!("{page:#x}")), "pages")
}
