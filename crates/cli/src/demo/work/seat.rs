//! A device and the machine's memory, as the drivers of guests reach them.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use whimbrel_models::accel::guest::Platform;
use whimbrel_uapi::pci::VFIO_PCI_BAR0_REGION_INDEX;
use whimbrel_user::Device;

use super::super::machine::Memory;
use crate::failure::Failure;

/// The device and the machine's memory, for the guest's driver.
pub(super) struct Seat {
    pub(super) device: Box<dyn Device>,
    pub(super) memory: Arc<Memory>,
}

impl Platform for Seat {
    type Error = Failure;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        Ok(self.device.read_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)?)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        Ok(self.device.write_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)?)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Failure> {
        self.memory.read_slice(data, GuestAddress(address)).map_err(|error| Failure::from_error(&error))
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Failure> {
        self.memory.write_slice(data, GuestAddress(address)).map_err(|error| Failure::from_error(&error))
    }
}
