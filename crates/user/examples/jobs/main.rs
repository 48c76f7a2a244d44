//! Gives the DMA engine `accel` jobs by the thousand, from inside the machine whose device it is, and checks each.
//!
//! ```text
//! jobs group 0000:00:10.0 msi 2000      behind vfio-pci, through the device's group
//! jobs cdev 0000:00:10.0 intx 2000      behind vfio-pci, through the device's own file
//! jobs uio 0000:00:10.0 intx 2000       behind uio_pci_generic, in a machine without an IOMMU; needs a huge page
//! ```

mod uio;
mod vfio;

use std::error::Error;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use whimbrel_models::accel::guest::{GuestDriver, Platform, Rings};
use whimbrel_models::accel::{
    Descriptor, INTERRUPT_COMPLETION, INTERRUPT_ERROR, REGISTER_COMPLETED, REGISTER_ERRORS,
    REGISTER_INTERRUPT_STATUS,
};
use whimbrel_user::kernel::{Cdev, Group};

use uio::Uio;
use vfio::Vfio;

const USAGE: &str = "usage: jobs group|cdev|uio DEVICE intx|msi JOBS; uio has intx only";

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The memory that the program shares with the engine: the rings, and data for each of their entries.
const MEMORY_BYTES: usize = 2 << 20;
const ENTRIES: u64 = 64;
const COMPLETIONS: u64 = 0x1000;
const DATA: u64 = 0x1_0000;
/// For each job this much to read, and as much to write.
const LENGTH: u64 = 0x1000;

/// The longest that an engine may take for one job and its interrupt.
const PATIENCE: Duration = Duration::from_secs(10);

/// A way to the engine: its registers, its interrupt, and the memory that it reaches.
trait Hardware {
    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Fallible<()>;
    fn write_register(&mut self, offset: u64, data: &[u8]) -> Fallible<()>;
    /// Readable once the interrupt has arrived.
    fn event(&self) -> BorrowedFd<'_>;
    /// Takes the interrupt that has arrived.
    fn take_interrupt(&mut self) -> Fallible<()>;
    /// Lets the next one arrive, once the cause of the last is gone.
    fn rearm(&mut self) -> Fallible<()>;
    fn memory(&self) -> &MmapRegion;
    /// The engine's address of that memory.
    fn address(&self) -> u64;
}

struct Seat(Box<dyn Hardware>);

impl Platform for Seat {
    type Error = io::Error;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read_register(offset, data).map_err(io::Error::other)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_register(offset, data).map_err(io::Error::other)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> io::Result<()> {
        let at = (address - self.0.address()) as usize;
        self.0.memory().as_volatile_slice().read_slice(data, at).map_err(io::Error::other)
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> io::Result<()> {
        let at = (address - self.0.address()) as usize;
        self.0.memory().as_volatile_slice().write_slice(data, at).map_err(io::Error::other)
    }
}

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let &[way, device, interrupt, jobs] = arguments.as_slice() else { return Err(USAGE.into()) };
    let hardware: Box<dyn Hardware> = match (way, interrupt) {
        ("group", "intx" | "msi") => Box::new(Vfio::new(Group::find(device)?, interrupt == "msi")?),
        ("cdev", "intx" | "msi") => Box::new(Vfio::new(Cdev::find(device)?, interrupt == "msi")?),
        ("uio", "intx") => Box::new(Uio::new(device)?),
        _ => return Err(USAGE.into()),
    };
    let jobs: u64 = jobs.parse()?;
    let (interrupts, earlier) = run(hardware, jobs)?;
    println!("{jobs} jobs done, {interrupts} interrupts, {earlier} jobs before");
    Ok(())
}

/// Gives the engine this number of jobs. Returns how often it has interrupted, and how many jobs it had done before.
fn run(hardware: Box<dyn Hardware>, jobs: u64) -> Fallible<(u64, u64)> {
    let base = hardware.address();
    let rings = Rings::new(base, base + COMPLETIONS, u32::try_from(ENTRIES)?);
    let mut driver = GuestDriver::start(Seat(hardware), rings)?;
    let earlier = driver.progress().earlier;
    let earlier_errors = driver.read_u64(REGISTER_ERRORS)?;
    driver.enable_interrupts(INTERRUPT_COMPLETION | INTERRUPT_ERROR)?;
    let (mut given, mut done, mut interrupts) = (0, 0, 0);
    while done < jobs {
        while given < jobs && given < done + ENTRIES {
            let job = job(base, given);
            let content: Vec<u8> = (0..LENGTH).map(|at| (given.wrapping_mul(31) + at) as u8).collect();
            driver.platform().write_memory(data(base, given), &content)?;
            driver.put(&job)?;
            given += 1;
        }
        driver.ring()?;
        if !await_interrupt(driver.platform().0.as_ref())? {
            let (completed, errors) =
                (driver.read_u64(REGISTER_COMPLETED)?, driver.read_u64(REGISTER_ERRORS)?);
            let status = driver.read_u32(REGISTER_INTERRUPT_STATUS)?;
            let tell = format!(
                "no interrupt within {} s after job {done} of {given}: the engine counts {} jobs and {errors} errors, \
                 interrupt status {status:#x}",
                PATIENCE.as_secs(),
                completed.wrapping_sub(earlier)
            );
            return Err(tell.into());
        }
        driver.platform().0.take_interrupt()?;
        interrupts += 1;
        driver.acknowledge(INTERRUPT_COMPLETION | INTERRUPT_ERROR)?;
        driver.platform().0.rearm()?;
        while let Some(completion) = driver.take_completion()? {
            if !driver.verify(&job(base, done), &completion)? {
                return Err(format!("job {done} has the wrong result: {completion:?}").into());
            }
            done += 1;
        }
    }
    let (completed, errors) = (driver.read_u64(REGISTER_COMPLETED)?, driver.read_u64(REGISTER_ERRORS)?);
    // A device that has lost its state counts fewer than before.
    if (completed.wrapping_sub(earlier), errors) != (jobs, earlier_errors) {
        let tell = format!(
            "the engine counts {completed} jobs after {earlier}, and {errors} errors after {earlier_errors}"
        );
        return Err(tell.into());
    }
    driver.enable_interrupts(0)?;
    Ok((interrupts, earlier))
}

fn data(base: u64, number: u64) -> u64 {
    base + DATA + number % ENTRIES * 2 * LENGTH
}

/// One of the kinds of jobs, in turn, on the data of its entry.
fn job(base: u64, number: u64) -> Descriptor {
    let source = data(base, number);
    match number % 3 {
        0 => Descriptor::copy(number, source, source + LENGTH, LENGTH),
        1 => Descriptor::checksum(number, source, LENGTH - number % 100),
        _ => Descriptor::fill(number, source + LENGTH, LENGTH, number),
    }
}

/// Waits for the next interrupt, and returns whether it has arrived.
fn await_interrupt(hardware: &dyn Hardware) -> Fallible<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::from_borrowed_fd(hardware.event(), PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count != 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
