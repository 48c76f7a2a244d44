//! DMA logging: the device is made to write, and its log is compared with what it has written.

use std::collections::BTreeSet;

use whimbrel_protocol::{State, fsm};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::dma::{BASE, PAGE, SIZE, Target, all_memory, in_pages_of, listed, range};
use crate::outcome::{Outcome, check, fails, inconclusive};

const WRITER: &[Need] = &[Need::V2, Need::DmaLogging, Need::Writer, Need::Memory];
/// Pages that the device writes to: neighbours, both sides of a word's end, and some far away.
const PAGES: [u64; 9] = [0, 1, 5, 62, 63, 64, 65, 130, 400];
const HUGE_PAGE: u64 = 2 << 20;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/dma-writes/all-are-logged",
        "Each DMA that the device initiates inside the range will be logged by the device for later retrieval.",
        all_are_logged,
    )
    .needs(WRITER),
    Case::should(
        "v2/dma-writes/nothing-else",
        "Query the device's DMA log for written pages within the given IOVA range.",
        nothing_else,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/report-clears",
        "During querying the log is cleared for the IOVA range.",
        report_clears,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/clears-only-its-range",
        "During querying the log is cleared for the IOVA range.",
        clears_only_its_range,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/bit-of-a-page",
        "bitmap is a pointer to an array of u64s that will hold the output bitmap with 1 bit reporting a page_size unit of \
         IOVA.",
        bit_of_a_page,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/coarser-report",
        "The driver will format its internal logging to match the reporting page size, possibly by replicating bits if the \
         internal page size is lower than requested.",
        coarser_report,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/finer-report",
        "The driver will format its internal logging to match the reporting page size, possibly by replicating bits if the \
         internal page size is lower than requested.",
        finer_report,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/several-ranges",
        "When DMA logging is started a range of IOVAs to monitor is provided and the device can optimize its logging to cover \
         only the IOVA range given.",
        several_ranges,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/many-ranges",
        "Each DMA that the device initiates inside the range will be logged by the device for later retrieval.",
        many_ranges,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/kept-over-states",
        "Only DMA WRITEs are logged, and this API is not connected to VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE.",
        kept_over_states,
    )
    .needs(WRITER),
    Case::must(
        "v2/dma-writes/in-precopy",
        "It is part of the VFIO migration infrastructure that allows implementing dirty page tracking during the pre copy \
         phase of live migration.",
        in_precopy,
    )
    .needs(&[Need::V2, Need::DmaLogging, Need::Writer, Need::Memory, Need::PreCopy]),
    Case::robust(
        "v2/dma-writes/refused-second-start",
        "A second start that is refused takes nothing from the log that runs.",
        refused_second_start,
    )
    .needs(WRITER),
    Case::robust(
        "v2/dma-writes/new-log-is-empty",
        "A log that is started again has nothing of the log before it.",
        new_log_is_empty,
    )
    .needs(WRITER),
];

/// Fails the case unless a log reports all of these pages.
fn has_all(expected: &BTreeSet<u64>, found: &BTreeSet<u64>) -> Outcome {
    let missing: BTreeSet<u64> = expected.difference(found).copied().collect();
    check(
        missing.is_empty(),
        format_args!("{} pages that the device has written to", expected.len()),
        format_args!("the log lacks {}", listed(&missing)),
    )
}

/// Starts a log of all memory in pages of `page_size`, and lets the device write. Returns the size of the log's pages and the
/// pages written.
fn written(bench: &mut Bench, target: &Target, page_size: u64) -> Outcome<(u64, BTreeSet<u64>)> {
    let kept = bench.subject.must_start_log(page_size, &[all_memory()?])?;
    let pages = target.write(&mut bench.subject, &PAGES)?;
    Ok((kept, pages))
}

fn all_are_logged(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let (_, pages) = written(bench, &target, PAGE)?;
    let found = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    has_all(&pages, &found)?;
    // And again after the report, also a page that has been reported.
    let pages = target.write(&mut bench.subject, &[1, 7, 63, 64, 500])?;
    let found = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    has_all(&pages, &found)
}

fn nothing_else(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let (kept, pages) = written(bench, &target, PAGE)?;
    let found = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    // A log with larger pages marks all of them, and one with smaller pages none too many.
    let allowed = in_pages_of(kept.max(PAGE), &pages);
    let found = target.without_own(&found, kept);
    let extra: BTreeSet<u64> =
        found.into_iter().filter(|page| !allowed.contains(&(page & !(kept.max(PAGE) - 1)))).collect();
    check(extra.is_empty(), "only pages that the device has written to", listed(&extra))
}

fn report_clears(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let (kept, pages) = written(bench, &target, PAGE)?;
    has_all(&pages, &bench.subject.dirty_pages(all_memory()?, PAGE)?)?;
    let again = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    let again = target.without_own(&again, kept);
    check(again.is_empty(), "no page that was reported and not written to since", listed(&again))
}

fn clears_only_its_range(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let (kept, pages) = written(bench, &target, PAGE)?;
    if kept > HUGE_PAGE {
        return inconclusive(format_args!(
            "the log's pages of {kept:#x} bytes are larger than half of the memory"
        ));
    }
    let half = SIZE / 2;
    let (low, high) = (range(BASE, half)?, range(BASE + half, half)?);
    let mut pages_high: BTreeSet<u64> = pages.iter().copied().filter(|page| *page >= high.iova()).collect();
    if pages_high.is_empty() {
        let first = (half - (target.page(0) - BASE)) / PAGE;
        pages_high = target.write(&mut bench.subject, &[first, first + 3])?;
    }
    bench.subject.dirty_pages(low, PAGE)?;
    let found = bench.subject.dirty_pages(high, PAGE)?;
    has_all(&pages_high, &found)?;
    let again = bench.subject.dirty_pages(low, PAGE)?;
    let again = target.without_own(&again, kept);
    check(again.is_empty(), "no page that was reported and not written to since", listed(&again))
}

fn bit_of_a_page(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let kept = bench.subject.must_start_log(PAGE, &[all_memory()?])?;
    if kept > PAGE {
        return inconclusive(format_args!("the log's pages have {kept:#x} bytes"));
    }
    // Each report begins at another page of the log, so that another bit stands for the page written.
    for (number, first) in [(10, 10), (10, 3), (70, 5), (70, 69), (200, 0), (200, 136)] {
        bench.subject.dirty_pages(all_memory()?, PAGE)?;
        let pages = target.write(&mut bench.subject, &[number])?;
        let asked = range(target.page(first), (number - first + 1) * PAGE)?;
        let found = bench.subject.dirty_pages(asked, PAGE)?;
        check(
            found == pages,
            format_args!("bit {} for {}", number - first, listed(&pages)),
            format_args!("{} in a report from {:#x} on", listed(&found), asked.iova()),
        )?;
    }
    Ok(())
}

fn coarser_report(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    bench.subject.must_start_log(PAGE, &[all_memory()?])?;
    for page_size in [2 * PAGE, 16 * PAGE, HUGE_PAGE] {
        let pages = target.write(&mut bench.subject, &PAGES)?;
        let found = bench.subject.dirty_pages(all_memory()?, page_size)?;
        has_all(&in_pages_of(page_size, &pages), &found)?;
    }
    Ok(())
}

fn finer_report(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let (_, pages) = written(bench, &target, 64 << 10)?;
    let found = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    has_all(&pages, &found)
}

fn several_ranges(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let pages = |first: u64, count: u64| range(target.page(first), count * PAGE);
    // Two that touch, a gap, and one more; the highest first.
    let ranges = [pages(128, 64)?, pages(0, 8)?, pages(8, 8)?];
    bench.subject.must_start_log(PAGE, &ranges)?;
    let written = target.write(&mut bench.subject, &[0, 7, 8, 15, 16, 100, 127, 128, 191, 192])?;
    for range in ranges {
        let found = bench.subject.dirty_pages(range, PAGE)?;
        let here = |page: &u64| (range.iova()..range.end()).contains(page);
        has_all(&written.iter().copied().filter(here).collect(), &found)?;
    }
    bench.subject.must_stop_log()
}

fn many_ranges(bench: &mut Bench) -> Outcome {
    /// As many as the core of the kernel takes: a page of them.
    const COUNT: u64 = 256;
    let target = Target::prepare(bench)?;
    let ranges =
        (0..COUNT).map(|number| range(target.page(2 * number), PAGE)).collect::<Outcome<Vec<_>>>()?;
    bench.subject.must_start_log(PAGE, &ranges)?;
    let numbers = [0, 1, 15, 16, 63, 64, 127, 128, 254, COUNT - 1].map(|number| 2 * number);
    let written = target.write(&mut bench.subject, &numbers)?;
    let mut found = BTreeSet::new();
    for page in &written {
        found.extend(bench.subject.dirty_pages(range(*page, PAGE)?, PAGE)?);
    }
    has_all(&written, &found)?;
    bench.subject.must_stop_log()
}

fn kept_over_states(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let (_, pages) = written(bench, &target, PAGE)?;
    let flags = bench.subject.flags();
    let states = [State::PreCopy, State::StopCopy, State::Stop].into_iter();
    for state in states.filter(|state| fsm::supports(flags, *state)) {
        drop(bench.subject.go(state)?);
    }
    // The device no longer writes, and what it has written is in the log.
    let found = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    has_all(&pages, &found)?;
    bench.subject.go(State::Running)?;
    let pages = target.write(&mut bench.subject, &[2, 3])?;
    let found = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    has_all(&pages, &found)
}

fn in_precopy(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let data = bench.subject.begin(State::PreCopy)?;
    let (_, pages) = written(bench, &target, PAGE)?;
    let found = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    has_all(&pages, &found)?;
    drop(data);
    bench.subject.go(State::Running).map(drop)
}

fn refused_second_start(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let (_, pages) = written(bench, &target, PAGE)?;
    let again = bench.subject.start_log(PAGE, &[range(target.page(300), PAGE)?])?;
    fails("a second DMA_LOGGING_START", again)?;
    has_all(&pages, &bench.subject.dirty_pages(all_memory()?, PAGE)?)
}

fn new_log_is_empty(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let (kept, _) = written(bench, &target, PAGE)?;
    bench.subject.must_stop_log()?;
    target.write(&mut bench.subject, &[11, 12])?;
    bench.subject.must_start_log(PAGE, &[all_memory()?])?;
    let found = bench.subject.dirty_pages(all_memory()?, PAGE)?;
    let found = target.without_own(&found, kept);
    check(found.is_empty(), "a new log without a page of the time before it", listed(&found))
}
