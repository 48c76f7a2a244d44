//! The configuration space of a PCI device: what a guest finds when it probes, and what its writes do.
//!
//! A [`PciConfig`] is built once ([`PciConfig::builder`]), read and written as region 7 of a device, and
//! tells with [`PciEvent`]s what a write did; [`PciConfig::settings`] tells what is set. It is rules and
//! bytes alone: no register behind a BAR, no interrupt and no DMA is touched here. The driver does that.
//!
//! The masks are those of the PCI specifications. Where vfio-pci virtualises a register
//! (`drivers/vfio/pci/vfio_pci_config.c`) it is as a user finds it there: the BARs are the user's alone, a
//! function level reset reads back as zero and leaves the space as it was, link control takes no writes.
//! Where vfio-pci stands between the user and the device, it is the device's own: errors can be cleared,
//! power management events exist, MSI and MSI-X are enabled by writing them.
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

/// An error of the bus, for the status register: [`PciConfig::raise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusError {
    /// Data that the device read, or wrote, was poisoned.
    MasterDataParity = 1 << 8,
    /// The device aborted an access to itself.
    SignaledTargetAbort = 1 << 11,
    /// An access of the device was aborted by its target.
    ReceivedTargetAbort = 1 << 12,
    /// An access of the device found no target.
    ReceivedMasterAbort = 1 << 13,
    /// The device signalled a system error.
    SignaledSystemError = 1 << 14,
    /// The device got poisoned data.
    DetectedParity = 1 << 15,
}

/// An error of PCI Express, for the device status register: [`PciConfig::raise_express`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpressError {
    /// It was corrected.
    Correctable = 1,
    /// One transaction is lost.
    NonFatal = 2,
    /// The link is not reliable any more.
    Fatal = 4,
    /// A request that the device does not support.
    UnsupportedRequest = 8,
}

/// A mismatch between saved bytes and the shape of this space. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PciConfigBytesError {
    /// There are too many bytes, or too few.
    #[error("saved configuration space has {found} bytes, expected {expected}")]
    Length {
        /// The actual number.
        found: usize,
        /// The expected number.
        expected: usize,
    },
    /// Bits differ that nothing can have changed: it was saved from another device.
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
    /// A space for a device of this vendor, with a header of type 0 and nothing in it yet.
    pub fn builder(vendor: u16, device: u16) -> PciConfigBuilder {
        PciConfigBuilder::new(vendor, device)
    }

    /// Its length in bytes: 256, or 4096 with PCI Express.
    #[allow(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Returns the guest's settings.
    pub fn settings(&self) -> Settings {
        Settings::of(&self.shape, &self.bytes)
    }

    /// Reads from `offset`, of any alignment and length; what lies past the end reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let start = self.start(offset);
        let count = data.len().min(self.bytes.len() - start);
        data[..count].copy_from_slice(&self.bytes[start..start + count]);
        data[count..].fill(0);
    }

    /// Writes at `offset`, of any alignment and length, and tells what that did, in order. Bits that cannot
    /// be changed and bytes past the end are ignored.
    ///
    /// It is cut into accesses as the kernel cuts it: four bytes where they are aligned, then two, then one.
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

    /// Brings everything back to power-on, what the device raised too.
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.shape.registers.value);
    }

    /// The device met an error of the bus. It stays in the status register until the guest clears it.
    pub fn raise(&mut self, error: BusError) {
        change16(&mut self.bytes, builder::STATUS, error as u16, true);
    }

    /// The device met an error of PCI Express. It stays in the device status register until the guest clears
    /// it. Without the capability there is no such register, and nothing happens.
    pub fn raise_express(&mut self, error: ExpressError) {
        if let Some((at, _)) = self.shape.express {
            change16(&mut self.bytes, at + Express::STATUS, error as u16, true);
        }
    }

    /// The device has a power management event, which stays in the control register until the guest clears
    /// it. Says whether it may be signalled.
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

    /// Brings the device to D0 and tells what that did: what vfio-pci does before it puts a device to sleep.
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

    /// Shows which MSI vectors are pending because they are masked, a bit each. Vectors that the device does
    /// not have are ignored, and all are where vectors cannot be masked.
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

    /// Shows in the status register whether the device asserts its interrupt pin, whatever the INTx disable bit says.
    /// Without a pin nothing happens.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        if self.has_interrupt_pin() {
            change16(&mut self.bytes, builder::STATUS, builder::STATUS_INTERRUPT, asserted);
        }
    }

    /// BAR `index`; `None` for one that the device lacks.
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

    /// All of it, to be kept or sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// Takes what [`PciConfig::to_bytes`] gave for a space that was built the same way, and tells what is
    /// different from before. Bytes that this space can never have are refused, and nothing is changed.
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

    /// One access, which lies within four aligned bytes.
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

    /// A power state that the device does not have is not entered, nor is one that does not lie deeper, other
    /// than D0: `pci_set_power_state()` in the kernel refuses the same.
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

    /// No more MSI vectors are enabled than there are: vfio-pci puts the largest number instead.
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

/// The single accesses that `count` bytes from `start` are cut into.
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
