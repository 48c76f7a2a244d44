//! A DMA engine: a PCI device that copies, fills and sums memory, with as much state of its own as is asked
//! for.
//!
//! # How a guest drives it
//!
//! The registers are region 0 (BAR 0), little-endian, at the `REGISTER_` offsets. They are read at any offset
//! and length, and written in aligned words of 32 bits (a register of 64 bits in two halves, or both at
//! once); any other write is EINVAL.
//!
//! `guest::GuestDriver` (feature `guest`) is a driver that does all of this:
//!
//! 1. Lay out two rings in memory the device can reach, with the same number of entries: [`Descriptor`]s,
//!    aligned to 64 bytes, and [`Completion`]s, aligned to 32. Both are in the byte order of the host.
//! 2. Write [`REGISTER_QUEUE_SIZE`], [`REGISTER_QUEUE_BASE`] and [`REGISTER_COMPLETION_BASE`], then
//!    [`CONTROL_ENABLE`] to [`REGISTER_CONTROL`]. If the control register does not read back enabled, the
//!    rings were refused.
//! 3. Put descriptors into the ring, at the index reduced to its size, and write the index behind the last
//!    one to [`REGISTER_TAIL`]. No more than a ring's worth may be between [`REGISTER_HEAD`] and the tail; a
//!    doorbell beyond that, or backwards, is refused and counted in [`REGISTER_ERRORS`].
//! 4. Each descriptor gets one completion, in order, in the slot of the same index. When its
//!    [`sequence`](Completion::sequence) is the number expected next, the rest of it is there. A job that
//!    fails is completed with a status like any other; the device goes on.
//! 5. For an interrupt (MSI, index 1, or INTx, index 0), set causes in [`REGISTER_INTERRUPT_ENABLE`]. A cause
//!    interrupts when it appears in [`REGISTER_INTERRUPT_STATUS`]; take it away there before looking at the
//!    ring, and the next one interrupts again.
//!
//! No register is a doorbell in the sense of [`Driver::doorbells`]: the tail takes another index each time,
//! which no eventfd could write.
//!
//! Region 2 (BAR 2) shows the own state, read only. Each completed job changes a word of it: the new
//! [`REGISTER_DIGEST`] modulo the number of 64-bit words says which, and the word is rotated left by 9 bits
//! and combined with the digest by exclusive or. [`OPERATION_SCRAMBLE`] writes whole stretches. With a rate
//! set, blocks of it also change by themselves.
//!
//! # How it migrates
//!
//! In RUNNING_P2P and PRE_COPY_P2P it starts no DMA, since it cannot tell a peer from memory; it still takes
//! doorbells. In STOP, STOP_COPY and RESUMING nothing changes: a write to the registers is EBUSY, and in
//! RESUMING, where there is no state to show, a read is too. A job that is stopped in the middle goes on
//! where it was loaded. A cause that waits for its interrupt when a state is loaded interrupts again once the
//! device runs.
//!
//! Entering RESUMING empties the device, for the state is never held twice. So a load that fails can only be
//! left by a reset, which empties it again. The counts given in PRE_COPY are true: initial bytes are what the
//! first pass has left, dirty bytes what changed after it was sent.
//!
//! The state has the size that was asked for from power-on on, and all of it moves: each block holds bytes that follow
//! from where they lie. They take memory only once they are written, or loaded. A stream may leave out blocks that are
//! zero; a device that loads it leaves them out again.
//!
//! # Its configuration space
//!
//! Region 7 is that of an endpoint of PCI Express, and the user's to carry over, as with the kernel's
//! devices. Memory space is on from the start, as a user of vfio-pci finds it; with it off, or in D3hot,
//! regions 0 and 2 are EIO, as there. In D3hot it starts no DMA and sends no interrupt. Two bits are kept and not obeyed, since a state that is loaded must go
//! on before, and whether or not, its user brings the space over: DMA does not wait for the bus master bit,
//! and interrupts go where VFIO_DEVICE_SET_IRQS says and not by the enable bit of MSI. The INTx line is
//! asserted as long as a cause interrupts: the interrupt status bit shows it, and the INTx-disable bit masks it.
//!
//! It can be let sleep (VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY): then it does no work, and what a doorbell has
//! asked for waits until its user wakes it. The host completes atomic operations of 32 and 64 bits, as it
//! says.
//!
//! ```
//! use std::fs::File;
//! use whimbrel_memory::FileOffset;
//! use whimbrel_device::{Bus, DeviceFile, State};
//! use whimbrel_models::accel::{self, Accel, AccelConfig, Descriptor};
//! use whimbrel_uapi::type1::DmaMapFlags;
//! use zerocopy::{FromBytes, FromZeros, IntoBytes};
//!
//! let bus = Bus::new();
//! let engine = Accel::new(AccelConfig { state_bytes: 1 << 20, ..AccelConfig::default() }, bus.clone())?;
//! let device = DeviceFile::new("engine", bus.clone(), Box::new(engine));
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

use whimbrel_device::pci::config::{Bar, Express, InterruptPin, LinkSpeed, Msi, PciConfig, PowerManagement};
use whimbrel_device::pci::function::{Access, Function};
use whimbrel_device::{
    Bus, DeviceCapability, DmaLogging, Driver, Errno, Info, Irq, LowPower, Migration, Next, Region, State,
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

/// The region that shows the own state.
pub const STATE_REGION_INDEX: u32 = VFIO_PCI_BAR2_REGION_INDEX;

/// A DMA engine.
#[derive(Debug)]
pub struct Accel {
    config: AccelConfig,
    function: Function,
    machine: Machine,
    state: OwnState,
    clock: Clock,
    migration_state: State,
    session: Session,
    /// A loaded state has a cause whose interrupt may have been lost on the way.
    signal_again: bool,
    /// A slice of data on its way.
    buffer: Vec<u8>,
}

/// The data session.
#[derive(Debug)]
enum Session {
    None,
    Saving(Box<Saver>),
    Resuming(Box<Loader>),
}

impl Accel {
    /// An engine as after power-on.
    pub fn new(config: AccelConfig, bus: Bus) -> Result<Accel, AccelConfigError> {
        let config = config.check()?;
        let state = OwnState::powered_on(config.state_bytes).map_err(|source| AccelConfigError::Memory {
            bytes: config.state_bytes,
            source: source.into(),
        })?;
        Ok(Accel {
            config,
            function: Function::new(pci_config(config.state_bytes), bus).permissive(),
            machine: Machine::default(),
            state,
            clock: Clock::default(),
            migration_state: State::Running,
            session: Session::None,
            signal_again: false,
            buffer: Vec::new(),
        })
    }

    /// Forgets everything the device holds, and holds `state` from here on.
    fn start_over(&mut self, state: OwnState) {
        self.state = state;
        self.machine = Machine::default();
        self.signal_again = false;
        self.show_line();
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

    /// Changes the blocks that are due by now, [`SLICE_BYTES`] of them at most.
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

    fn interrupt(&mut self) {
        self.function.send_message(0);
    }

    /// The level of the INTx line.
    fn show_line(&mut self) {
        self.function.set_line(self.machine.registers.interrupts());
    }

    fn write_registers(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let (words, rest) = data.as_chunks::<4>();
        if !offset.is_multiple_of(4) || !rest.is_empty() {
            return Err(Errno::EINVAL);
        }
        if !self.migration_state.is_running() {
            return Err(Errno::EBUSY);
        }
        for (at, word) in (offset..).step_by(4).zip(words) {
            let (effect, interrupt) = self.machine.registers.write(at, u32::from_le_bytes(*word));
            if effect == Effect::DropJob {
                self.machine.job = None;
            }
            if interrupt {
                self.interrupt();
            }
        }
        self.show_line();
        Ok(())
    }
}

/// A processing accelerator. The vendor is the unassigned number that QEMU's own teaching devices use.
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
        .capability(Msi { vectors: 1, address64: true, maskable: false })
        .capability(PowerManagement { no_soft_reset: true, ..PowerManagement::default() })
        // VFIO_DEVICE_RESET is its only reset: it ends a migration too, which no bit here could tell the
        // core.
        .capability(Express {
            function_level_reset: false,
            extended_tag: true,
            max_payload: 256,
            speed: LinkSpeed::Gt16,
            width: 8,
        })
        .build()
        .expect("sizes that are powers of two and capabilities that fit")
}

impl Driver for Accel {
    fn info(&self) -> Info {
        let atomics = PciAtomicFlags::COMP32 | PciAtomicFlags::COMP64;
        Info { capabilities: vec![DeviceCapability::PciAtomicComp(atomics)], ..self.function.info() }
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let region = self.function.region(index);
        Ok(match index {
            STATE_REGION_INDEX => {
                Region { flags: RegionInfoFlags::READ, size: self.config.state_bytes, ..region }
            }
            _ => region,
        })
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(self.function.irq(index))
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        if let Access::Served(_) = self.function.read_region(index, offset, data)? {
            return Ok(data.len());
        }
        if self.migration_state == State::Resuming {
            return Err(Errno::EBUSY);
        }
        match index {
            STATE_REGION_INDEX => self.state.read(offset, data),
            _ => self.machine.registers.read(self.config.state_bytes, offset, data),
        }
        Ok(data.len())
    }

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        match (self.function.write_region(index, offset, data)?, index) {
            (Access::Served(_), _) => {}
            (_, VFIO_PCI_BAR0_REGION_INDEX) => self.write_registers(offset, data)?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(data.len())
    }

    fn reset(&mut self) -> Result<(), Errno> {
        // If there is no address space, nothing is forgotten.
        self.start_over(OwnState::powered_on(self.config.state_bytes).map_err(|_| Errno::ENOMEM)?);
        self.session = Session::None;
        self.migration_state = State::Running;
        self.clock = Clock::default();
        self.function.reset();
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(&mut self.function)
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        Some(self)
    }

    fn advance(&mut self, now: Duration) -> Next {
        if std::mem::take(&mut self.signal_again) {
            self.interrupt();
            self.show_line();
        }
        self.change_by_itself(now);
        if matches!(self.migration_state, State::Running | State::PreCopy) && self.work() {
            return Next::Now;
        }
        match self.clock.due(now, self.config.state_rate, self.state.blocks().block_bytes()) {
            Some(due) if due <= now => Next::Now,
            Some(due) => Next::At(due),
            None => Next::Idle,
        }
    }
}

impl LowPower for Accel {
    fn suspend(&mut self) {
        self.function.enter_d0();
        self.clock.stop();
    }

    /// Nothing was given up.
    fn resume(&mut self) {}
}
