//! The engine behind vfio-pci.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::MmapRegion;
use whimbrel_uapi::pci::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaRegion, IrqAction, IrqData};

use super::{Fallible, Hardware, MEMORY_BYTES};

/// Clear of what an IOMMU reserves.
const IOVA: u64 = 0x100_0000;
const COMMAND: u64 = 0x04;
const BUS_MASTER: u16 = 0x0004;

pub(super) struct Vfio<D> {
    device: D,
    event: OwnedFd,
    is_message: bool,
    memory: Arc<MmapRegion>,
}

impl<D: Device> Vfio<D> {
    pub(super) fn new(mut device: D, is_message: bool) -> Fallible<Vfio<D>> {
        let memory = Arc::new(MmapRegion::new(MEMORY_BYTES)?);
        let addresses = device.dma_map().ok_or("the device has no address space")?;
        addresses.map_dma(IOVA, DmaMapFlags::READ | DmaMapFlags::WRITE, DmaRegion::from(memory.clone()))?;
        let mut command = [0; 2];
        device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command) | BUS_MASTER;
        device.write_region(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &command.to_le_bytes())?;
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        let index = if is_message { VFIO_PCI_MSI_IRQ_INDEX } else { VFIO_PCI_INTX_IRQ_INDEX };
        device.set_irq_triggers(index, 0, &[Some(event.as_fd())])?;
        Ok(Vfio { device, event, is_message, memory })
    }
}

impl<D: Device> Hardware for Vfio<D> {
    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Fallible<()> {
        Ok(self.device.read_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)?)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Fallible<()> {
        Ok(self.device.write_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)?)
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn take_interrupt(&mut self) -> Fallible<()> {
        rustix::io::read(&self.event, &mut [0; 8])?;
        Ok(())
    }

    fn rearm(&mut self) -> Fallible<()> {
        // vfio-pci masks the line at each interrupt, and messages never.
        if !self.is_message {
            self.device.set_irqs(VFIO_PCI_INTX_IRQ_INDEX, 0, IrqAction::Unmask, IrqData::None(1))?;
        }
        Ok(())
    }

    fn memory(&self) -> &MmapRegion {
        &self.memory
    }

    fn address(&self) -> u64 {
        IOVA
    }
}
