//! The configuration space of a PCI device: its contents as a guest probes them, and the effects of writes.
//!
//! A [`PciConfig`] is built once ([`PciConfig::builder`]) and read and written as region 7 of a device. A write returns
//! its effects as [`PciEvent`]s; [`PciConfig::settings`] returns the current settings. The type is only rules and
//! bytes: the driver handles BAR registers, interrupts and DMA.
//!
//! The masks are those of the PCI specifications. Registers that vfio-pci virtualises
//! (`drivers/vfio/pci/vfio_pci_config.c`) behave as users see them there: the BARs belong to the user, a function level
//! reset reads back as zero and leaves the space unchanged, link control is read-only. Registers that vfio-pci filters
//! are the device's own: errors can be cleared, power management events exist, and writes enable MSI and MSI-X.
//!
//! ```
//! use whimbrel_device::pci::config::{Bar, Msi, PciConfig, PciEvent};
//!
//! let mut space = PciConfig::builder(0x1234, 0xacce)
//!     .class(0x12, 0x00, 0x00)
//!     .bar(0, Bar::Memory32 { size: 0x1000, prefetchable: false })
//!     .capability(Msi::new(1).address64(true))
//!     .build()?;
//!
//! // As a guest asks for the size of BAR 0.
//! space.write(0x10, &[0xff; 4]);
//! let mut mask = [0; 4];
//! space.read(0x10, &mut mask);
//! assert_eq!(u32::from_le_bytes(mask), 0xffff_f000);
//!
//! // As it enables the device: memory space and bus master.
//! let events = space.write(0x04, &[0x06, 0x00]);
//! assert_eq!(events, [PciEvent::MemoryDecoding(true), PciEvent::BusMaster(true)]);
//! # Ok::<(), whimbrel_device::pci::config::PciConfigError>(())
//! ```

mod bar;
mod builder;
mod capability;
mod capability_registers;
mod registers;
mod settings;

use std::ops::Range;
use std::sync::Arc;

pub use self::bar::Bar;
pub use self::builder::{InterruptPin, PciConfigBuilder, PciConfigError};
pub use self::capability::{Express, LinkSpeed, Msi, MsiX, PciCapability, PowerManagement, VendorSpecific};
use self::registers::{Registers, change16, get16};
pub use self::settings::{MsiSettings, MsiXSettings, PciEvent, PowerState, Settings};

/// The configuration space of one device.
#[derive(Clone, Debug)]
pub struct PciConfig {
    shape: Arc<Shape>,
    bytes: Vec<u8>,
}

/// The builder's settings, which do not change.
#[derive(Debug)]
struct Shape {
    registers: Registers,
    bars: [Option<Bar>; 6],
    rom: bool,
    power: Option<(usize, PowerManagement)>,
    msi: Option<(usize, Msi)>,
    msix: Option<(usize, MsiX)>,
    express: Option<(usize, Express)>,
}

/// A bus error for the status register: [`PciConfig::raise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusError {
    /// Poisoned data in a read or write of the device.
    MasterDataParity = 1 << 8,
    /// The device aborted an access as its target.
    SignaledTargetAbort = 1 << 11,
    /// An access of the device was aborted by its target.
    ReceivedTargetAbort = 1 << 12,
    /// An access of the device found no target.
    ReceivedMasterAbort = 1 << 13,
    /// The device signalled a system error.
    SignaledSystemError = 1 << 14,
    /// The device received poisoned data.
    DetectedParity = 1 << 15,
}

/// A PCI Express error for the device status register: [`PciConfig::raise_express`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpressError {
    /// A corrected error.
    Correctable = 1,
    /// A non-fatal error: one transaction is lost.
    NonFatal = 2,
    /// A fatal error: the link is not reliable.
    Fatal = 4,
    /// A request that the device does not support.
    UnsupportedRequest = 8,
}

/// A mismatch between saved bytes and the shape of this space. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PciConfigBytesError {
    /// The length differs.
    #[error("saved configuration space has {found} bytes, expected {expected}")]
    Length {
        /// The actual number.
        found: usize,
        /// The expected number.
        expected: usize,
    },
    /// Immutable bits differ: the bytes are from a different device.
    #[error(
        "byte {offset:#x} of the saved configuration space is {found:#04x}, which does not match this device"
    )]
    Byte {
        /// The first byte that differs.
        offset: usize,
        /// The actual value.
        found: u8,
    },
}

impl PciConfig {
    /// Returns a builder for a device of this vendor, with an empty type 0 header.
    pub fn builder(vendor: u16, device: u16) -> PciConfigBuilder {
        PciConfigBuilder::new(vendor, device)
    }

    /// Returns the length in bytes: 256, or 4096 with PCI Express.
    #[allow(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Returns the guest's settings.
    pub fn settings(&self) -> Settings {
        Settings::of(&self.shape, &self.bytes)
    }

    /// Reads from `offset`, with any alignment and length; bytes past the end read as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let start = self.start(offset);
        let count = data.len().min(self.bytes.len() - start);
        data[..count].copy_from_slice(&self.bytes[start..start + count]);
        data[count..].fill(0);
    }

    /// Writes at `offset`, with any alignment and length, and returns the effects in order. Read-only bits and bytes
    /// past the end are ignored.
    ///
    /// The write is split as in the kernel: four bytes where they are aligned, then two, then one.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<PciEvent> {
        let start = self.start(offset);
        let count = data.len().min(self.bytes.len() - start);
        let mut events = Vec::new();
        for place in accesses(start, count) {
            let data = &data[place.start - start..place.end - start];
            self.access(place, data, &mut events);
        }
        events
    }

    /// Resets everything to the power-on state, including raised errors.
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.shape.registers.value);
    }

    /// Raises a bus error, which stays in the status register until the guest clears it.
    pub fn raise(&mut self, error: BusError) {
        change16(&mut self.bytes, builder::STATUS, error as u16, true);
    }

    /// Raises a PCI Express error, which stays in the device status register until the guest clears it. No effect
    /// without the capability.
    pub fn raise_express(&mut self, error: ExpressError) {
        if let Some((at, _)) = self.shape.express {
            change16(&mut self.bytes, at + Express::STATUS, error as u16, true);
        }
    }

    /// Raises a power management event, which stays in the control register until the guest clears it. Returns whether
    /// it may be signalled.
    pub fn raise_pme(&mut self) -> bool {
        match self.shape.power {
            Some((at, power)) if power.pme => {
                let control = at + PowerManagement::CONTROL;
                change16(&mut self.bytes, control, PowerManagement::PME_STATUS, true);
                self.settings().pme_enabled
            }
            _ => false,
        }
    }

    /// Brings the device to D0 and returns the effects, as vfio-pci does before it puts a device to sleep.
    pub fn enter_d0(&mut self) -> Vec<PciEvent> {
        match self.shape.power {
            Some((at, _)) => {
                let control = at + PowerManagement::CONTROL;
                let low = self.bytes[control] & !(PowerManagement::STATE as u8);
                self.write(control as u64, &[low])
            }
            None => Vec::new(),
        }
    }

    /// Sets the pending bits of masked MSI vectors, one bit each. Missing vectors are ignored, and so are all if
    /// vectors cannot be masked.
    pub fn set_msi_pending(&mut self, vectors: u32) {
        if let Some((at, msi)) = self.shape.msi
            && msi.maskable
        {
            let place = at + msi.pending_offset();
            for (at, byte) in (place..).zip(vectors.to_le_bytes()) {
                self.bytes[at] = byte & self.shape.registers.device[at];
            }
        }
    }

    /// Sets the interrupt status bit, independently of the INTx disable bit. No effect without a pin.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        if self.has_interrupt_pin() {
            change16(&mut self.bytes, builder::STATUS, builder::STATUS_INTERRUPT, asserted);
        }
    }

    /// Returns BAR `index`; `None` if the device lacks it.
    pub fn bar(&self, index: u32) -> Option<Bar> {
        self.shape.bars.get(index as usize).copied().flatten()
    }

    /// The MSI capability.
    pub fn msi(&self) -> Option<Msi> {
        self.shape.msi.map(|(_, msi)| msi)
    }

    /// The MSI-X capability.
    pub fn msix(&self) -> Option<MsiX> {
        self.shape.msix.map(|(_, msix)| msix)
    }

    /// Returns whether the device has an interrupt pin.
    pub fn has_interrupt_pin(&self) -> bool {
        self.shape.registers.value[builder::INTERRUPT_PIN] != 0
    }

    /// Returns whether the device has the PCI Express capability.
    pub fn is_express(&self) -> bool {
        self.shape.express.is_some()
    }

    /// Returns all bytes, for [`PciConfig::restore`].
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// Restores the bytes that [`PciConfig::to_bytes`] returned for a space built the same way, and returns the
    /// effects. Invalid bytes are refused without a change.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<Vec<PciEvent>, PciConfigBytesError> {
        let registers = &self.shape.registers;
        if bytes.len() != registers.len() {
            return Err(PciConfigBytesError::Length { found: bytes.len(), expected: registers.len() });
        }
        for (offset, found) in bytes.iter().copied().enumerate() {
            let may_change =
                registers.writable[offset] | registers.clearable[offset] | registers.device[offset];
            if (found ^ registers.value[offset]) & !may_change != 0 {
                return Err(PciConfigBytesError::Byte { offset, found });
            }
        }
        if let Some((at, power)) = self.shape.power {
            let offset = at + PowerManagement::CONTROL;
            if !has_state(power, PowerState::of(get16(bytes, offset))) {
                return Err(PciConfigBytesError::Byte { offset, found: bytes[offset] });
            }
        }
        if let Some((at, msi)) = self.shape.msi {
            let offset = at + Msi::FLAGS;
            let enabled = (get16(bytes, offset) & Msi::ENABLED) >> Msi::ENABLED_SHIFT;
            if enabled > msi.vectors_log() {
                return Err(PciConfigBytesError::Byte { offset, found: bytes[offset] });
            }
        }
        let before = self.settings();
        self.bytes.copy_from_slice(bytes);
        let mut events = Vec::new();
        self.settings().since(&before, &mut events);
        Ok(events)
    }

    fn start(&self, offset: u64) -> usize {
        usize::try_from(offset).map_or(self.bytes.len(), |offset| offset.min(self.bytes.len()))
    }

    /// Executes one access within four aligned bytes.
    fn access(&mut self, place: Range<usize>, data: &[u8], events: &mut Vec<PciEvent>) {
        let registers = &self.shape.registers;
        if place.clone().all(|at| registers.writable[at] | registers.clearable[at] == 0) {
            return;
        }
        let before = self.settings();
        for (at, new) in place.clone().zip(data) {
            let (writable, clearable) = (registers.writable[at], registers.clearable[at]);
            self.bytes[at] = (self.bytes[at] & !writable & !(new & clearable)) | (new & writable);
        }
        self.settle_power(before.power);
        self.settle_msi();
        let after = self.settings();
        after.since(&before, events);
        if let Some((_, power)) = self.shape.power
            && !power.no_soft_reset
            && before.power == PowerState::D3Hot
            && after.power == PowerState::D0
        {
            events.push(PciEvent::SoftReset);
        }
        if let Some((at, express)) = self.shape.express
            && express.function_level_reset
            && place.contains(&(at + Express::RESET_BYTE))
            && data[at + Express::RESET_BYTE - place.start] & Express::RESET_BIT != 0
        {
            events.push(PciEvent::FunctionLevelReset);
        }
    }

    /// Rejects a missing power state, and one other than D0 that is not deeper, like the kernel's
    /// `pci_set_power_state()`.
    fn settle_power(&mut self, before: PowerState) {
        if let Some((at, power)) = self.shape.power {
            let offset = at + PowerManagement::CONTROL;
            let state = PowerState::of(get16(&self.bytes, offset));
            if !has_state(power, state) || (state != PowerState::D0 && state < before) {
                change16(&mut self.bytes, offset, PowerManagement::STATE, false);
                change16(&mut self.bytes, offset, before as u16, true);
            }
        }
    }

    /// Limits the enabled MSI vectors to the existing ones, like vfio-pci.
    fn settle_msi(&mut self) {
        if let Some((at, msi)) = self.shape.msi {
            let offset = at + Msi::FLAGS;
            let enabled = (get16(&self.bytes, offset) & Msi::ENABLED) >> Msi::ENABLED_SHIFT;
            if enabled > msi.vectors_log() {
                change16(&mut self.bytes, offset, Msi::ENABLED, false);
                change16(&mut self.bytes, offset, msi.vectors_log() << Msi::ENABLED_SHIFT, true);
            }
        }
    }
}

fn has_state(power: PowerManagement, state: PowerState) -> bool {
    match state {
        PowerState::D0 | PowerState::D3Hot => true,
        PowerState::D1 => power.d1,
        PowerState::D2 => power.d2,
    }
}

/// Splits `count` bytes from `start` into single accesses.
pub(crate) fn accesses(start: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    let (mut at, end) = (start, start + count);
    std::iter::from_fn(move || {
        let size = match end - at {
            0 => return None,
            4.. if at.is_multiple_of(4) => 4,
            2.. if at.is_multiple_of(2) => 2,
            _ => 1,
        };
        at += size;
        Some(at - size..at)
    })
}
