//! The program of a disk, an NVM Express controller.
//!
//! Several lanes write pieces of the disk and read them back, each with one command in flight. Every piece that was ever
//! written is read once more at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use whimbrel_models::accel::guest::Platform;
use whimbrel_models::nvme::guest::{Command, Completion, FUA, GuestDriver, GuestError, Position};
use whimbrel_uapi::pci::VFIO_PCI_MSIX_IRQ_INDEX;
use whimbrel_user::Device;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::super::machine::{Memory, Share};
use super::super::messages::Finished;
use super::super::pieces::{LANES, Layout, PIECE_BYTES, Task, task};
use super::interrupt::Interrupt;
use super::pace::Pace;
use super::seat::Seat;
use super::variables::Variables;
use crate::failure::Failure;

/// Offset of the lanes in a share.
const LANE_TABLE: u64 = 0x2000;
/// Offset of the driver's position in a share: its length, then its bytes.
const POSITION: u64 = 0x3000;
/// The most bytes of a position.
const MAX_POSITION: u64 = 0x1000 - 8;
/// Offset of the memory for queues in a share, and its end.
const QUEUES: u64 = 0x10000;
const QUEUES_END: u64 = 0x80000;

/// Entries of the admin queues and of the pair of I/O queues.
const ADMIN_ENTRIES: u32 = 8;
const ENTRIES: u32 = 2 * LANES as u32;
/// The pair of I/O queues, and its interrupt vector.
const QUEUE: u16 = 1;
/// Bytes of a logical block.
const BLOCK: u64 = 512;
/// The namespace's attributes in its identify data: bit 0 is write protection.
const ATTRIBUTES: usize = 99;

/// In place of an identifier: the lane has no command in flight.
const IDLE: u64 = u64::MAX;
/// Interval between two looks at a command of the set-up or of the last checks.
const LOOK: Duration = Duration::from_micros(100);
/// Timeout for the last commands.
const DRAINING: Duration = Duration::from_secs(10);

/// The lanes, as they are in memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Lanes {
    disk_bytes: u64,
    lanes: [Lane; LANES as usize],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Lane {
    /// The number of the task in flight or, in an idle lane, of the next one.
    task: u64,
    /// The identifier of the command in flight, or [`IDLE`].
    identifier: u64,
}

impl Lanes {
    fn load(memory: &Memory, share: Share) -> Result<Lanes, Failure> {
        let mut lanes = Lanes::new_zeroed();
        let at = GuestAddress(share.start + LANE_TABLE);
        memory.read_slice(lanes.as_mut_bytes(), at).map_err(|error| Failure::from_error(&error))?;
        Ok(lanes)
    }

    fn store(&self, memory: &Memory, share: Share) -> Result<(), Failure> {
        let at = GuestAddress(share.start + LANE_TABLE);
        memory.write_slice(self.as_bytes(), at).map_err(|error| Failure::from_error(&error))
    }
}

fn load_position(memory: &Memory, share: Share) -> Result<Position, Failure> {
    let mut length = [0; 8];
    let read = |bytes: &mut [u8], at| {
        memory.read_slice(bytes, GuestAddress(share.start + at)).map_err(|error| Failure::from_error(&error))
    };
    read(&mut length, POSITION)?;
    let mut bytes = vec![0; u64::from_le_bytes(length).min(MAX_POSITION) as usize];
    read(&mut bytes, POSITION + 8)?;
    Position::from_bytes(&bytes).ok_or_else(|| Failure::new("the driver's position in memory is damaged"))
}

fn store_position(memory: &Memory, share: Share, position: &Position) -> Result<(), Failure> {
    let bytes = position.to_bytes();
    if bytes.len() as u64 > MAX_POSITION {
        return Err(Failure::new(format!("the driver's position has {} bytes", bytes.len())));
    }
    let write = |bytes: &[u8], at| {
        memory.write_slice(bytes, GuestAddress(share.start + at)).map_err(|error| Failure::from_error(&error))
    };
    write(&(bytes.len() as u64).to_le_bytes(), POSITION)?;
    write(&bytes, POSITION + 8)
}

fn failure(error: GuestError<Failure>) -> Failure {
    match error {
        GuestError::Access(failure) => failure,
        other => Failure::new(other.to_string()),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the driver calls it")]
fn look_again(_: &mut Seat) -> Result<(), Failure> {
    std::thread::sleep(LOOK);
    Ok(())
}

/// Prepares the controller, its queues and the variables.
pub(super) fn set_up(device: Box<dyn Device>, memory: &Arc<Memory>, share: Share) -> Result<(), Failure> {
    let name = device.name().to_string();
    let seat = Seat { device, memory: memory.clone() };
    let queues = share.start + QUEUES..share.start + QUEUES_END;
    let mut driver = GuestDriver::start(seat, queues, ADMIN_ENTRIES, look_again).map_err(failure)?;
    let namespace = driver.identify(0, 1).map_err(failure)?;
    let blocks = namespace.first_chunk().map_or(0, |blocks| u64::from_le_bytes(*blocks));
    let disk_bytes = blocks.saturating_mul(BLOCK);
    if namespace.get(ATTRIBUTES).is_none_or(|attributes| attributes & 1 != 0) {
        return Err(Failure::new(format!("{name}: the disk is write-protected, and the demo writes to it"))
            .hint("omit the setting readonly"));
    }
    Layout::new(share, disk_bytes)
        .map_err(|why| Failure::new(format!("{name}: the disk does not suit the demo: {why}")))?;
    driver.create_queue(QUEUE, ENTRIES, Some(QUEUE)).map_err(failure)?;
    let lanes = Lanes { disk_bytes, lanes: [Lane { task: 0, identifier: IDLE }; LANES as usize] };
    lanes.store(memory, share)?;
    Variables::default().store(memory, share)?;
    store_position(memory, share, driver.position())
}

/// The program at a disk.
pub(super) struct Program {
    driver: GuestDriver<Seat>,
    share: Share,
    layout: Layout,
    lanes: Lanes,
    variables: Variables,
    interrupt: Interrupt,
    pace: Pace,
    piece: Vec<u8>,
}

impl Program {
    /// Continues from the variables in memory. `rate` is in bytes of memory per second.
    pub(super) fn new(
        device: Box<dyn Device>,
        memory: &Arc<Memory>,
        share: Share,
        rate: u64,
    ) -> Result<Program, Failure> {
        let mut seat = Seat { device, memory: memory.clone() };
        let interrupt = Interrupt::new(&mut *seat.device, VFIO_PCI_MSIX_IRQ_INDEX, QUEUE.into())?;
        let (variables, lanes) = (Variables::load(memory, share)?, Lanes::load(memory, share)?);
        let position = load_position(memory, share)?;
        Ok(Program {
            driver: GuestDriver::resume(seat, position, look_again),
            share,
            layout: Layout::new(share, lanes.disk_bytes).map_err(Failure::new)?,
            lanes,
            variables,
            interrupt,
            pace: Pace::new(rate, PIECE_BYTES),
            piece: vec![0; PIECE_BYTES as usize],
        })
    }

    /// Takes the next completion, if any.
    fn take_completion(&mut self) -> Result<bool, Failure> {
        match self.driver.take_completion(QUEUE) {
            Ok(None) => return Ok(false),
            Ok(Some(completion)) => self.complete(&completion)?,
            Err(GuestError::Unexpected(_)) => self.variables.misplaced += 1,
            Err(error) => return Err(failure(error)),
        }
        Ok(true)
    }

    fn complete(&mut self, completion: &Completion) -> Result<(), Failure> {
        let identifier = u64::from(completion.identifier);
        let Some(lane) = self.lanes.lanes.iter().position(|lane| lane.identifier == identifier) else {
            self.variables.misplaced += 1;
            return Ok(());
        };
        let (number, at) = (lane as u64, self.lanes.lanes[lane].task);
        let is_right = completion.is_success()
            && match task(at, &self.layout) {
                Task::Write(_) | Task::Flush => true,
                Task::Read(round) => {
                    self.holds(self.layout.buffer(number, at), &self.layout.contents(number, round))?
                }
            };
        self.variables.wrong += u64::from(!is_right);
        self.variables.progress.completed += 1;
        self.lanes.lanes[lane] = Lane { task: at + 1, identifier: IDLE };
        Ok(())
    }

    fn holds(&mut self, address: u64, expected: &[u8]) -> Result<bool, Failure> {
        self.driver.platform().read_memory(address, &mut self.piece)?;
        Ok(self.piece == expected)
    }

    /// Submits a command in each idle lane, as far as the rate allows the reads.
    fn submit(&mut self) -> Result<(), Failure> {
        for lane in 0..LANES {
            let Lane { task: at, identifier } = self.lanes.lanes[lane as usize];
            if identifier != IDLE {
                continue;
            }
            let buffer = self.layout.buffer(lane, at);
            let blocks = (PIECE_BYTES / BLOCK) as u32;
            let (command, bytes) = match task(at, &self.layout) {
                Task::Write(round) => {
                    self.driver.platform().write_memory(buffer, &self.layout.contents(lane, round))?;
                    let bits = if Layout::is_forced(round) { FUA } else { 0 };
                    let start = self.layout.offset(lane, round) / BLOCK;
                    (Command::write(start, blocks).with(bits), PIECE_BYTES)
                }
                Task::Read(_) if !self.pace.spend(PIECE_BYTES) => continue,
                Task::Read(round) => {
                    (Command::read(self.layout.offset(lane, round) / BLOCK, blocks), PIECE_BYTES)
                }
                Task::Flush => (Command::flush(), 0),
            };
            let identifier = self.driver.submit(QUEUE, command, buffer, bytes).map_err(failure)?;
            self.lanes.lanes[lane as usize].identifier = identifier.into();
            self.variables.progress.submitted += 1;
        }
        Ok(())
    }

    fn store(&mut self) -> Result<(), Failure> {
        let memory = self.driver.platform().memory.clone();
        self.variables.store(&memory, self.share)?;
        self.lanes.store(&memory, self.share)?;
        store_position(&memory, self.share, self.driver.position())
    }

    /// Reads a piece that was written in a round, and returns whether it is right.
    fn is_kept(&mut self, lane: u64, round: u64) -> Result<bool, Failure> {
        let (start, blocks) = (self.layout.offset(lane, round) / BLOCK, (PIECE_BYTES / BLOCK) as u32);
        let buffer = self.layout.buffer(lane, 0);
        let command = Command::read(start, blocks);
        let completion = self.driver.execute(QUEUE, command, buffer, PIECE_BYTES).map_err(failure)?;
        Ok(completion.is_success() && self.holds(buffer, &self.layout.contents(lane, round))?)
    }
}

impl super::Program for Program {
    fn wait(&self) {
        self.interrupt.wait();
    }

    fn step(&mut self, more: bool) -> Result<(), Failure> {
        while self.variables.progress.pending() > 0 && self.take_completion()? {}
        self.pace.earn();
        if more {
            self.submit()?;
        }
        self.store()
    }

    fn resumed(&mut self) {
        self.pace.resume();
    }

    fn finish(&mut self) -> Result<Finished, Failure> {
        let until = Instant::now() + DRAINING;
        while self.variables.progress.pending() > 0 && Instant::now() < until {
            self.wait();
            self.step(false)?;
        }
        let (mut blocks_checked, mut blocks_wrong) = (0, 0);
        let is_idle = self.variables.progress.pending() == 0;
        for lane in 0..if is_idle { LANES } else { 0 } {
            for round in self.layout.kept(self.lanes.lanes[lane as usize].task) {
                blocks_checked += 1;
                blocks_wrong += u64::from(!self.is_kept(lane, round)?);
            }
        }
        Ok(Finished {
            program: self.variables.books(),
            completed_by_device: None,
            blocks_checked,
            blocks_wrong,
        })
    }
}
