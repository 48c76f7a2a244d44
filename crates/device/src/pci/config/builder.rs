//! The builder of a configuration space. It rejects invalid contents, so that a guest can walk every
//! [`PciConfig`](super::PciConfig).

use std::sync::Arc;

use super::bar::Bar;
use super::capability::{MsiX, PciCapability};
use super::registers::Registers;
use super::{PciConfig, Shape};

/// Size of the header that every device has, in bytes.
pub(super) const HEADER_BYTES: usize = 0x40;
/// Size of the space without PCI Express, in bytes.
pub(super) const CONVENTIONAL_BYTES: usize = 0x100;
/// Size of the space with PCI Express, in bytes.
pub(super) const EXPRESS_BYTES: usize = 0x1000;

/// Command register: I/O space, memory space, bus master, parity errors, system errors, INTx disable.
pub(super) const COMMAND: usize = 0x04;
pub(super) const COMMAND_IO: u16 = 0x0001;
pub(super) const COMMAND_MEMORY: u16 = 0x0002;
pub(super) const COMMAND_BUS_MASTER: u16 = 0x0004;
pub(super) const COMMAND_INTX_DISABLE: u16 = 0x0400;
const COMMAND_ERRORS: u16 = 0x0140;
pub(super) const STATUS: usize = 0x06;
pub(super) const STATUS_INTERRUPT: u16 = 0x0008;
const STATUS_CAPABILITIES: u16 = 0x0010;
const STATUS_MEDIUM: u16 = 0x0200;
const STATUS_ERRORS: u16 = 0xf900;
pub(super) const INTERRUPT_PIN: usize = 0x3d;
pub(super) const BAR0: usize = 0x10;
pub(super) const ROM: usize = 0x30;
pub(super) const ROM_ENABLE: u32 = 1;

/// The header of the serial number capability, version 1, at the end of the list.
const SERIAL_NUMBER: u32 = 0x0001_0003;

/// An interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the pins of the PCI specification")]
pub enum InterruptPin {
    /// INTA#.
    A = 1,
    /// INTB#.
    B = 2,
    /// INTC#.
    C = 3,
    /// INTD#.
    D = 4,
}

/// An invalid configuration space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PciConfigError {
    /// A base address register above 5, or a 64-bit one at 5.
    #[error("invalid BAR index {0}: expected 0 to 5, or 0 to 4 for a 64-bit BAR")]
    NoSuchBar(usize),
    /// A base address register is used twice.
    #[error("BAR {0} is already used")]
    BarTaken(usize),
    /// The size of a base address register is invalid.
    #[error(
        "invalid size {size:#x} of BAR {index}: expected a power of two, at least 16 for memory, 4 to 256 for ports"
    )]
    BarSize {
        /// Index of the register.
        index: usize,
        /// The requested size.
        size: u64,
    },
    /// The size of the ROM is invalid.
    #[error("invalid ROM size {0:#x}: expected a power of two from 2 KiB to 16 MiB")]
    RomSize(u32),
    /// The command register's reset value has bits that the device does not support.
    #[error("command register bits {0:#06x} not supported by this device")]
    Command(u16),
    /// The contents of a capability are invalid.
    #[error("invalid {name} capability: {what}")]
    Capability {
        /// Name of the capability.
        name: &'static str,
        /// The defect.
        what: &'static str,
    },
    /// A capability is given twice that a device can have only once.
    #[error("duplicate {0} capability")]
    Twice(&'static str),
    /// A capability lies outside of its space or is not aligned to 4 bytes.
    #[error("invalid offset {offset:#x} for the {name} capability of {length} bytes")]
    Place {
        /// Name of the capability.
        name: &'static str,
        /// The requested offset.
        offset: usize,
        /// Its length in bytes.
        length: usize,
    },
    /// Two parts of the configuration space overlap.
    #[error("{name} at {offset:#x} overlaps an earlier part")]
    Overlap {
        /// The second part.
        name: &'static str,
        /// The requested offset.
        offset: usize,
    },
    /// No space is left for a capability.
    #[error("no space left for the {0} capability")]
    Full(&'static str),
    /// The MSI-X table or the pending bits are not in a memory BAR, unaligned (8 bytes), or overlapping.
    #[error("the MSI-X table and pending bits must be 8-byte aligned, in memory BARs, and must not overlap")]
    MsiXPlace,
    /// A serial number without PCI Express, whose extended space it needs.
    #[error("a serial number requires a PCI Express capability")]
    SerialNumber,
}

/// Builds a [`PciConfig`]; see [`PciConfig::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct PciConfigBuilder {
    header: Registers,
    bars: Vec<(usize, Bar)>,
    rom: Option<u32>,
    command: u16,
    command_is_fixed: bool,
    status: u16,
    capabilities: Vec<(Option<u8>, PciCapability)>,
    bytes: Vec<(u8, Vec<u8>)>,
    serial_number: Option<u64>,
}

impl PciConfigBuilder {
    pub(super) fn new(vendor: u16, device: u16) -> Self {
        let mut header = Registers::new(HEADER_BYTES);
        header.word(0x00, vendor, 0);
        header.word(0x02, device, 0);
        // The interrupt line belongs to the guest, whether the device has a pin or not.
        header.word(0x3c, 0, 0x00ff);
        PciConfigBuilder {
            header,
            bars: Vec::new(),
            rom: None,
            command: 0,
            command_is_fixed: false,
            status: 0,
            capabilities: Vec::new(),
            bytes: Vec::new(),
            serial_number: None,
        }
    }

    /// Sets the subsystem's vendor and device.
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.header.word(0x2c, vendor, 0);
        self.header.word(0x2e, device, 0);
        self
    }

    /// Sets the class code: base class, sub-class, programming interface.
    pub fn class(mut self, base: u8, sub: u8, interface: u8) -> Self {
        self.header.fixed(0x09, &[interface, sub, base]);
        self
    }

    /// Sets the revision.
    pub fn revision(mut self, revision: u8) -> Self {
        self.header.fixed(0x08, &[revision]);
        self
    }

    /// Sets the resource of base address register `index`.
    pub fn bar(mut self, index: usize, bar: Bar) -> Self {
        self.bars.push((index, bar));
        self
    }

    /// Adds a ROM of `size` bytes, a power of two from 2 KiB to 16 MiB.
    pub fn rom(mut self, size: u32) -> Self {
        self.rom = Some(size);
        self
    }

    /// Sets the interrupt pin.
    pub fn interrupt_pin(mut self, pin: InterruptPin) -> Self {
        self.header.fixed(INTERRUPT_PIN, &[pin as u8]);
        self
    }

    /// Sets the command register's reset value, by default 0. Users of vfio-pci find memory and I/O space enabled,
    /// since the kernel enables an opened device.
    pub fn command(mut self, command: u16) -> Self {
        self.command = command;
        self
    }

    /// Sets a read-only command register, for a device that always decodes, such as mtty.
    pub fn fixed_command(mut self, command: u16) -> Self {
        self.command = command;
        self.command_is_fixed = true;
        self
    }

    /// Sets medium timing, for a device on a conventional bus; by default the field is 0, as for PCI Express.
    pub fn medium_timing(mut self) -> Self {
        self.status |= STATUS_MEDIUM;
        self
    }

    /// Adds a capability to the end of the list, at the first offset where it fits.
    pub fn capability(mut self, capability: impl Into<PciCapability>) -> Self {
        self.capabilities.push((None, capability.into()));
        self
    }

    /// Adds a capability to the end of the list, at `offset`.
    pub fn capability_at(mut self, offset: u8, capability: impl Into<PciCapability>) -> Self {
        self.capabilities.push((Some(offset), capability.into()));
        self
    }

    /// Adds read-only device-specific bytes after the header, outside of capabilities.
    pub fn bytes(mut self, offset: u8, bytes: &[u8]) -> Self {
        self.bytes.push((offset, bytes.to_vec()));
        self
    }

    /// Sets the serial number, an extended capability.
    pub fn serial_number(mut self, number: u64) -> Self {
        self.serial_number = Some(number);
        self
    }

    /// Returns the space in its power-on state.
    pub fn build(self) -> Result<PciConfig, PciConfigError> {
        let express =
            self.capabilities.iter().any(|(_, capability)| matches!(capability, PciCapability::Express(_)));
        let mut shape = Shape::new(if express { EXPRESS_BYTES } else { CONVENTIONAL_BYTES });
        shape.registers.place(0, &self.header);
        if express {
            // The cache line size is kept without effect, for what was written for conventional PCI.
            shape.registers.writable[0x0c] = 0xff;
        }
        self.place_bars(&mut shape)?;
        self.place_command(&mut shape)?;
        let mut taken = [false; CONVENTIONAL_BYTES];
        taken[..HEADER_BYTES].fill(true);
        for (offset, bytes) in &self.bytes {
            let offset = usize::from(*offset);
            take(&mut taken, "device's own", offset, bytes.len())?;
            shape.registers.fixed(offset, bytes);
        }
        self.place_capabilities(&mut shape, &mut taken)?;
        if let Some(msix) = shape.msix.map(|(_, msix)| msix) {
            check_msix(&shape, msix)?;
        }
        if let Some(number) = self.serial_number {
            if !express {
                return Err(PciConfigError::SerialNumber);
            }
            shape.registers.dword(CONVENTIONAL_BYTES, SERIAL_NUMBER, 0);
            shape.registers.fixed(CONVENTIONAL_BYTES + 4, &number.to_le_bytes());
        }
        let bytes = shape.registers.value.clone();
        Ok(PciConfig { shape: Arc::new(shape), bytes })
    }

    fn place_bars(&self, shape: &mut Shape) -> Result<(), PciConfigError> {
        let mut taken = [false; 6];
        for &(index, bar) in &self.bars {
            let slots = if bar.is_64_bit() { 2 } else { 1 };
            if index.checked_add(slots).is_none_or(|end| end > taken.len()) {
                return Err(PciConfigError::NoSuchBar(index));
            }
            if !bar.has_valid_size() {
                return Err(PciConfigError::BarSize { index, size: bar.size() });
            }
            for (slot, taken) in taken.iter_mut().enumerate().skip(index).take(slots) {
                if std::mem::replace(taken, true) {
                    return Err(PciConfigError::BarTaken(slot));
                }
            }
            let mask = !(bar.size() - 1);
            let offset = BAR0 + 4 * index;
            shape.registers.dword(offset, bar.kind(), mask as u32);
            if bar.is_64_bit() {
                shape.registers.dword(offset + 4, 0, (mask >> 32) as u32);
            }
            shape.bars[index] = Some(bar);
        }
        if let Some(size) = self.rom {
            if !size.is_power_of_two() || !(0x800..=0x100_0000).contains(&size) {
                return Err(PciConfigError::RomSize(size));
            }
            shape.registers.dword(ROM, 0, !(size - 1) | ROM_ENABLE);
            shape.rom = true;
        }
        Ok(())
    }

    fn place_command(&self, shape: &mut Shape) -> Result<(), PciConfigError> {
        let bars = || shape.bars.iter().flatten();
        let mut has = COMMAND_BUS_MASTER | COMMAND_ERRORS | COMMAND_INTX_DISABLE;
        if bars().any(|bar| !bar.is_memory()) {
            has |= COMMAND_IO;
        }
        if bars().any(|bar| bar.is_memory()) || shape.rom {
            has |= COMMAND_MEMORY;
        }
        if self.command & !has != 0 {
            return Err(PciConfigError::Command(self.command & !has));
        }
        let writable = if self.command_is_fixed { 0 } else { has };
        shape.registers.word(COMMAND, self.command, writable);
        let list = if self.capabilities.is_empty() { 0 } else { STATUS_CAPABILITIES };
        shape.registers.word(STATUS, self.status | list, 0);
        shape.registers.write_one_to_clear(STATUS, STATUS_ERRORS);
        if shape.registers.value[INTERRUPT_PIN] != 0 {
            shape.registers.device[STATUS] = STATUS_INTERRUPT as u8;
        }
        Ok(())
    }

    fn place_capabilities(&self, shape: &mut Shape, taken: &mut [bool]) -> Result<(), PciConfigError> {
        let mut link = 0x34;
        // Those with a place of their own first: the others go around them.
        let mut places = vec![0; self.capabilities.len()];
        for fixed in [true, false] {
            for ((at, capability), place) in self.capabilities.iter().zip(&mut places) {
                if at.is_some() != fixed {
                    continue;
                }
                let name = capability.name();
                capability.check().map_err(|what| PciConfigError::Capability { name, what })?;
                let length = capability.registers().len();
                *place = match *at {
                    Some(at) => at.into(),
                    None => (HEADER_BYTES..taken.len())
                        .step_by(4)
                        .find(|at| taken.get(*at..at + length).is_some_and(|bytes| !bytes.contains(&true)))
                        .ok_or(PciConfigError::Full(name))?,
                };
                if !place.is_multiple_of(4) || *place < HEADER_BYTES {
                    return Err(PciConfigError::Place { name, offset: *place, length });
                }
                take(taken, name, *place, length)?;
            }
        }
        for ((_, capability), place) in self.capabilities.iter().zip(places) {
            shape.registers.place(place, &capability.registers());
            shape.registers.fixed(link, &[place as u8]);
            link = place + 1;
            let once = match capability {
                PciCapability::PowerManagement(power) => shape.power.replace((place, *power)).is_none(),
                PciCapability::Msi(msi) => shape.msi.replace((place, *msi)).is_none(),
                PciCapability::MsiX(msix) => shape.msix.replace((place, *msix)).is_none(),
                PciCapability::Express(express) => shape.express.replace((place, *express)).is_none(),
                PciCapability::VendorSpecific(_) => true,
            };
            if !once {
                return Err(PciConfigError::Twice(capability.name()));
            }
        }
        Ok(())
    }
}

/// Allocates the bytes for `name`, if they are within the space and free.
fn take(taken: &mut [bool], name: &'static str, offset: usize, length: usize) -> Result<(), PciConfigError> {
    let bytes = taken.get_mut(offset..offset + length);
    let bytes = bytes.ok_or(PciConfigError::Place { name, offset, length })?;
    if bytes.contains(&true) {
        return Err(PciConfigError::Overlap { name, offset });
    }
    bytes.fill(true);
    Ok(())
}

fn check_msix(shape: &Shape, msix: MsiX) -> Result<(), PciConfigError> {
    let range = |bar: u8, offset: u32, length: u64| {
        let bar = shape.bars.get(usize::from(bar)).copied().flatten().filter(|bar| bar.is_memory())?;
        let end = u64::from(offset) + length;
        (offset.is_multiple_of(8) && end <= bar.size()).then_some(u64::from(offset)..end)
    };
    let table = range(msix.table_bar, msix.table_offset, msix.table_bytes());
    let pending = range(msix.pending_bar, msix.pending_offset, msix.pending_bytes());
    let (Some(table), Some(pending)) = (table, pending) else {
        return Err(PciConfigError::MsiXPlace);
    };
    let apart =
        msix.table_bar != msix.pending_bar || table.end <= pending.start || pending.end <= table.start;
    if apart { Ok(()) } else { Err(PciConfigError::MsiXPlace) }
}

impl Shape {
    fn new(length: usize) -> Self {
        Shape {
            registers: Registers::new(length),
            bars: [None; 6],
            rom: false,
            power: None,
            msi: None,
            msix: None,
            express: None,
        }
    }
}
