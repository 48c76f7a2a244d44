//! The guest's settings, and the effects of a write for the driver to act on.

use super::Shape;
use super::builder::{
    BAR0, COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, ROM, ROM_ENABLE,
};
use super::capability::{Msi, MsiX, PowerManagement};
use super::registers::{get16, get32};

/// The power state of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_enums, reason = "the states of the PCI specification")]
pub enum PowerState {
    /// Full operation.
    D0,
    /// Light sleep.
    D1,
    /// Deeper sleep.
    D2,
    /// Off, with an accessible configuration space.
    D3Hot,
}

/// The guest's MSI settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsiSettings {
    /// Messages are enabled.
    pub enabled: bool,
    /// Number of vectors that the device may use, limited to its own.
    pub vectors: u8,
    /// Address of the messages.
    pub address: u64,
    /// Data of the messages for vector 0; the others change its low bits.
    pub data: u16,
    /// Mask bits of the vectors.
    pub masked: u32,
}

/// The guest's MSI-X settings in the configuration space; the device serves the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsiXSettings {
    /// Messages are enabled.
    pub enabled: bool,
    /// All vectors are masked, regardless of the table.
    pub all_masked: bool,
}

/// The guest's settings on which a device acts.
#[allow(clippy::struct_excessive_bools)] // Each is a bit of its own in the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// The device responds at its I/O ports.
    pub io_decoding: bool,
    /// The device responds at its memory, if its power state allows it: see [`Settings::memory_accessible`].
    pub memory_decoding: bool,
    /// The device may start DMA and send messages.
    pub bus_master: bool,
    /// The device must not assert its interrupt pin.
    pub intx_disabled: bool,
    /// Address of each existing base address register.
    pub bars: [Option<u64>; 6],
    /// Address of the ROM, if it is enabled.
    pub rom: Option<u32>,
    /// The power state.
    pub power: PowerState,
    /// The device may signal power management events.
    pub pme_enabled: bool,
    /// MSI, if the device has it.
    pub msi: Option<MsiSettings>,
    /// MSI-X, if the device has it.
    pub msix: Option<MsiXSettings>,
}

/// An effect of a write to the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PciEvent {
    /// I/O decoding was enabled or disabled.
    IoDecoding(bool),
    /// Memory decoding was enabled or disabled.
    MemoryDecoding(bool),
    /// Bus mastering was enabled or disabled.
    BusMaster(bool),
    /// The interrupt pin was disabled or enabled: for [`Interrupts::disable_line`](crate::Interrupts::disable_line).
    IntxDisabled(bool),
    /// A base address register has moved. A guest that probes sizes causes this too, with decoding off.
    Bar {
        /// Index of the register.
        index: usize,
        /// The bus address.
        address: u64,
    },
    /// The ROM was moved or disabled.
    Rom(Option<u32>),
    /// The power state changed.
    Power(PowerState),
    /// Power management events were enabled or disabled.
    PmeEnabled(bool),
    /// The MSI settings changed.
    Msi(MsiSettings),
    /// The MSI-X settings changed.
    MsiX(MsiXSettings),
    /// The device left D3hot and, according to its power management capability, must reset everything except the
    /// configuration space.
    SoftReset,
    /// The guest requested a function-level reset. The configuration space is unchanged, since the kernel saves and
    /// restores it around such a reset; [`PciConfig::reset`](super::PciConfig::reset) resets it too.
    FunctionLevelReset,
}

impl PowerState {
    pub(super) fn of(control: u16) -> Self {
        match control & PowerManagement::STATE {
            0 => PowerState::D0,
            1 => PowerState::D1,
            2 => PowerState::D2,
            _ => PowerState::D3Hot,
        }
    }
}

impl Settings {
    /// Returns whether the device responds to memory accesses: decoding is on and it is not in D3hot. Otherwise
    /// vfio-pci fails an access with EIO.
    pub fn memory_accessible(&self) -> bool {
        self.memory_decoding && self.power < PowerState::D3Hot
    }

    pub(super) fn of(shape: &Shape, bytes: &[u8]) -> Self {
        let command = get16(bytes, COMMAND);
        let mut bars = [None; 6];
        for (index, bar) in shape.bars.iter().enumerate() {
            bars[index] = bar.map(|bar| {
                let offset = BAR0 + 4 * index;
                let high = if bar.is_64_bit() { get32(bytes, offset + 4) } else { 0 };
                let low = get32(bytes, offset) & !(bar.size() - 1) as u32;
                u64::from(high) << 32 | u64::from(low)
            });
        }
        let rom = get32(bytes, ROM);
        let power = shape.power.map_or(0, |(at, _)| get16(bytes, at + PowerManagement::CONTROL));
        Settings {
            io_decoding: command & COMMAND_IO != 0,
            memory_decoding: command & COMMAND_MEMORY != 0,
            bus_master: command & COMMAND_BUS_MASTER != 0,
            intx_disabled: command & COMMAND_INTX_DISABLE != 0,
            bars,
            rom: (shape.rom && rom & ROM_ENABLE != 0).then_some(rom & !ROM_ENABLE),
            power: PowerState::of(power),
            pme_enabled: power & PowerManagement::PME_ENABLE != 0,
            msi: shape.msi.map(|(at, msi)| MsiSettings::of(msi, &bytes[at..])),
            msix: shape.msix.map(|(at, _)| {
                let flags = get16(bytes, at + MsiX::FLAGS);
                MsiXSettings { enabled: flags & MsiX::ENABLE != 0, all_masked: flags & MsiX::MASK_ALL != 0 }
            }),
        }
    }

    /// Returns the changes from `before` to `self`.
    pub(super) fn since(&self, before: &Settings, events: &mut Vec<PciEvent>) {
        let mut changed = |old: bool, new: bool, event: fn(bool) -> PciEvent| {
            if old != new {
                events.push(event(new));
            }
        };
        changed(before.io_decoding, self.io_decoding, PciEvent::IoDecoding);
        changed(before.memory_decoding, self.memory_decoding, PciEvent::MemoryDecoding);
        changed(before.bus_master, self.bus_master, PciEvent::BusMaster);
        changed(before.intx_disabled, self.intx_disabled, PciEvent::IntxDisabled);
        changed(before.pme_enabled, self.pme_enabled, PciEvent::PmeEnabled);
        for (index, (old, new)) in before.bars.iter().zip(self.bars).enumerate() {
            if let Some(address) = new
                && *old != new
            {
                events.push(PciEvent::Bar { index, address });
            }
        }
        if before.rom != self.rom {
            events.push(PciEvent::Rom(self.rom));
        }
        if before.power != self.power {
            events.push(PciEvent::Power(self.power));
        }
        if let Some(msi) = self.msi
            && before.msi != self.msi
        {
            events.push(PciEvent::Msi(msi));
        }
        if let Some(msix) = self.msix
            && before.msix != self.msix
        {
            events.push(PciEvent::MsiX(msix));
        }
    }
}

impl MsiSettings {
    fn of(msi: Msi, bytes: &[u8]) -> Self {
        let flags = get16(bytes, Msi::FLAGS);
        let high = if msi.address64 { get32(bytes, Msi::ADDRESS + 4) } else { 0 };
        MsiSettings {
            enabled: flags & Msi::ENABLE != 0,
            vectors: 1 << ((flags & Msi::ENABLED) >> Msi::ENABLED_SHIFT),
            address: u64::from(high) << 32 | u64::from(get32(bytes, Msi::ADDRESS)),
            data: get16(bytes, msi.data_offset()),
            masked: if msi.maskable { get32(bytes, msi.mask_offset()) } else { 0 },
        }
    }
}
