//! A whole function, as a guest and as the user of its device see it.

mod line;
mod messages;
mod saved;
mod serving;

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::pci::config::{Bar, InterruptPin, Msi, MsiX, PciConfig, PowerManagement};
use whimbrel_device::pci::function::{Access, Function};
use whimbrel_device::{Context, DeviceFile, Driver, Errno, Info, Irq, Region};

pub(super) const CONFIG: u32 = 7;
pub(super) const COMMAND: u64 = 0x04;
pub(super) const MEMORY: u16 = 1 << 1;
pub(super) const MASTER: u16 = 1 << 2;
pub(super) const INTX_DISABLE: u16 = 1 << 10;
pub(super) const STATUS_INTERRUPT: u16 = 1 << 3;
/// BAR 0: what is written to it becomes the line, and the message of this vector is sent if it is below 0x80.
pub(super) const LINE: u8 = 0x80;

/// A driver whose only register sends interrupts.
struct Card(Function);

impl Driver for Card {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        Ok(self.0.region(index))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(self.0.irq(index))
    }

    fn read_region(&mut self, _: &Context, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        if let Access::Driver = self.0.read_region(index, offset, data)? {
            data.fill(if self.0.dma().is_some() { 0xda } else { 0 });
        }
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if let Access::Driver = self.0.write_region(index, offset, data)? {
            match data[0] {
                vector if vector < LINE => self.0.send_message(vector.into()),
                level => self.0.set_line(level & 1 != 0),
            }
        }
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.0.reset();
        Ok(())
    }
}

pub(super) const TABLE: MsiX = MsiX::new(70, 1).pending_offset(0x800);

/// A configuration space with all kinds of interrupts; power management is at 0x40, MSI at 0x48, MSI-X at 0x60.
pub(super) fn config() -> PciConfig {
    PciConfig::builder(0x1234, 0x0001)
        .command(MEMORY)
        .interrupt_pin(InterruptPin::A)
        .bar(0, Bar::Memory32 { size: 0x1000, prefetchable: false })
        .bar(1, Bar::Memory32 { size: 0x1000, prefetchable: false })
        .capability_at(0x40, PowerManagement::default().no_soft_reset(true))
        .capability_at(0x48, Msi::new(4).address64(true).maskable(true))
        .capability_at(0x60, TABLE)
        .build()
        .unwrap()
}

pub(super) fn card() -> DeviceFile {
    with(|function| function)
}

pub(super) fn with(change: impl FnOnce(Function) -> Function) -> DeviceFile {
    DeviceFile::new("card", |bus| Card(change(Function::new(config(), bus))))
}

pub(super) fn write(device: &DeviceFile, region: u32, offset: u64, data: &[u8]) {
    assert_eq!(device.write_region(region, offset, data), Ok(data.len()), "{offset:#x} of region {region}");
}

pub(super) fn read32(device: &DeviceFile, region: u32, offset: u64) -> u32 {
    let mut data = [0; 4];
    assert_eq!(device.read_region(region, offset, &mut data), Ok(4), "{offset:#x} of region {region}");
    u32::from_le_bytes(data)
}

pub(super) fn command(device: &DeviceFile, bits: u16) {
    write(device, CONFIG, COMMAND, &bits.to_le_bytes());
}

/// Puts the card into D0 (0) or D3hot (3).
pub(super) fn power(device: &DeviceFile, state: u8) {
    write(device, CONFIG, 0x44, &[state]);
}

/// The device does what is written to its register.
pub(super) fn act(device: &DeviceFile, value: u8) {
    write(device, 0, 0, &[value]);
}

/// The eventfd of an interrupt, set up by the user.
pub(super) fn eventfd(device: &DeviceFile, index: u32, start: u32) -> EventFd {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    device.set_irq_triggers(index, start, vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]).unwrap();
    eventfd
}

pub(super) fn fired(eventfd: &EventFd) -> bool {
    eventfd.read().is_ok()
}
