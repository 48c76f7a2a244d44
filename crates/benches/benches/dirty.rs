//! The cost of a report of dirty pages for 1 TiB in pages of 4 KiB, a bitmap of 32 MiB, compared with a memcpy of 32
//! MiB, with no page, 0.1 % and 10 % dirty. Also marking from two threads, with and without a third that reports.
//!
//! Two ways to a report are measured: a driver's own log into a user's bitmap (DMA_LOGGING_REPORT), and a container's
//! DIRTY_PAGES with GET_BITMAP, as raw bytes, which writes the whole bitmap into the user's memory. Ours and the memcpy
//! alternate, and medians are compared, so that a busy machine disturbs both alike.

mod contained;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use whimbrel_device::dma::Access;
use whimbrel_device::{ContainerSettings, Errno};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_uapi::ioctl::VFIO_IOMMU_DIRTY_PAGES;
use whimbrel_uapi::type1::{Bitmap, DirtyPagesFlags, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet};
use zerocopy::IntoBytes;

use self::contained::{BOTH, Contained, MEMORY, PAGE};

/// Bytes of IOVA.
const SIZE: u64 = 1 << 40;
const WORDS: usize = (SIZE / PAGE / 64) as usize;
const BITMAP: u64 = 0x1000_0000;
const ARGUMENT: u64 = 0x1000;
const MEASUREMENTS: usize = 15;

/// A container that tracks a mapping of 1 TiB.
struct Tracked(Contained);

impl Tracked {
    fn new() -> contained::Result<Tracked> {
        // Only addresses: nothing is written to it, so that it takes no memory.
        let mut contained = Contained::new(ContainerSettings::default(), SIZE)?;
        let size = (WORDS * 8) as u64;
        let head = IommuType1DirtyBitmap { argsz: 48, flags: DirtyPagesFlags::GET_BITMAP.bits() };
        let bitmap = Bitmap { pgsize: PAGE, size, data: BITMAP };
        let range = IommuType1DirtyBitmapGet { iova: 0, size: SIZE, bitmap };
        contained.process.insert(BITMAP, vec![1; WORDS * 8]);
        contained.process.insert(ARGUMENT, [head.as_bytes(), range.as_bytes()].concat());
        contained.container.map_dma(BOTH, MEMORY, 0, SIZE, &contained.process)?;
        contained.container.start_dirty_tracking()?;
        Ok(Tracked(contained))
    }

    /// A write of a device, but for the data.
    fn mark(&self, page: u64) -> contained::Result<()> {
        Ok(self.0.bus.dma().access(page * PAGE, 1, Access::Write, |slice| {
            black_box(slice.len());
        })?)
    }

    fn report(&mut self) -> Result<(), Errno> {
        self.0.container.ioctl(VFIO_IOMMU_DIRTY_PAGES.number(), ARGUMENT, &mut self.0.process).map(|_| ())
    }

    fn told(&self) -> u64 {
        let bytes = self.0.process.piece(BITMAP).unwrap_or_default();
        bytes.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }
}

/// Pages in no order that a cache finds a pattern in.
struct Pages(u64);

impl Iterator for Pages {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Some(self.0 % (SIZE / PAGE))
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn whole_log() -> Result<DirtyLog, Errno> {
    let mut ranges = LoggingRanges::new(PAGE, 1)?;
    ranges.push(0, SIZE)?;
    DirtyLog::new(&ranges)
}

fn reports() -> contained::Result<()> {
    let log = whole_log()?;
    let mut tracked = Tracked::new()?;
    let source = vec![3u64; WORDS];
    let mut copy = vec![1u64; WORDS];
    let mut words = vec![1u64; WORDS];
    // So that the logs lie in memory of their own: pages that nobody has written are all one and the same.
    log.mark(0, SIZE);
    log.report(&mut DirtyReport::new(0, SIZE, PAGE, &mut words)?);
    tracked.0.bus.dma().access(0, SIZE, Access::Write, |_| ())?;
    tracked.report()?;
    println!("1 TiB in pages of 4 KiB: ms, and the ratio to a memcpy of 32 MiB into another 32 MiB");
    println!("{:>18} {:>8} {:>16} {:>16}", "marks", "memcpy", "driver's log", "GET_BITMAP");
    for (name, marks, goal) in [
        ("none", 0, "goal: at most 1.3"),
        ("0.1 % of the pages", SIZE / PAGE / 1000, "goal: at most 2"),
        ("10 % of the pages", SIZE / PAGE / 10, "no goal"),
    ] {
        let (mut copies, mut from_log, mut from_container) = (Vec::new(), Vec::new(), Vec::new());
        let mut pages = Pages(1);
        for _ in 0..if marks > 1 << 20 { 5 } else { MEASUREMENTS } {
            let marked: Vec<u64> = pages.by_ref().take(marks as usize).collect();
            for page in &marked {
                log.mark(page * PAGE, 1);
                tracked.mark(*page)?;
            }
            drop(marked);
            words.fill(0);
            copies.push(timed(|| copy.copy_from_slice(black_box(&source))).0);
            black_box(&copy);
            let mut report = DirtyReport::new(0, SIZE, PAGE, &mut words)?;
            from_log.push(timed(|| log.report(&mut report)).0);
            copies.push(timed(|| copy.copy_from_slice(black_box(&source))).0);
            black_box(&copy);
            let (time, result) = timed(|| tracked.report());
            result?;
            from_container.push(time);
            let told: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
            assert!(told <= marks && told >= marks * 9 / 10 && told == tracked.told(), "both tell all marks");
        }
        let (copy, log, container) =
            (median(&mut copies), median(&mut from_log), median(&mut from_container));
        println!(
            "{name:>18} {copy:>8.2} {log:>8.2} ({:>4.2}x) {container:>8.2} ({:>4.2}x)  {goal}",
            log / copy,
            container / copy
        );
    }
    Ok(())
}

/// Marks a second of two threads, each on its own half of the log. A third reports it meanwhile, or does not.
fn marks_a_second(log: &DirtyLog, words: &mut [u64], with_reports: bool) -> Result<(f64, u32), Errno> {
    const MARKS: u64 = 4_000_000;
    const HALF: u64 = SIZE / 2;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let begin = Instant::now();
        let markers: Vec<_> = (0..2)
            .map(|half| {
                scope.spawn(move || {
                    for page in Pages(half + 1).take(MARKS as usize) {
                        log.mark(half * HALF + page * PAGE % HALF, PAGE);
                    }
                    begin.elapsed()
                })
            })
            .collect();
        let done = &done;
        let reporter = scope.spawn(move || -> Result<u32, Errno> {
            let mut reports = 0;
            while with_reports && !done.load(Ordering::Relaxed) {
                log.report(&mut DirtyReport::new(0, SIZE, PAGE, words)?);
                reports += 1;
            }
            Ok(reports)
        });
        let longest = markers.into_iter().filter_map(|marker| marker.join().ok()).max().unwrap_or_default();
        done.store(true, Ordering::Relaxed);
        let reports = reporter.join().map_err(|_| Errno::EINVAL)??;
        Ok((2.0 * MARKS as f64 / longest.as_secs_f64(), reports))
    })
}

fn marking() -> contained::Result<()> {
    let log = whole_log()?;
    let mut words = vec![0; WORDS];
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut reports = 0;
    log.mark(0, SIZE);
    for _ in 0..MEASUREMENTS {
        for (rates, with_reports) in [(&mut alone, false), (&mut beside, true)] {
            log.report(&mut DirtyReport::new(0, SIZE, PAGE, &mut words)?);
            let (rate, made) = marks_a_second(&log, &mut words, with_reports)?;
            rates.push(rate);
            reports += made;
        }
    }
    alone.sort_by(f64::total_cmp);
    beside.sort_by(f64::total_cmp);
    let (alone, beside) = (alone[MEASUREMENTS / 2] / 1e6, beside[MEASUREMENTS / 2] / 1e6);
    println!(
        "2 threads mark pages all over 1 TiB: {alone:.1} million a second, {beside:.1} while a third reports"
    );
    println!("    ({:.2} of that; {} reports a run)", beside / alone, reports as usize / MEASUREMENTS);
    Ok(())
}

fn main() -> contained::Result<()> {
    reports()?;
    marking()
}
