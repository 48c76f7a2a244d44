//! A small host driver for an NVM Express controller: admin queue, I/O queues, and the commands of both.
//!
//! It is written from the specification's text, and shares no number with the controller. [`GuestDriver`] accesses the
//! device and memory through a [`Platform`], so that it runs on a [`DeviceFile`](whimbrel_device::DeviceFile) in this
//! process, on a VFIO device that a program owns, or on a vfio-user client. Its [`Position`] is plain data, which a guest
//! keeps in its memory as bytes: a driver that resumes from it continues at the destination of a migration.
//!
//! ```
//! # use std::fs::File;
//! # use whimbrel_memory::FileOffset;
//! use whimbrel_device::DeviceFile;
//! use whimbrel_models::nvme::guest::{Command, GuestDriver};
//! use whimbrel_models::nvme::{Nvme, NvmeConfig};
//! # use whimbrel_uapi::type1::DmaMapFlags;
//!
//! # let folder = tempfile::tempdir()?;
//! let config = NvmeConfig::new(folder.path().join("disk.img")).size(1 << 20);
//! let device = DeviceFile::try_new("disk", |bus| Nvme::new(config.clone(), config.open_image()?, bus))?;
//! # let memory = File::from(rustix::fs::memfd_create(c"doc", rustix::fs::MemfdFlags::empty())?);
//! # memory.set_len(1 << 20)?;
//! // 1 MiB of memory at IOVA 0: the queues first, then data.
//! device.bus().dma().map(0, 1 << 20, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(memory, 0))?;
//! device.bus().dma().write(0xf0000, b"one block of data")?;
//!
//! // A `Worker` would let the device work on a thread of its own.
//! let wait = |device: &mut DeviceFile| {
//!     device.advance(std::time::Duration::ZERO);
//!     Ok(())
//! };
//! let mut driver = GuestDriver::start(device, 0..0xf0000, 8, wait)?;
//! driver.create_queue(1, 8, None)?;
//! assert!(driver.execute(1, Command::write(3, 1), 0xf0000, 512)?.is_success());
//! assert!(driver.execute(1, Command::flush(), 0, 0)?.is_success());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod command;
mod error;
mod position;
mod queue;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

pub use self::command::{Command, Completion, DEAC, FUA, ranges};
pub use self::error::GuestError;
pub use self::position::Position;
use self::queue::QueuePair;
pub use crate::accel::guest::Platform;

/// Registers of the specification.
const CAP: u64 = 0x0;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;

/// CC with entries of 64 and 16 bytes, pages of 4 KiB and the NVM command set; the lowest bit enables.
const CONFIGURATION: u32 = 0x0046_0000;

/// Time for a command.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The driver's wait for a device: called before each look at a queue or at the controller's status.
type Wait<P> = Box<dyn FnMut(&mut P) -> Result<(), <P as Platform>::Error> + Send>;

/// The driver of one controller.
pub struct GuestDriver<P: Platform> {
    platform: P,
    position: Position,
    wait: Wait<P>,
}

impl<P: Platform> GuestDriver<P> {
    /// Resets the controller and enables it with admin queues of `entries` entries. `memory` is for queues and lists.
    pub fn start(
        platform: P,
        memory: Range<u64>,
        entries: u32,
        wait: impl FnMut(&mut P) -> Result<(), P::Error> + Send + 'static,
    ) -> Result<GuestDriver<P>, GuestError<P::Error>> {
        let position = Position {
            queues: BTreeMap::new(),
            free: memory.start.saturating_add(4096)..memory.end,
            page: memory.start,
        };
        let mut driver = GuestDriver { platform, position, wait: Box::new(wait) };
        driver.reset()?;
        let admin = driver.new_pair(entries)?;
        let attributes = (entries - 1) << 16 | (entries - 1);
        driver.write_u32(AQA, attributes)?;
        driver.write_u64(ASQ, admin.submissions)?;
        driver.write_u64(ACQ, admin.completions)?;
        driver.position.queues.insert(0, admin);
        driver.write_u32(CC, CONFIGURATION | 1)?;
        driver.await_status(0b1, 0b1)?;
        Ok(driver)
    }

    /// Continues where another driver of the same memory stopped, on a device with the migrated state.
    pub fn resume(
        platform: P,
        position: Position,
        wait: impl FnMut(&mut P) -> Result<(), P::Error> + Send + 'static,
    ) -> GuestDriver<P> {
        GuestDriver { platform, position, wait: Box::new(wait) }
    }

    /// Returns the platform.
    pub fn platform(&mut self) -> &mut P {
        &mut self.platform
    }

    /// Returns the position, for a guest to keep in its memory.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Ends the driver and returns its platform and position. The device keeps its queues.
    pub fn into_parts(self) -> (P, Position) {
        (self.platform, self.position)
    }

    /// Returns the number of commands in flight on a queue.
    pub fn in_flight(&self, queue: u16) -> usize {
        self.position.queues.get(&queue).map_or(0, |pair| pair.in_flight.len())
    }

    /// Disables the controller, and waits until it is not ready. Its queues are gone.
    pub fn reset(&mut self) -> Result<(), GuestError<P::Error>> {
        self.write_u32(CC, 0)?;
        self.position.queues.clear();
        self.await_status(0b1, 0)
    }

    /// Shuts the controller down, and waits until it has.
    pub fn shut_down(&mut self) -> Result<(), GuestError<P::Error>> {
        let configuration = self.read_u32(CC)?;
        self.write_u32(CC, configuration & !0xc000 | 0x4000)?;
        self.await_status(0b1100, 0b1000)
    }

    /// Creates a pair of I/O queues, with interrupts by a vector.
    pub fn create_queue(
        &mut self,
        id: u16,
        entries: u32,
        vector: Option<u16>,
    ) -> Result<(), GuestError<P::Error>> {
        let pair = self.new_pair(entries)?;
        let shape = (entries - 1) << 16 | u32::from(id);
        let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | 0b10);
        let completions =
            Command { prp1: pair.completions, ..Command::admin(0x05, [shape, interrupts | 1, 0, 0, 0, 0]) };
        self.execute_own(completions)?;
        let submissions = Command {
            prp1: pair.submissions,
            ..Command::admin(0x01, [shape, u32::from(id) << 16 | 1, 0, 0, 0, 0])
        };
        self.execute_own(submissions)?;
        self.position.queues.insert(id, pair);
        Ok(())
    }

    /// Deletes a pair of I/O queues.
    pub fn delete_queue(&mut self, id: u16) -> Result<(), GuestError<P::Error>> {
        self.execute_own(Command::admin(0x00, [id.into(), 0, 0, 0, 0, 0]))?;
        self.execute_own(Command::admin(0x04, [id.into(), 0, 0, 0, 0, 0]))?;
        self.position.queues.remove(&id);
        Ok(())
    }

    /// Identify: returns a data structure of 4096 bytes.
    pub fn identify(&mut self, structure: u8, namespace: u32) -> Result<Vec<u8>, GuestError<P::Error>> {
        let command = Command::admin(0x06, [structure.into(), 0, 0, 0, 0, 0]);
        self.read_page(Command { namespace, ..command }, 4096)
    }

    /// Returns the first bytes of a log page, at most 4096 and a multiple of 4.
    pub fn log_page(&mut self, page: u8, bytes: u32) -> Result<Vec<u8>, GuestError<P::Error>> {
        let dword10 = (bytes / 4 - 1) << 16 | u32::from(page);
        let command = Command::admin(0x02, [dword10, 0, 0, 0, 0, 0]);
        self.read_page(Command { namespace: u32::MAX, ..command }, bytes)
    }

    /// Returns a feature's value.
    pub fn feature(&mut self, feature: u8, dword11: u32) -> Result<u32, GuestError<P::Error>> {
        let command = Command::admin(0x0a, [feature.into(), dword11, 0, 0, 0, 0]);
        Ok(self.execute_own(command)?.result)
    }

    /// Sets a feature, and returns dword 0 of the completion.
    pub fn set_feature(&mut self, feature: u8, dword11: u32) -> Result<u32, GuestError<P::Error>> {
        let command = Command::admin(0x09, [feature.into(), dword11, 0, 0, 0, 0]);
        Ok(self.execute_own(command)?.result)
    }

    /// Submits a command with data of `bytes` bytes at `address`, and returns its identifier.
    pub fn submit(
        &mut self,
        queue: u16,
        command: Command,
        address: u64,
        bytes: u64,
    ) -> Result<u16, GuestError<P::Error>> {
        let pair = self.pair(queue)?;
        let identifier = pair.free().ok_or(GuestError::Full(queue))?;
        let list = pair.lists + u64::from(identifier) * 4096;
        let (prp1, prp2) = self.place(address, bytes, list)?;
        self.submit_as_it_is(queue, Command { identifier, prp1, prp2, ..command })?;
        Ok(identifier)
    }

    /// Submits a command with its own identifier and PRPs.
    pub fn submit_as_it_is(&mut self, queue: u16, command: Command) -> Result<(), GuestError<P::Error>> {
        let pair = self.pair(queue)?;
        let at = pair.submissions + u64::from(pair.tail) * 64;
        pair.tail = (pair.tail + 1) % pair.entries;
        pair.in_flight.insert(command.identifier);
        let tail = pair.tail;
        self.platform.write_memory(at, &command.to_bytes()).map_err(GuestError::Access)?;
        fence(Ordering::Release);
        self.write_u32(doorbell(queue, 0), tail)
    }

    /// Takes the next completion of a queue; `None` if it has not arrived.
    pub fn take_completion(&mut self, queue: u16) -> Result<Option<Completion>, GuestError<P::Error>> {
        let pair = self.pair(queue)?;
        let (at, phase) = (pair.completions + u64::from(pair.head) * 16, pair.phase);
        let mut entry = [0; 16];
        self.platform.read_memory(at + 12, &mut entry[12..]).map_err(GuestError::Access)?;
        if Completion::from_bytes(entry, phase).is_none() {
            return Ok(None);
        }
        // With the phase tag visible, the rest is valid after this fence.
        fence(Ordering::Acquire);
        self.platform.read_memory(at, &mut entry).map_err(GuestError::Access)?;
        let Some(completion) = Completion::from_bytes(entry, phase) else { return Ok(None) };
        let pair = self.pair(queue)?;
        pair.head = (pair.head + 1) % pair.entries;
        pair.phase ^= pair.head == 0;
        let is_expected = completion.queue == queue
            && u32::from(completion.head) < pair.entries
            && pair.in_flight.remove(&completion.identifier);
        pair.fetched = completion.head.into();
        let head = pair.head;
        self.write_u32(doorbell(queue, 1), head)?;
        if is_expected { Ok(Some(completion)) } else { Err(GuestError::Unexpected(completion)) }
    }

    /// Waits for the next completion of a queue.
    pub fn await_completion(&mut self, queue: u16) -> Result<Completion, GuestError<P::Error>> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            (self.wait)(&mut self.platform).map_err(GuestError::Access)?;
            if let Some(completion) = self.take_completion(queue)? {
                return Ok(completion);
            }
            if Instant::now() > deadline {
                let status = self.read_u32(CSTS)?;
                let has_failed = status & 0b10 != 0;
                return Err(if has_failed { GuestError::Failed(status) } else { GuestError::Timeout(queue) });
            }
        }
    }

    /// Submits a command and waits for its completion. No other commands of the queue may be in flight.
    pub fn execute(
        &mut self,
        queue: u16,
        command: Command,
        address: u64,
        bytes: u64,
    ) -> Result<Completion, GuestError<P::Error>> {
        let identifier = self.submit(queue, command, address, bytes)?;
        let completion = self.await_completion(queue)?;
        if completion.identifier == identifier {
            Ok(completion)
        } else {
            Err(GuestError::Unexpected(completion))
        }
    }

    /// Reads a 32-bit register.
    pub fn read_u32(&mut self, register: u64) -> Result<u32, GuestError<P::Error>> {
        let mut value = [0; 4];
        self.platform.read_register(register, &mut value).map_err(GuestError::Access)?;
        Ok(u32::from_le_bytes(value))
    }

    /// Writes a 32-bit register.
    pub fn write_u32(&mut self, register: u64, value: u32) -> Result<(), GuestError<P::Error>> {
        self.platform.write_register(register, &value.to_le_bytes()).map_err(GuestError::Access)
    }

    /// Writes a 64-bit register in halves, as drivers do.
    fn write_u64(&mut self, register: u64, value: u64) -> Result<(), GuestError<P::Error>> {
        self.write_u32(register, value as u32)?;
        self.write_u32(register + 4, (value >> 32) as u32)
    }

    /// Returns the two PRP entries for data, with a list at `list` if it takes one.
    fn place(&mut self, address: u64, bytes: u64, list: u64) -> Result<(u64, u64), GuestError<P::Error>> {
        let second = (address & !4095) + 4096;
        let end = address + bytes;
        if end <= second {
            return Ok((address, 0));
        }
        if end <= second + 4096 {
            return Ok((address, second));
        }
        let pages: Vec<u8> = (second..end).step_by(4096).flat_map(u64::to_le_bytes).collect();
        self.platform.write_memory(list, &pages).map_err(GuestError::Access)?;
        Ok((address, list))
    }

    /// Executes a command of the driver's own, which has to succeed.
    fn execute_own(&mut self, command: Command) -> Result<Completion, GuestError<P::Error>> {
        // Its own PRP may be that of a queue.
        let identifier = self.pair(0)?.free().ok_or(GuestError::Full(0))?;
        self.submit_as_it_is(0, Command { identifier, ..command })?;
        let completion = self.await_completion(0)?;
        if completion.is_success() && completion.identifier == identifier {
            Ok(completion)
        } else {
            Err(GuestError::Command { opcode: command.opcode, completion })
        }
    }

    fn read_page(&mut self, command: Command, bytes: u32) -> Result<Vec<u8>, GuestError<P::Error>> {
        let page = self.position.page;
        self.execute_own(Command { prp1: page, ..command })?;
        let mut data = vec![0; bytes as usize];
        self.platform.read_memory(page, &mut data).map_err(GuestError::Access)?;
        Ok(data)
    }

    fn pair(&mut self, queue: u16) -> Result<&mut QueuePair, GuestError<P::Error>> {
        self.position.queues.get_mut(&queue).ok_or(GuestError::NoQueue(queue))
    }

    /// Returns a pair in free memory, with an empty completion queue.
    fn new_pair(&mut self, entries: u32) -> Result<QueuePair, GuestError<P::Error>> {
        let Range { start, end } = self.position.free;
        let needed = QueuePair::bytes(entries);
        if !start.is_multiple_of(4096) || end.saturating_sub(start) < needed {
            return Err(GuestError::Memory { needed });
        }
        self.position.free.start += needed;
        let pair = QueuePair::new(start, entries);
        let empty = vec![0; entries as usize * 16];
        self.platform.write_memory(pair.completions, &empty).map_err(GuestError::Access)?;
        Ok(pair)
    }

    /// Waits until bits of CSTS have a value, as long as the controller says that it may take.
    fn await_status(&mut self, mask: u32, expected: u32) -> Result<(), GuestError<P::Error>> {
        let units = self.read_u32(CAP)? >> 24;
        let deadline = Instant::now() + Duration::from_millis(500) * units.max(1);
        loop {
            let status = self.read_u32(CSTS)?;
            if status & mask == expected {
                return Ok(());
            }
            if status & 0b10 != 0 && expected != 0 {
                return Err(GuestError::Failed(status));
            }
            if Instant::now() > deadline {
                return Err(GuestError::NotReady { expected, status });
            }
            (self.wait)(&mut self.platform).map_err(GuestError::Access)?;
        }
    }
}

/// Returns the offset of a queue's doorbell: 0 for its tail, 1 for its head.
fn doorbell(queue: u16, side: u64) -> u64 {
    0x1000 + (u64::from(queue) * 2 + side) * 4
}

impl<P: Platform + fmt::Debug> fmt::Debug for GuestDriver<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestDriver")
            .field("platform", &self.platform)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
