//! The cost of logging in a device's write of 4 KiB: without a log, with the device's own, with its container's, with
//! both. Also the mutual cost of two writing threads, a third that reports and a fourth that maps and unmaps.
//!
//! The kinds alternate and medians are compared, so that a busy machine disturbs all alike.

mod contained;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use whimbrel_device::{Container, ContainerSettings};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use self::contained::{BOTH, Contained, MEMORY, PAGE, Result, memory};

/// Bytes of IOVA, and of memory behind it.
const SIZE: u64 = 256 << 20;
const PAGES: u64 = SIZE / PAGE;
const WORDS: usize = (PAGES / 64) as usize;
const MEASUREMENTS: usize = 31;

/// A device in a container that has memory mapped.
struct Machine {
    contained: Contained,
    log: Arc<DirtyLog>,
}

impl Machine {
    fn new() -> Result<Machine> {
        let contained = Contained::new(ContainerSettings::default(), SIZE)?;
        contained.container.map_dma(BOTH, MEMORY, 0, SIZE, &contained.process)?;
        let mut ranges = LoggingRanges::new(PAGE, 1)?;
        ranges.push(0, SIZE)?;
        Ok(Machine { contained, log: Arc::new(DirtyLog::new(&ranges)?) })
    }

    fn set_logs(&self, device: bool, container: bool) -> Result<()> {
        self.contained.bus.dma().set_log(device.then(|| self.log.clone()));
        let switch = if container { Container::start_dirty_tracking } else { Container::stop_dirty_tracking };
        Ok(switch(&self.contained.container)?)
    }

    fn report(&self) -> Result<()> {
        self.log.report(&mut DirtyReport::new(0, SIZE, PAGE, &mut vec![0; WORDS])?);
        Ok(())
    }
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Nanoseconds a write takes, of `PAGES` writes to the pages that `page` tells.
fn write_time(machine: &Machine, data: &[u8], page: impl Fn(u64) -> u64) -> Result<f64> {
    let dma = machine.contained.bus.dma();
    let start = Instant::now();
    for index in 0..PAGES {
        dma.write(page(index) * PAGE, data)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / PAGES as f64)
}

fn logging(machine: &Machine) -> Result<()> {
    const KINDS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];
    // Data that lie in their page nearly as the destination does in its own are copied at half the rate, because loads
    // look as if they depended on stores. Where the allocator puts them must not decide the figures.
    let place = vec![7; 3 * PAGE as usize];
    let start = place.as_ptr().align_offset(PAGE as usize) + 2048;
    let data = &place[start..start + PAGE as usize];
    let mut times = [const { Vec::new() }; 8];
    for _ in 0..MEASUREMENTS {
        for (kind, (device, container)) in KINDS.into_iter().enumerate() {
            machine.set_logs(device, container)?;
            machine.report()?;
            times[kind].push(write_time(machine, data, |index| index)?);
            times[4 + kind].push(write_time(machine, data, |_| 17)?);
            machine.set_logs(false, false)?;
        }
    }
    let median: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
    println!("a write of 4 KiB: ns, and the ratio to one without a log (goal: at most 1.10)");
    println!("{:>22} {:>8} {:>18} {:>18} {:>18}", "to", "no log", "the device's", "the container's", "both");
    for (name, row) in [("pages one by one", &median[..4]), ("one page all the time", &median[4..])] {
        let ratio = |kind: usize| format!("{:.1} ({:.3}x)", row[kind], row[kind] / row[0]);
        println!("{name:>22} {:>8.1} {:>18} {:>18} {:>18}", row[0], ratio(1), ratio(2), ratio(3));
    }
    Ok(())
}

/// Returns the CPU time of the thread in nanoseconds, and the number of times it had to wait.
fn usage() -> Result<(f64, i64)> {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok((time.tv_sec as f64 * 1e9 + time.tv_nsec as f64, waits.ok_or("no count of waits")?.trim().parse()?))
}

/// Processor time that a write takes in nanoseconds, and how often a writer waited, while others work too.
fn shared(machine: &Machine, writers: u64, reporter: bool, mapper: bool) -> Result<(f64, i64)> {
    const WRITES: u64 = 400_000;
    const PAUSE: Duration = Duration::from_micros(500);
    let done = AtomicBool::new(false);
    let spare = memory(PAGE)?;
    thread::scope(|scope| {
        let done = &done;
        let others = scope.spawn(move || -> Result<()> {
            while reporter && !done.load(Ordering::Relaxed) {
                machine.report()?;
                machine.contained.container.dirty_bitmap(0, SIZE, PAGE, &mut vec![0; WORDS])?;
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        let mapping = scope.spawn(move || -> Result<()> {
            let dma = machine.contained.bus.dma();
            while mapper && !done.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    dma.map_memory(1 << 40, BOTH, spare.clone())?;
                    dma.unmap(1 << 40, PAGE)?;
                }
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        let writing: Vec<_> = (0..writers)
            .map(|writer| {
                scope.spawn(move || -> Result<(f64, i64)> {
                    let data = vec![7; PAGE as usize];
                    let before = usage()?;
                    for index in 0..WRITES {
                        machine
                            .contained
                            .bus
                            .dma()
                            .write((writer * PAGES / 2 + index % 256) * PAGE, &data)?;
                    }
                    let after = usage()?;
                    Ok(((after.0 - before.0) / WRITES as f64, after.1 - before.1))
                })
            })
            .collect();
        let ended: Vec<_> = writing.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        for thread in [others, mapping] {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        let (mut time, mut waits) = (0.0, 0);
        for writer in ended {
            let (took, waited) = writer.map_err(|_| "a writer panicked")??;
            time += took / writers as f64;
            waits += waited;
        }
        Ok((time, waits))
    })
}

fn sharing(machine: &Machine) -> Result<()> {
    const KINDS: [(&str, u64, bool, bool); 5] = [
        ("1 writer alone", 1, false, false),
        ("2 writers", 2, false, false),
        ("2 writers, 1 reports", 2, true, false),
        ("2 writers, 1 maps", 2, false, true),
        ("2 writers, both", 2, true, true),
    ];
    machine.set_logs(true, true)?;
    let mut times = [const { Vec::new() }; KINDS.len()];
    let mut waits = [0; KINDS.len()];
    for _ in 0..9 {
        for (kind, (_, writers, reporter, mapper)) in KINDS.into_iter().enumerate() {
            let (time, waited) = shared(machine, writers, reporter, mapper)?;
            times[kind].push(time);
            waits[kind] += waited;
        }
    }
    let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
    println!("a write of 4 KiB with both logs, while others use the same device: ns of a processor");
    for (kind, (name, ..)) in KINDS.into_iter().enumerate() {
        let ratio = medians[kind] / medians[0];
        println!("{name:>22} {:>8.1} ({ratio:.3}x), {} waits in all", medians[kind], waits[kind]);
    }
    Ok(())
}

fn main() -> Result<()> {
    let machine = Machine::new()?;
    logging(&machine)?;
    sharing(&machine)
}
