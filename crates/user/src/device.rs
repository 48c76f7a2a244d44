//! The interface of a device for the program that owns it.

use std::os::fd::BorrowedFd;

use whimbrel_protocol::info::{Irq, Region};
use whimbrel_protocol::irq::IrqAction;

use crate::dma_map::DmaMap;
use crate::error::{Error, Result};
use crate::irq_data::IrqData;
use crate::mapped_region::MappedRegion;
use crate::migratable::Migratable;
use crate::raw::RawDevice;
use crate::setup::ArmedInterrupts;

/// A device as its owner uses it: regions, interrupts and migration.
pub trait Device: Migratable {
    /// VFIO_DEVICE_GET_REGION_INFO.
    fn region_info(&mut self, index: u32) -> Result<Region>;

    /// VFIO_DEVICE_GET_IRQ_INFO.
    fn irq_info(&mut self, index: u32) -> Result<Irq>;

    /// Reads all of `data` from a region, or fails.
    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()>;

    /// Writes all of `data` to a region, or fails.
    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()>;

    /// Maps a part of a region with the flag MMAP: whole pages within the region, and within one of its sparse areas,
    /// if it has any.
    ///
    /// The default refuses, for a device without mappable regions.
    fn map_region(&mut self, index: u32, offset: u64, length: u64) -> Result<MappedRegion> {
        let _ = (offset, length);
        let why = format!("region {index} is not mappable; read and write it instead");
        Err(Error::unusable(self.name(), why))
    }

    /// VFIO_DEVICE_SET_IRQS on the interrupts of an index from `start` on.
    ///
    /// Only one of a PCI device's INTx, MSI and MSI-X is in use at a time. [`IrqAction::Trigger`] with
    /// [`IrqData::None`] of 0 disables it.
    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()>;

    /// Sets the eventfds of the interrupts from `start` on with [`Device::set_irqs`], and removes those with `None`.
    fn set_irq_triggers(
        &mut self,
        index: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<()> {
        self.set_irqs(index, start, IrqAction::Trigger, IrqData::Eventfd(eventfds))
    }

    /// Returns the interrupts that this object's user has armed with [`Device::set_irqs`], for a [`DeviceSetup`]; none
    /// for a device whose interrupts somebody else sets up, such as an [adopted](crate::kernel::Adopted) one.
    ///
    /// [`DeviceSetup`]: crate::DeviceSetup
    fn armed_interrupts(&mut self) -> Vec<ArmedInterrupts> {
        Vec::new()
    }

    /// Returns the address space of the device's DMA, if this object owns it. `None` for a device whose mappings
    /// somebody else manages, such as an [adopted](crate::kernel::Adopted) one.
    fn dma_map(&mut self) -> Option<&mut dyn DmaMap> {
        None
    }

    /// Returns the device's requests as bytes. `None`, the default, for a device without them, such as one behind a
    /// protocol of its own.
    fn raw(&mut self) -> Option<&mut dyn RawDevice> {
        None
    }
}
