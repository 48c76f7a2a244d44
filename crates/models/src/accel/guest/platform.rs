//! The guest driver's access to the device's registers and to memory.

use whimbrel_device::{DeviceFile, Errno};
use whimbrel_uapi::pci::VFIO_PCI_BAR0_REGION_INDEX;

/// A driver's access to the device's registers and to the memory that it shares with the device.
pub trait Platform {
    /// The reason why an access failed.
    type Error;

    /// Reads all of `data` from the register block, BAR 0.
    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes all of `data` to the register block, BAR 0.
    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Self::Error>;

    /// Reads all of `data` from memory at the device's address `address`.
    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes all of `data` to memory at the device's address `address`.
    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Self::Error>;
}

/// A device in this process. Memory is accessed through the device's DMA mappings.
impl Platform for DeviceFile {
    type Error = Errno;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        whole(data.len(), self.read_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)?)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        whole(data.len(), self.write_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)?)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.bus().dma().read(address, data).map_err(|_| Errno::EFAULT)
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.bus().dma().write(address, data).map_err(|_| Errno::EFAULT)
    }
}

fn whole(expected: usize, transferred: usize) -> Result<(), Errno> {
    if transferred == expected { Ok(()) } else { Err(Errno::EIO) }
}
