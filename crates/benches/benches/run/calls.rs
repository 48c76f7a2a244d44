//! System calls, requests and accesses to registers, in nanoseconds a call.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_user::Device;
use whimbrel_user::kernel::Cdev;

use crate::{DEVICE, Way, lines, measurement, median};

const WAYS: [Way; 4] = [Way::Bare, Way::Run("serial"), Way::RunTraced("serial"), Way::Trace];

/// Runs of each way, and rounds and calls of a run. Medians of rounds count, and of these the median.
const RUNS: usize = 7;
const ROUNDS: usize = 200;
const CALLS: u32 = 200;

/// The scratch register of the serial port, and the first of the device's file.
const SCRATCH: u64 = 7;
const REGIONS: u64 = whimbrel_device::REGION_MEMORY_START;

/// Prints a table: for each call its time in each way, and what the ways add to the bare call.
pub(crate) fn measure() {
    let mut times: Vec<(String, [Vec<f64>; WAYS.len()])> = Vec::new();
    for _ in 0..RUNS {
        for (index, way) in WAYS.into_iter().enumerate() {
            for (name, time) in lines(measurement(way, "calls")) {
                let known = times.iter().position(|(known, _)| *known == name);
                let at = known.unwrap_or_else(|| {
                    times.push((name, Default::default()));
                    times.len() - 1
                });
                times[at].1[index].push(time);
            }
        }
    }
    println!(
        "{:24} {:>7} {:>7} {:>11} {:>7}  run - bare  trace / run",
        "ns per call", "bare", "run", "run --trace", "trace"
    );
    for (name, times) in times {
        let [bare, run, traced, trace] = times.map(median);
        println!(
            "{name:24} {bare:7.0} {run:7.0} {traced:11.0} {trace:7.0}  {:10.0}  {:11.2}",
            run - bare,
            trace / run
        );
    }
}

/// Measures the calls, and prints a line for each.
pub(crate) fn inside() {
    let (mut zero, mut null) = (File::open("/dev/zero").unwrap(), File::create("/dev/null").unwrap());
    let file = File::from(memfd_create(c"file", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&[1; 4096], 0).unwrap();
    let mut page = [0; 4096];
    let timers = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let word = 0u32;
    round("getppid", rustix::process::getppid);
    round("read of 4 KiB", || zero.read_exact(&mut page).unwrap());
    round("write of 4 KiB", || null.write_all(&page).unwrap());
    round("pread of 4 KiB", || file.read_exact_at(&mut page, 0).unwrap());
    round("fstat", || rustix::fs::fstat(&file).unwrap());
    // Fails, for it is no terminal.
    round("ioctl of another file", || rustix::termios::tcgetwinsize(&file));
    round("epoll_wait", || {
        let now = rustix::event::Timespec::default();
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
        rustix::event::epoll::wait(&timers, &mut events, Some(&now)).unwrap();
    });
    // SAFETY: nobody waits at the word, which outlives the call.
    round("futex", || unsafe { libc::syscall(libc::SYS_futex, &raw const word, 129, 1) });
    round("mmap and munmap", || {
        // SAFETY: a mapping of its own, which nobody uses.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let mapped = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0);
            libc::munmap(mapped, 4096);
        }
    });
    round("open and close", || File::open("/dev/null").unwrap());
    let Some(path) = std::env::var_os(DEVICE) else {
        // What the kernel answers at once, and a tracer sees.
        // SAFETY: VFIO_DEVICE_RESET takes no argument, and fails, for this is no VFIO file.
        round("request", || unsafe { libc::ioctl(file.as_raw_fd(), 0x3b6f, 0) });
        round("read of a register", || file.read_at(&mut page[..1], REGIONS + SCRATCH));
        round("write of a register", || file.write_at(&page[..1], REGIONS + SCRATCH));
        return;
    };
    let mut device = Cdev::open(path).unwrap();
    round("request", || device.irq_info(0).unwrap());
    let mut register = [0];
    round("read of a register", || device.read_region(0, SCRATCH, &mut register).unwrap());
    round("write of a register", || device.write_region(0, SCRATCH, &register).unwrap());
}

/// Prints the nanoseconds of a call: the median of many rounds.
fn round<T>(name: &str, mut call: impl FnMut() -> T) {
    let mut rounds: Vec<Duration> = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for _ in 0..CALLS {
            black_box(call());
        }
        rounds.push(begun.elapsed());
    }
    rounds.sort_unstable();
    println!("{name} {}", rounds[ROUNDS / 2].as_nanos() as f64 / f64::from(CALLS));
}
