//! The program of a DMA engine.
//!
//! Job by job it fills a block, copies it, has the copy summed, and changes a piece of the device's own state.

use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_models::accel::guest::{GuestDriver, GuestError, Platform, Rings};
use whimbrel_models::accel::{
    Completion, INTERRUPT_COMPLETION, OPERATION_CHECKSUM, REGISTER_COMPLETED, REGISTER_STATE_BYTES,
};
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX};
use whimbrel_user::Device;

use super::super::jobs::{FIRST_JOBS, JOBS, Layout, PLACES, RING_ENTRIES, filled, job};
use super::super::machine::{Memory, Share};
use super::super::messages::Finished;
use super::interrupt::Interrupt;
use super::pace::Pace;
use super::seat::Seat;
use super::variables::Variables;
use crate::failure::Failure;

/// Offsets of the two rings in a share.
const SUBMISSIONS: u64 = 0x10000;
const COMPLETIONS: u64 = 0x20000;

/// Offset of the command register in configuration space.
const COMMAND: u64 = 0x04;
/// Memory space and bus master.
const COMMAND_ENABLE: u16 = 0x0006;
/// Offset of the pointer to the first capability.
const CAPABILITIES: u64 = 0x34;
const CAPABILITY_MSI: u8 = 0x05;
/// Offset of the control register in the MSI capability, and its enable bit.
const MSI_CONTROL: u64 = 2;
const MSI_ENABLE: u16 = 0x0001;
/// The most capabilities that fit configuration space.
const MAX_CAPABILITIES: usize = 48;

/// Timeout for the last jobs.
const DRAINING: Duration = Duration::from_secs(10);

fn rings(share: Share) -> Rings {
    Rings::new(share.start + SUBMISSIONS, share.start + COMPLETIONS, RING_ENTRIES as u32)
}

fn failure(error: GuestError<Failure>) -> Failure {
    match error {
        GuestError::Access(failure) => failure,
        other => Failure::new(other.to_string()),
    }
}

/// The program at an engine.
pub(super) struct Program {
    driver: GuestDriver<Seat>,
    share: Share,
    layout: Layout,
    variables: Variables,
    interrupt: Interrupt,
    pace: Pace,
    block: Vec<u8>,
}

/// Sets bits of a register in configuration space.
fn set_bits(device: &mut dyn Device, offset: u64, bits: u16) -> Result<(), Failure> {
    let mut bytes = [0; 2];
    device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, offset, &mut bytes)?;
    let value = u16::from_le_bytes(bytes) | bits;
    Ok(device.write_region(VFIO_PCI_CONFIG_REGION_INDEX, offset, &value.to_le_bytes())?)
}

/// Enables DMA and MSI in configuration space, as a guest's kernel does.
fn enable(device: &mut dyn Device) -> Result<(), Failure> {
    set_bits(device, COMMAND, COMMAND_ENABLE)?;
    let mut next = [0];
    device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, CAPABILITIES, &mut next)?;
    for _ in 0..MAX_CAPABILITIES {
        let (at, mut header) = (u64::from(next[0]), [0; 2]);
        if at == 0 {
            break;
        }
        device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, at, &mut header)?;
        if header[0] == CAPABILITY_MSI {
            return set_bits(device, at + MSI_CONTROL, MSI_ENABLE);
        }
        next = [header[1]];
    }
    Ok(())
}

/// Prepares the engine and its variables.
pub(super) fn set_up(mut device: Box<dyn Device>, memory: &Arc<Memory>, share: Share) -> Result<(), Failure> {
    enable(&mut *device)?;
    let seat = Seat { device, memory: memory.clone() };
    let mut driver = GuestDriver::start(seat, rings(share)).map_err(failure)?;
    driver.enable_interrupts(INTERRUPT_COMPLETION).map_err(failure)?;
    Variables { progress: driver.progress(), ..Variables::default() }.store(memory, share)
}

/// Returns the device's counter of completed jobs.
pub(super) fn completed_by_device(device: &mut dyn Device) -> Result<u64, Failure> {
    read_u64(device, REGISTER_COMPLETED)
}

fn read_u64(device: &mut dyn Device, register: u64) -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    device.read_region(VFIO_PCI_BAR0_REGION_INDEX, register, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
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
        let interrupt = Interrupt::new(&mut *seat.device, VFIO_PCI_MSI_IRQ_INDEX, 0)?;
        let state_bytes = read_u64(&mut *seat.device, REGISTER_STATE_BYTES)?;
        let variables = Variables::load(memory, share)?;
        let layout = Layout::new(share, state_bytes);
        Ok(Program {
            driver: GuestDriver::resume(seat, rings(share), variables.progress),
            share,
            layout,
            variables,
            interrupt,
            pace: Pace::new(rate, layout.block_bytes * 2),
            block: Vec::new(),
        })
    }

    /// Takes the next completion, if any.
    fn take_completion(&mut self) -> Result<bool, Failure> {
        let number = self.driver.progress().completed;
        match self.driver.take_completion() {
            Ok(None) => return Ok(false),
            Ok(Some(completion)) => self.variables.wrong += u64::from(!self.is_right(number, &completion)?),
            Err(GuestError::Misplaced { .. }) => self.variables.misplaced += 1,
            Err(error) => return Err(failure(error)),
        }
        Ok(true)
    }

    fn is_right(&mut self, number: u64, completion: &Completion) -> Result<bool, Failure> {
        let job = job(number, self.layout);
        if job.operation != OPERATION_CHECKSUM {
            return Ok(completion.is_success_of(&job));
        }
        // The last job of its group on memory: both blocks are final.
        let expected = filled((number - FIRST_JOBS) / JOBS, self.layout.block_bytes);
        Ok(self.holds(job.source, &expected)? && self.driver.verify(&job, completion).map_err(failure)?)
    }

    fn holds(&mut self, address: u64, expected: &[u8]) -> Result<bool, Failure> {
        self.block.resize(expected.len(), 0);
        self.driver.platform().read_memory(address, &mut self.block)?;
        Ok(self.block == expected)
    }

    /// Submits the first jobs at once, then as many whole groups of jobs as the rate allows and the ring holds.
    fn submit(&mut self) -> Result<(), Failure> {
        let writes = self.layout.block_bytes * 2;
        let before = self.driver.progress().submitted;
        while self.driver.progress().submitted < FIRST_JOBS {
            self.submit_one()?;
        }
        while self.driver.room() >= JOBS && self.pace.spend(writes) {
            for _ in 0..JOBS {
                self.submit_one()?;
            }
        }
        if self.driver.progress().submitted != before {
            self.driver.ring().map_err(failure)?;
        }
        Ok(())
    }

    fn submit_one(&mut self) -> Result<(), Failure> {
        let job = job(self.driver.progress().submitted, self.layout);
        self.driver.put(&job).map_err(failure)
    }
}

impl super::Program for Program {
    fn wait(&self) {
        self.interrupt.wait();
    }

    fn step(&mut self, more: bool) -> Result<(), Failure> {
        self.driver.acknowledge(INTERRUPT_COMPLETION).map_err(failure)?;
        while self.driver.progress().pending() > 0 && self.take_completion()? {}
        self.pace.earn();
        if more {
            self.submit()?;
        }
        self.variables.progress = self.driver.progress();
        self.variables.store(&self.driver.platform().memory, self.share)
    }

    fn resumed(&mut self) {
        self.pace.resume();
    }

    fn finish(&mut self) -> Result<Finished, Failure> {
        let until = Instant::now() + DRAINING;
        while self.driver.progress().pending() > 0 && Instant::now() < until {
            self.wait();
            self.step(false)?;
        }
        let groups = self.driver.progress().completed.saturating_sub(FIRST_JOBS) / JOBS;
        let (mut blocks_checked, mut blocks_wrong) = (0, 0);
        for group in groups.saturating_sub(PLACES)..groups {
            let (first, second) = self.layout.blocks(group);
            let expected = filled(group, self.layout.block_bytes);
            for block in [first, second] {
                blocks_checked += 1;
                blocks_wrong += u64::from(!self.holds(block, &expected)?);
            }
        }
        Ok(Finished {
            program: self.variables.books(),
            completed_by_device: Some(completed_by_device(&mut *self.driver.platform().device)?),
            blocks_checked,
            blocks_wrong,
        })
    }
}
