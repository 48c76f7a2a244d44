//! Measures what system calls cost, bare, under `whimbrel run` and under `whimbrel trace`: those that the filter lets pass,
//! a request that is refused, and a request to a device.
//!
//! ```text
//! calls                                                           bare
//! whimbrel trace -o /dev/null calls                               with a tracer
//! whimbrel run --device serial calls /dev/vfio/devices/vfio0      with the filter
//! ```
#![allow(unsafe_code, reason = "a request that the kernel refuses is measured")]

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use whimbrel_user::Device;
use whimbrel_user::kernel::Cdev;

const ROUNDS: usize = 200;
const CALLS: u32 = 200;

/// Prints the median of many rounds, in nanoseconds a call.
fn measure(name: &str, mut call: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let mut rounds: Vec<Duration> = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..CALLS {
            call()?;
        }
        rounds.push(start.elapsed() / CALLS);
    }
    rounds.sort_unstable();
    println!("{name:24} {:6} ns", rounds[ROUNDS / 2].as_nanos());
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let file = File::open("/proc/self/exe")?;
    let mut page = vec![0; 4096];
    measure("getppid", || {
        black_box(rustix::process::getppid());
        Ok(())
    })?;
    measure("fstat", || {
        black_box(rustix::fs::fstat(&file)?);
        Ok(())
    })?;
    measure("pread of 4 KiB", || {
        file.read_exact_at(&mut page, 0)?;
        Ok(())
    })?;
    measure("ioctl of another file", || {
        // Fails, for it is no terminal.
        let _ = black_box(rustix::termios::tcgetwinsize(&file));
        Ok(())
    })?;
    measure("request, refused", || {
        // SAFETY: VFIO_DEVICE_RESET takes no argument, and fails, for this is no VFIO file.
        black_box(unsafe { libc::ioctl(file.as_raw_fd(), 0x3b6f, 0) });
        Ok(())
    })?;
    measure("open and close", || {
        drop(black_box(File::open("/dev/null")?));
        Ok(())
    })?;
    let Some(path) = std::env::args().nth(1) else { return Ok(()) };
    let mut device = Cdev::open(&path)?;
    measure("request to a device", || {
        black_box(device.irq_info(0)?);
        Ok(())
    })?;
    let mut register = [0];
    measure("register of a device", || {
        device.read_region(0, 5, &mut register)?;
        Ok(())
    })
}
