//! A DMA engine: a PCI device that copies, fills and checksums memory, with a configurable amount of internal state.
//!
//! # Programming interface
//!
//! The registers are region 0 (BAR 0), little-endian, at the `REGISTER_` offsets. Reads may have any offset and length.
//! Writes must be aligned 32-bit words (a 64-bit register takes two halves, or both in one access); any other write
//! fails with EINVAL.
//!
//! `guest::GuestDriver` (feature `guest`) implements the driver's side:
//!
//! 1. Lay out two rings with the same number of entries in memory that the device can reach: [`Descriptor`]s,
//!    aligned to 64 bytes, and [`Completion`]s, aligned to 32. Both are in the host's byte order.
//! 2. Write [`REGISTER_QUEUE_SIZE`], [`REGISTER_QUEUE_BASE`] and [`REGISTER_COMPLETION_BASE`], then
//!    [`CONTROL_ENABLE`] to [`REGISTER_CONTROL`]. If the control register does not read back as enabled, the
//!    engine rejected the rings. Disabling the engine drops incomplete jobs; an access to memory that waits for the
//!    memory's owner may still be made.
//! 3. Write descriptors at the index modulo the ring's size, then write the index after the last one to
//!    [`REGISTER_TAIL`]. The tail may be at most one ring's size ahead of [`REGISTER_HEAD`]; a doorbell that exceeds
//!    it, or goes backwards, is rejected and counted in [`REGISTER_ERRORS`].
//! 4. Each descriptor gets one completion, in order, in the slot of the same index. Once its
//!    [`sequence`](Completion::sequence) is the next expected number, the rest of the record is valid. A failed job
//!    also gets a completion, with an error status, and the device continues with the next one.
//! 5. For an interrupt (MSI, index 1, or INTx, index 0), enable causes in [`REGISTER_INTERRUPT_ENABLE`]. A cause
//!    interrupts when it appears in [`REGISTER_INTERRUPT_STATUS`]; clear it there before reading the completion ring,
//!    so that the next one interrupts again. Between the two, read the register back: a posted write could
//!    otherwise arrive after the ring was read, and clear the cause of a job that completed in between.
//!
//! No register is a doorbell in the sense of [`Driver::doorbells`]: the tail takes a different value each time, and an
//! ioeventfd matches a fixed one.
//!
//! Region 2 (BAR 2) exposes the own state, read only. Each completed job changes one of its 64-bit words: the one
//! at the new [`REGISTER_DIGEST`] modulo the number of words is rotated left by 9 bits and XORed with the digest.
//! [`OPERATION_SCRAMBLE`] writes whole ranges. With [`AccelConfig::state_rate`] set, blocks also change in the
//! background.
//!
//! # Migration
//!
//! In RUNNING_P2P and PRE_COPY_P2P the engine starts no DMA, since it cannot tell a peer device from memory; it still
//! accepts doorbells. In STOP, STOP_COPY and RESUMING nothing changes: register writes fail with EBUSY, and in
//! RESUMING, without a valid state, reads do too. A job that was stopped midway continues at the destination. An
//! interrupt cause that is pending in a loaded state interrupts again once the device runs.
//!
//! Entering RESUMING clears the device, so that the state is never in memory twice. After a failed load only a reset
//! leads out of RESUMING. The byte counts reported in PRE_COPY are exact: initial bytes are what remains of the
//! first pass, dirty bytes are blocks that changed after they were sent.
//!
//! The state has its full size from power-on, and all of it is transferred: each block starts with bytes generated from
//! its offset. A block takes memory only once it is written or loaded. A stream may omit zero blocks; they take no
//! memory at the destination either.
//!
//! # Configuration space
//!
//! Region 7 is the configuration space of a PCI Express endpoint. As with the kernel's devices, the user transfers it.
//! Memory space is enabled from the start, as vfio-pci does; while it is disabled, or in D3hot, accesses to regions
//! 0 and 2 fail with EIO, as in vfio-pci. In D3hot the engine starts no DMA and raises no interrupt. By default two bits
//! are stored but have no effect, so that a loaded state runs before its user restores the configuration space, or
//! without it: DMA does not wait for the bus master bit, and interrupts follow VFIO_DEVICE_SET_IRQS, not the MSI enable
//! bit. With [`AccelConfig::needs_config`] both have their effect, as in hardware. The
//! INTx line is asserted while an enabled cause is pending: the interrupt status bit shows it, and the INTx-disable bit
//! masks it.
//!
//! The user can put the device to sleep (VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY): it then does no work, and a doorbell's
//! jobs wait until the user wakes it. The device reports that its host completes 32-bit and 64-bit PCI Express atomic
//! operations.
//!
//! ```
//! use std::fs::File;
//! use whimbrel_memory::FileOffset;
//! use whimbrel_device::DeviceFile;
//! use whimbrel_models::accel::{self, Accel, AccelConfig, Descriptor};
//! use whimbrel_uapi::type1::DmaMapFlags;
//! use zerocopy::{FromBytes, FromZeros, IntoBytes};
//!
//! let config = AccelConfig::default().state_bytes(1 << 20);
//! let device = DeviceFile::try_new("engine", |bus| Accel::new(config, bus))?;
//! let bus = device.bus();
//!
//! // 64 KiB of memory at IOVA 0: descriptors first, completions at 0x1000, data behind them.
//! # let memory = File::from(rustix::fs::memfd_create(c"doc", rustix::fs::MemfdFlags::empty())?);
//! # memory.set_len(0x10000)?;
//! # let memory = FileOffset::new(memory, 0);
//! bus.dma().map(0, 0x10000, DmaMapFlags::READ | DmaMapFlags::WRITE, memory)?;
//! bus.dma().write(0x2000, b"123456789")?;
//! let work = Descriptor {
//!     operation: accel::OPERATION_CHECKSUM,
//!     source: 0x2000,
//!     length: 9,
//!     tag: 1,
//!     ..Descriptor::default()
//! };
//! bus.dma().write(0, work.as_bytes())?;
//!
//! device.write_region(0, accel::REGISTER_QUEUE_SIZE, &16u32.to_le_bytes())?;
//! device.write_region(0, accel::REGISTER_QUEUE_BASE, &0u64.to_le_bytes())?;
//! device.write_region(0, accel::REGISTER_COMPLETION_BASE, &0x1000u64.to_le_bytes())?;
//! device.write_region(0, accel::REGISTER_CONTROL, &accel::CONTROL_ENABLE.to_le_bytes())?;
//! device.write_region(0, accel::REGISTER_TAIL, &1u32.to_le_bytes())?;
//!
//! // A `Worker` would do this on a thread of its own.
//! device.advance(std::time::Duration::ZERO);
//!
//! let mut completion = accel::Completion::new_zeroed();
//! bus.dma().read(0x1000, completion.as_mut_bytes())?;
//! assert_eq!((completion.sequence, completion.status), (1, accel::STATUS_DONE));
//! assert_eq!(completion.result, 0xcbf4_3926);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block_set;
mod changes;
mod config;
#[cfg(feature = "guest")]
pub mod guest;
mod migration;
mod own_state;
mod queue;
mod registers;
mod stream;
mod work;

use std::time::Duration;

use whimbrel_device::dma::DmaAccess;
use whimbrel_device::pci::config::{Bar, Express, InterruptPin, LinkSpeed, Msi, PciConfig, PowerManagement};
use whimbrel_device::pci::function::{Access, Function};
use whimbrel_device::{
    AsyncDma, Bus, Context, DeviceCapability, DmaLogging, Driver, Errno, Info, Irq, LowPower, Migration,
    Next, Region, State,
};
use whimbrel_uapi::device::{PciAtomicFlags, RegionInfoFlags};
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX};

use self::changes::Clock;
pub use self::config::{AccelConfig, AccelConfigError};
use self::own_state::OwnState;
pub use self::queue::{
    Completion, Descriptor, MAX_LENGTH, OPERATION_CHECKSUM, OPERATION_COPY, OPERATION_FILL,
    OPERATION_SCRAMBLE, SLICE_BYTES, STATUS_DATA_FAULT, STATUS_DONE, STATUS_FETCH_FAULT, STATUS_INVALID,
};
use self::registers::Effect;
pub use self::registers::{
    CONTROL_ENABLE, ID, INTERRUPT_COMPLETION, INTERRUPT_ERROR, MAX_QUEUE_SIZE, REGISTER_COMPLETED,
    REGISTER_COMPLETION_BASE, REGISTER_CONTROL, REGISTER_DIGEST, REGISTER_ERRORS, REGISTER_HEAD, REGISTER_ID,
    REGISTER_INTERRUPT_ENABLE, REGISTER_INTERRUPT_STATUS, REGISTER_QUEUE_BASE, REGISTER_QUEUE_SIZE,
    REGISTER_STATE_BYTES, REGISTER_TAIL, REGISTER_VERSION, REGISTERS_BYTES, VERSION, fold_digest,
};
use self::stream::{Loader, Machine, Saver};
use self::work::Step;

/// Index of the region that exposes the own state.
pub const STATE_REGION_INDEX: u32 = VFIO_PCI_BAR2_REGION_INDEX;

/// A DMA engine.
#[derive(Debug)]
pub struct Accel {
    config: AccelConfig,
    function: Function,
    machine: Machine,
    state: OwnState,
    clock: Clock,
    session: Session,
    /// The loaded state has a pending cause whose interrupt may have been lost in the migration.
    signal_again: bool,
    /// Data of the current slice.
    buffer: Vec<u8>,
    /// Memory for entries of the rings.
    entry: Vec<u8>,
    step: Step,
    /// The access that waits for the memory's owner, until the core takes it.
    waits_for: Option<DmaAccess>,
    /// Changes when the engine forgets the access in flight.
    attempt: u64,
}

/// The data session.
#[derive(Debug)]
enum Session {
    None,
    Saving(Box<Saver>),
    Resuming(Box<Loader>),
}

impl Accel {
    /// Returns an engine in its power-on state.
    pub fn new(config: AccelConfig, bus: Bus) -> Result<Accel, AccelConfigError> {
        let config = config.check()?;
        let state = OwnState::powered_on(config.state_bytes).map_err(|source| AccelConfigError::Memory {
            bytes: config.state_bytes,
            source: source.into(),
        })?;
        let function = Function::new(pci_config(config.state_bytes), bus);
        Ok(Accel {
            config,
            function: if config.needs_config { function } else { function.permissive() },
            machine: Machine::default(),
            state,
            clock: Clock::default(),
            session: Session::None,
            signal_again: false,
            buffer: Vec::new(),
            entry: Vec::new(),
            step: Step::Begin,
            waits_for: None,
            attempt: 0,
        })
    }

    /// Discards everything in the device and replaces its own state with `state`.
    fn start_over(&mut self, state: OwnState) {
        self.state = state;
        self.machine = Machine::default();
        self.forget_access();
        self.signal_again = false;
        self.show_line();
    }

    /// Returns the power-on state. ENOMEM without address space for it.
    fn powered_on(&self) -> Result<OwnState, Errno> {
        OwnState::powered_on(self.config.state_bytes).map_err(|_| Errno::ENOMEM)
    }

    /// Changes part of the own state.
    fn change(&mut self, offset: u64, data: &[u8]) {
        if let (Session::Saving(saver), Some(last)) = (&mut self.session, (data.len() as u64).checked_sub(1))
        {
            let blocks = self.state.blocks();
            for block in blocks.at(offset)..=blocks.at(offset + last) {
                saver.before_change(block, &self.state);
            }
        }
        self.state.write(offset, data);
    }

    /// Performs the background changes that are due at `now`, at most [`SLICE_BYTES`] of them.
    fn change_by_itself(&mut self, now: Duration) {
        let blocks = self.state.blocks();
        self.clock.pass(now, self.config.state_rate, blocks.block_bytes());
        let mut budget = SLICE_BYTES / blocks.block_bytes();
        while budget > 0 && self.clock.take(blocks.block_bytes()) {
            budget -= 1;
            let seed = self.machine.changes;
            self.machine.changes = seed.wrapping_add(1);
            let mut choice = [0; 8];
            work::scramble(seed, 0, &mut choice);
            let block = u64::from_le_bytes(choice) % blocks.count();
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(SLICE_BYTES as usize, 0);
            let data = &mut buffer[..blocks.length(block) as usize];
            work::scramble(seed, blocks.start(block), data);
            self.change(blocks.start(block), data);
            self.buffer = buffer;
        }
    }

    /// Returns the settings without which a stream does not load: the size of the own state, and the host's byte order.
    pub(crate) fn settings_to_match(&self) -> Vec<u8> {
        format!("state={} {}", self.config.state_bytes, crate::BYTE_ORDER).into_bytes()
    }

    fn interrupt(&mut self) {
        self.function.send_message(0);
    }

    /// Drives the INTx line to its current level.
    fn show_line(&mut self) {
        self.function.set_line(self.machine.registers.interrupts());
    }

    fn write_registers(&mut self, context: &Context, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let (words, rest) = data.as_chunks::<4>();
        if !offset.is_multiple_of(4) || !rest.is_empty() {
            return Err(Errno::EINVAL);
        }
        if !context.state().is_running() {
            return Err(Errno::EBUSY);
        }
        for (at, word) in (offset..).step_by(4).zip(words) {
            let (effect, interrupt) = self.machine.registers.write(at, u32::from_le_bytes(*word));
            if effect == Effect::DropJob {
                self.machine.job = None;
                self.forget_access();
            }
            if interrupt {
                self.interrupt();
            }
        }
        self.show_line();
        Ok(())
    }
}

/// Returns whether the engine starts DMA in this state.
fn starts_dma(state: State) -> bool {
    matches!(state, State::Running | State::PreCopy)
}

/// Returns the configuration space of a processing accelerator, with the unassigned vendor ID of QEMU's `edu` device.
fn pci_config(state_bytes: u64) -> PciConfig {
    const VENDOR: u16 = 0x1234;
    const DEVICE: u16 = 0xacce;
    const MEMORY_SPACE: u16 = 0x0002;
    PciConfig::builder(VENDOR, DEVICE)
        .subsystem(VENDOR, DEVICE)
        .class(0x12, 0x00, 0x00)
        .revision(0x01)
        .command(MEMORY_SPACE)
        .interrupt_pin(InterruptPin::A)
        .bar(0, Bar::Memory32 { size: REGISTERS_BYTES as u32, prefetchable: false })
        .bar(2, Bar::Memory64 { size: state_bytes.next_power_of_two().max(0x1000), prefetchable: true })
        .capability(Msi::new(1).address64(true))
        .capability(PowerManagement::default().no_soft_reset(true))
        // No function-level reset: a reset must also end the migration, and the core sees VFIO_DEVICE_RESET only.
        .capability(Express::new(LinkSpeed::Gt16, 8).extended_tag(true).max_payload(256))
        .build()
        .expect("sizes that are powers of two and capabilities that fit")
}

impl Driver for Accel {
    /// Switches the queue off, which only a failed reset has left on: the memory of the next user is not that of this one.
    fn close_device(&mut self, _: &Context) {
        self.machine.registers.write(REGISTER_CONTROL, 0);
        self.machine.job = None;
        self.forget_access();
    }

    fn info(&self) -> Info {
        let atomics = PciAtomicFlags::COMP32 | PciAtomicFlags::COMP64;
        self.function.info().capabilities(vec![DeviceCapability::PciAtomicComp(atomics)])
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let region = self.function.region(index);
        Ok(match index {
            STATE_REGION_INDEX => region.flags(RegionInfoFlags::READ).size(self.config.state_bytes),
            _ => region,
        })
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(self.function.irq(index))
    }

    fn read_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        if let Access::Served(_) = self.function.read_region(index, offset, data)? {
            return Ok(data.len());
        }
        if context.state() == State::Resuming {
            return Err(Errno::EBUSY);
        }
        match index {
            STATE_REGION_INDEX => self.state.read(offset, data),
            _ => self.machine.registers.read(self.config.state_bytes, offset, data),
        }
        Ok(data.len())
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        match (self.function.write_region(index, offset, data)?, index) {
            (Access::Served(_), _) => {}
            (_, VFIO_PCI_BAR0_REGION_INDEX) => self.write_registers(context, offset, data)?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        // Without address space for the new state, the old one is kept.
        self.start_over(self.powered_on()?);
        self.session = Session::None;
        self.clock = Clock::default();
        self.function.reset();
        Ok(())
    }

    fn can_reset_in_precopy(&self) -> bool {
        true
    }

    /// The blocks that differ from their power-on contents are sent again.
    fn reset_in_precopy(&mut self, _: &Context) -> Result<(), Errno> {
        let state = self.powered_on()?;
        if let Session::Saving(saver) = &mut self.session {
            let (changed, end) = (self.state.changed_since_power_on(), self.state.blocks().count());
            let mut block = changed.next(0, true);
            while block < end {
                saver.before_change(block, &self.state);
                block = changed.next(block + 1, true);
            }
        }
        self.start_over(state);
        self.clock = Clock::default();
        self.function.reset_in_precopy();
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(&mut self.function)
    }

    fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
        Some(self)
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        Some(self)
    }

    fn advance(&mut self, context: &Context) -> Next {
        if std::mem::take(&mut self.signal_again) {
            self.interrupt();
            self.show_line();
        }
        let now = context.now();
        self.change_by_itself(now);
        if starts_dma(context.state()) && self.work() {
            return Next::Now;
        }
        match self.clock.due(now, self.config.state_rate, self.state.blocks().block_bytes()) {
            Some(due) if due <= now => Next::Now,
            Some(due) => Next::At(due),
            None => Next::Idle,
        }
    }

    /// Whatever a write has changed, only jobs are work: background changes follow the time alone.
    fn has_work(&self) -> bool {
        self.signal_again || self.step != Step::Begin || self.machine.registers.has_work()
    }
}

impl LowPower for Accel {
    fn suspend(&mut self, _: &Context) {
        self.function.enter_d0();
        self.clock.stop();
    }

    /// No action: the engine released nothing when it went to sleep.
    fn resume(&mut self, _: &Context) {}
}
