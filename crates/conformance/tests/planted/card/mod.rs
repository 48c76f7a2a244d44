//! A sound driver for a small card: registers, memory of its own, a DMA engine with a log, and one interrupt.
//!
//! It supports all of migration v2. [`Bug`] breaks it in one place at a time.

mod loader;
mod log;
mod migration;
mod saver;
mod stream;

use whimbrel_device::pci::config::{Bar, Msi, PciConfig};
use whimbrel_device::pci::function::{Access, Function};
use whimbrel_device::{
    Bus, Capability, Context, DeviceFile, DmaLogging, Driver, Errno, FileOffset, Info, Irq, Migration,
    MmapArea, Region, RegionInfoFlags, State,
};

use self::log::Log;
use self::migration::Session;
use crate::bug::Bug;

/// The region of the registers.
pub(crate) const REGISTERS: u32 = 0;
/// The region of the card's own memory.
pub(crate) const MEMORY: u32 = 1;
/// The region of the doorbells, which a user may map. Only its first page is there for him.
const DOORBELLS: u32 = 2;

/// Bytes of the registers: 32 plain ones of 4 bytes, and those below.
pub(crate) const REGISTER_BYTES: usize = 0x98;
/// The register with the address of the next DMA write, of 8 bytes.
pub(crate) const DMA_ADDRESS: u64 = 0x80;
/// A write to this register starts the DMA write.
pub(crate) const DMA_START: u64 = 0x88;
/// The register with the number of DMA writes done, of 4 bytes.
const DMA_COUNT: usize = 0x8c;
/// A write to this register arranges the card anew, so that all of its state has to be sent again.
pub(crate) const LAYOUT: u64 = 0x90;
/// The register that counts clock ticks, which only the bug [`Bug::ChangesInStop`] moves.
const TICKS: usize = 0x94;

/// Bytes of a block of the memory, the unit in which changes are found.
const BLOCK: usize = 256;
/// Number of blocks of the memory.
const BLOCKS: usize = 32;
/// Bytes of the memory.
pub(crate) const MEMORY_BYTES: usize = BLOCK * BLOCKS;

/// Bytes of a saved state that has not changed meanwhile.
pub(crate) const STATE_BYTES: usize = stream::WHOLE;

const PAGE: u64 = 0x1000;

/// All that a migration transfers.
#[derive(Clone)]
struct Contents {
    registers: [u8; REGISTER_BYTES],
    memory: Vec<u8>,
}

impl Contents {
    /// The contents after power-on.
    fn powered_on() -> Contents {
        Contents { registers: [0; REGISTER_BYTES], memory: vec![0; MEMORY_BYTES] }
    }

    fn block(&self, index: usize) -> &[u8] {
        &self.memory[index * BLOCK..(index + 1) * BLOCK]
    }

    fn block_mut(&mut self, index: usize) -> &mut [u8] {
        &mut self.memory[index * BLOCK..(index + 1) * BLOCK]
    }

    fn are_powered_on(&self) -> bool {
        self.registers.iter().chain(&self.memory).all(|byte| *byte == 0)
    }
}

/// The card.
pub(crate) struct Card {
    bug: Option<Bug>,
    /// It has neither optional states nor a log.
    is_plain: bool,
    function: Function,
    contents: Contents,
    session: Session,
    log: Log,
    /// The user has opted in to REINIT.
    reports_reinit: bool,
    /// What the bugs remember between two sessions.
    remembered: migration::Remembered,
}

/// Returns a new card, with at most one bug.
pub(crate) fn card(bug: Option<Bug>) -> DeviceFile {
    made(bug, false)
}

/// Returns a new sound card without optional states and without a log.
pub(crate) fn plain_card() -> DeviceFile {
    made(None, true)
}

fn made(bug: Option<Bug>, is_plain: bool) -> DeviceFile {
    DeviceFile::new("card", |bus: Bus| Card {
        bug,
        is_plain,
        function: Function::new(pci_config(), bus).permissive(),
        contents: Contents::powered_on(),
        session: Session::None,
        log: Log::default(),
        reports_reinit: false,
        remembered: migration::Remembered::default(),
    })
}

/// The card's configuration space.
fn pci_config() -> PciConfig {
    const MEMORY_SPACE: u16 = 0x0002;
    let bar = |size| Bar::Memory32 { size, prefetchable: false };
    PciConfig::builder(0x1234, 0xca2d)
        .command(MEMORY_SPACE)
        .bar(REGISTERS as usize, bar(PAGE as u32))
        .bar(MEMORY as usize, bar(MEMORY_BYTES as u32))
        .bar(DOORBELLS as usize, bar(2 * PAGE as u32))
        .capability(Msi::new(1))
        .build()
        .unwrap()
}

impl Card {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn write_register(&mut self, context: &Context, offset: usize, data: &[u8]) -> Result<(), Errno> {
        let end = offset + data.len();
        if end > REGISTER_BYTES {
            return Ok(());
        }
        if (offset..end).contains(&(DMA_START as usize)) {
            return self.start_dma(context);
        }
        self.contents.registers[offset..end].copy_from_slice(data);
        if (offset..end).contains(&(LAYOUT as usize)) {
            self.start_over();
        }
        Ok(())
    }

    /// Does a DMA write, and signals the interrupt.
    fn start_dma(&mut self, context: &Context) -> Result<(), Errno> {
        if !context.state().is_running() {
            return Err(Errno::EBUSY);
        }
        if self.has(Bug::PrecopyStopsDma) && context.state().is_precopy() {
            return Ok(());
        }
        let count = &mut self.contents.registers[DMA_COUNT..DMA_COUNT + 4];
        let number = u32::from_le_bytes([count[0], count[1], count[2], count[3]]).wrapping_add(1);
        count.copy_from_slice(&number.to_le_bytes());
        self.write_dma(context)?;
        self.function.send_message(0);
        Ok(())
    }

    /// Writes 8 bytes to memory at the address in the register.
    fn write_dma(&mut self, context: &Context) -> Result<(), Errno> {
        let address: [u8; 8] =
            std::array::from_fn(|index| self.contents.registers[DMA_ADDRESS as usize + index]);
        let address = u64::from_le_bytes(address);
        context.bus().dma().write(address, &[0xa5; 8]).map_err(|_| Errno::EFAULT)?;
        if !self.has(Bug::LogNeverFilled) {
            self.log.mark(address, self.bug);
        }
        Ok(())
    }

    fn write_memory(&mut self, offset: usize, data: &[u8]) {
        self.contents.memory[offset..offset + data.len()].copy_from_slice(data);
        if self.remembered.untracked {
            return;
        }
        if let Session::Saving(saver) = &mut self.session {
            (offset / BLOCK..=(offset + data.len() - 1) / BLOCK).for_each(|block| saver.changed(block));
        }
        let changed = offset / BLOCK..=(offset + data.len() - 1) / BLOCK;
        self.remembered.changed.extend(changed);
    }
}

impl Driver for Card {
    fn info(&self) -> Info {
        self.function.info()
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let region = self.function.region(index);
        if index != DOORBELLS {
            return Ok(region);
        }
        let size = if self.has(Bug::AreaPastTheEnd) { 3 * PAGE } else { PAGE };
        let areas = vec![MmapArea::new(0, size)];
        let flags = region.flags | RegionInfoFlags::MMAP;
        Ok(region.flags(flags).capabilities(vec![Capability::SparseMmap(areas)]))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(self.function.irq(index))
    }

    fn read_region(&mut self, _: &Context, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        if let Access::Served(_) = self.function.read_region(index, offset, data)? {
            return Ok(data.len());
        }
        let offset = offset as usize;
        let from: &[u8] = match index {
            REGISTERS => &self.contents.registers,
            MEMORY => &self.contents.memory,
            _ => &[],
        };
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = from.get(offset + index).copied().unwrap_or(0);
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
            (_, REGISTERS) => self.write_register(context, offset as usize, data)?,
            (_, MEMORY) => self.write_memory(offset as usize, data),
            _ => {}
        }
        Ok(data.len())
    }

    fn mmap(&mut self, _: &Context, _index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
        let file = tempfile::tempfile().map_err(|_| Errno::ENOMEM)?;
        file.set_len(2 * PAGE).map_err(|_| Errno::ENOMEM)?;
        Ok(FileOffset::new(file, offset))
    }

    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        if self.has(Bug::ResetRefusedInStopCopy) && context.state() == State::StopCopy {
            return Err(Errno::EBUSY);
        }
        if self.has(Bug::ResetRefusedInResuming) && context.state() == State::Resuming {
            return Err(Errno::EBUSY);
        }
        let keeps = self.has(Bug::ResetKeepsLoad) && self.remembered.loaded;
        if !self.has(Bug::ResetKeepsContents) && !keeps {
            let registers = self.contents.registers;
            self.contents = Contents::powered_on();
            if self.has(Bug::ResetKeepsRegisters) {
                self.contents.registers = registers;
            }
        }
        self.function.reset();
        match std::mem::replace(&mut self.session, Session::None) {
            Session::Saving(saver) => self.remembered.saver = Some(saver),
            Session::Resuming(loader) => self.remembered.loader = Some(loader),
            Session::None => {}
        }
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        if self.is_plain { None } else { Some(self) }
    }
}
