//! The guest driver of an engine: sets up the rings, submits jobs, reaps and verifies their completions.
//!
//! [`GuestDriver`] works like the driver in a guest's kernel. It accesses the device and memory through a [`Platform`],
//! so that the same driver runs on a [`DeviceFile`](whimbrel_device::DeviceFile) in this process, on a VFIO device that
//! a program owns, or on a vfio-user client. Its [`Progress`] is plain data that a guest keeps in its memory: a driver
//! resumed from it continues at the destination of a migration.
//!
//! ```
//! # use std::fs::File;
//! # use whimbrel_memory::FileOffset;
//! use whimbrel_device::{DeviceFile, Next};
//! use whimbrel_models::accel::guest::{GuestDriver, Rings};
//! use whimbrel_models::accel::{Accel, AccelConfig, Descriptor};
//! # use whimbrel_uapi::type1::DmaMapFlags;
//!
//! let config = AccelConfig::default().state_bytes(1 << 20);
//! let device = DeviceFile::try_new("engine", |bus| Accel::new(config, bus))?;
//! # let memory = File::from(rustix::fs::memfd_create(c"doc", rustix::fs::MemfdFlags::empty())?);
//! # memory.set_len(0x10000)?;
//! // 64 KiB of memory at IOVA 0: the two rings first, then data.
//! device.bus().dma().map(0, 0x10000, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(memory, 0))?;
//! device.bus().dma().write(0x2000, b"123456789")?;
//!
//! let mut driver = GuestDriver::start(device, Rings::new(0, 0x1000, 16))?;
//! let job = Descriptor::checksum(1, 0x2000, 9);
//! let completion = driver.execute(&job, |device| {
//!     // A `Worker` would do this on a thread of its own.
//!     while device.advance(std::time::Duration::ZERO) == Next::Now {}
//!     Ok(())
//! })?;
//! assert_eq!(completion.result, 0xcbf4_3926);
//! assert!(driver.verify(&job, &completion)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod job;
mod platform;

use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

pub use self::error::GuestError;
pub use self::platform::Platform;
use super::queue::{Completion, Descriptor};
use super::registers::{
    CONTROL_ENABLE, ID, MAX_QUEUE_SIZE, REGISTER_COMPLETED, REGISTER_COMPLETION_BASE, REGISTER_CONTROL,
    REGISTER_ID, REGISTER_INTERRUPT_ENABLE, REGISTER_INTERRUPT_STATUS, REGISTER_QUEUE_BASE,
    REGISTER_QUEUE_SIZE, REGISTER_TAIL, REGISTER_VERSION, VERSION,
};

/// The two rings in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rings {
    /// The address of the submission ring, a multiple of 64.
    pub submissions: u64,
    /// The address of the completion ring, a multiple of 32.
    pub completions: u64,
    /// The entries of each ring, a power of two from 2 to [`MAX_QUEUE_SIZE`].
    pub entries: u32,
}

impl Rings {
    /// Rings of `entries` each at these addresses.
    pub const fn new(submissions: u64, completions: u64, entries: u32) -> Rings {
        Rings { submissions, completions, entries }
    }

    fn submission(&self, index: u64) -> u64 {
        self.submissions + index % u64::from(self.entries) * size_of::<Descriptor>() as u64
    }

    fn completion(&self, index: u64) -> u64 {
        self.completions + index % u64::from(self.entries) * size_of::<Completion>() as u64
    }
}

/// A driver's position in its rings.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(clippy::exhaustive_structs, reason = "the layout in memory")]
pub struct Progress {
    /// Jobs that the device had completed before the rings were set up.
    pub earlier: u64,
    /// Jobs put into the submission ring.
    pub submitted: u64,
    /// Completions taken out of the completion ring.
    pub completed: u64,
}

impl Progress {
    /// Jobs submitted and not completed.
    pub const fn pending(&self) -> u64 {
        self.submitted - self.completed
    }
}

/// The driver of one engine's queue.
#[derive(Debug)]
pub struct GuestDriver<P> {
    platform: P,
    rings: Rings,
    progress: Progress,
}

impl<P: Platform> GuestDriver<P> {
    /// Clears the completion ring, sets up the rings and enables the queue.
    pub fn start(platform: P, rings: Rings) -> Result<GuestDriver<P>, GuestError<P::Error>> {
        let Rings { submissions, completions, entries } = rings;
        let mut driver = GuestDriver { platform, rings, progress: Progress::default() };
        let (id, version) = (driver.read_u32(REGISTER_ID)?, driver.read_u32(REGISTER_VERSION)?);
        if (id, version) != (ID, VERSION) {
            return Err(GuestError::NotAnEngine { id, version });
        }
        if !(2..=MAX_QUEUE_SIZE).contains(&entries) {
            return Err(GuestError::RingsRefused(rings));
        }
        let empty = vec![0; entries as usize * size_of::<Completion>()];
        driver.platform.write_memory(completions, &empty).map_err(GuestError::Access)?;
        driver.write_u32(REGISTER_CONTROL, 0)?;
        driver.write_u32(REGISTER_QUEUE_SIZE, entries)?;
        driver.write_u64(REGISTER_QUEUE_BASE, submissions)?;
        driver.write_u64(REGISTER_COMPLETION_BASE, completions)?;
        driver.write_u32(REGISTER_CONTROL, CONTROL_ENABLE)?;
        if driver.read_u32(REGISTER_CONTROL)? != CONTROL_ENABLE {
            return Err(GuestError::RingsRefused(rings));
        }
        driver.progress.earlier = driver.read_u64(REGISTER_COMPLETED)?;
        Ok(driver)
    }

    /// Continues where another driver of the same rings stopped, on a device with the migrated state.
    pub fn resume(platform: P, rings: Rings, progress: Progress) -> GuestDriver<P> {
        GuestDriver { platform, rings, progress }
    }

    /// Returns the platform.
    pub fn platform(&mut self) -> &mut P {
        &mut self.platform
    }

    /// Ends the driver and returns its platform. The device keeps its rings.
    pub fn into_platform(self) -> P {
        self.platform
    }

    /// Returns the position in the rings.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Returns the number of free entries in the submission ring.
    pub fn room(&self) -> u64 {
        u64::from(self.rings.entries).saturating_sub(self.progress.pending())
    }

    /// Enables these interrupt causes (`INTERRUPT_` bits) and disables all others.
    pub fn enable_interrupts(&mut self, causes: u32) -> Result<(), GuestError<P::Error>> {
        self.write_u32(REGISTER_INTERRUPT_ENABLE, causes)
    }

    /// Clears these causes, so that each of them can interrupt again.
    ///
    /// Call it before reading the completion ring: a job that completes in between then interrupts.
    pub fn acknowledge(&mut self, causes: u32) -> Result<(), GuestError<P::Error>> {
        self.write_u32(REGISTER_INTERRUPT_STATUS, causes)?;
        // The write may be posted, as on a PCI bus or by a vfio-user client. It has arrived once a read is answered;
        // otherwise it could clear the cause of a job that completes after the ring was read.
        self.read_u32(REGISTER_INTERRUPT_STATUS).map(drop)
    }

    /// Adds a job to the submission ring without ringing the doorbell.
    pub fn put(&mut self, job: &Descriptor) -> Result<(), GuestError<P::Error>> {
        if self.room() == 0 {
            return Err(GuestError::Full);
        }
        let address = self.rings.submission(self.progress.submitted);
        self.platform.write_memory(address, job.as_bytes()).map_err(GuestError::Access)?;
        self.progress.submitted += 1;
        Ok(())
    }

    /// Rings the doorbell for all jobs in the submission ring.
    pub fn ring(&mut self) -> Result<(), GuestError<P::Error>> {
        fence(Ordering::Release);
        // The index wraps at 2^32.
        self.write_u32(REGISTER_TAIL, self.progress.submitted as u32)
    }

    /// Adds a job to the submission ring and rings the doorbell.
    pub fn submit(&mut self, job: &Descriptor) -> Result<(), GuestError<P::Error>> {
        self.put(job)?;
        self.ring()
    }

    /// Takes the next completion out of the ring; `None` if it has not arrived.
    ///
    /// A misplaced completion is consumed too: after [`GuestError::Misplaced`] the driver continues with the next one.
    pub fn take_completion(&mut self) -> Result<Option<Completion>, GuestError<P::Error>> {
        let Progress { earlier, completed, .. } = self.progress;
        let address = self.rings.completion(completed);
        let mut found = [0; 8];
        let at = address + offset_of!(Completion, sequence) as u64;
        self.platform.read_memory(at, &mut found).map_err(GuestError::Access)?;
        let expected = earlier.wrapping_add(completed).wrapping_add(1);
        // The entry's last completion, or none since the ring was cleared.
        let stale = match completed.checked_sub(u64::from(self.rings.entries)) {
            Some(_) => expected.wrapping_sub(u64::from(self.rings.entries)),
            None => 0,
        };
        let found = u64::from_ne_bytes(found);
        if found == stale {
            return Ok(None);
        }
        // The device writes the sequence last: with it visible, the rest is valid after this fence.
        fence(Ordering::Acquire);
        let mut completion = Completion::new_zeroed();
        self.platform.read_memory(address, completion.as_mut_bytes()).map_err(GuestError::Access)?;
        self.progress.completed += 1;
        if completion.sequence != expected || completion.index != completed as u32 {
            return Err(GuestError::Misplaced { expected, completion });
        }
        Ok(Some(completion))
    }

    /// Submits a job and returns its completion, calling `wait` before each look at the ring.
    ///
    /// All earlier jobs must be complete.
    pub fn execute(
        &mut self,
        job: &Descriptor,
        mut wait: impl FnMut(&mut P) -> Result<(), P::Error>,
    ) -> Result<Completion, GuestError<P::Error>> {
        self.submit(job)?;
        loop {
            wait(&mut self.platform).map_err(GuestError::Access)?;
            if let Some(completion) = self.take_completion()? {
                return Ok(completion);
            }
        }
    }

    /// Reads a 32-bit register.
    pub fn read_u32(&mut self, register: u64) -> Result<u32, GuestError<P::Error>> {
        let mut value = [0; 4];
        self.platform.read_register(register, &mut value).map_err(GuestError::Access)?;
        Ok(u32::from_le_bytes(value))
    }

    /// Reads a 64-bit register.
    pub fn read_u64(&mut self, register: u64) -> Result<u64, GuestError<P::Error>> {
        let mut value = [0; 8];
        self.platform.read_register(register, &mut value).map_err(GuestError::Access)?;
        Ok(u64::from_le_bytes(value))
    }

    /// Writes a 32-bit register.
    pub fn write_u32(&mut self, register: u64, value: u32) -> Result<(), GuestError<P::Error>> {
        self.platform.write_register(register, &value.to_le_bytes()).map_err(GuestError::Access)
    }

    /// Writes a 64-bit register.
    pub fn write_u64(&mut self, register: u64, value: u64) -> Result<(), GuestError<P::Error>> {
        self.platform.write_register(register, &value.to_le_bytes()).map_err(GuestError::Access)
    }
}
