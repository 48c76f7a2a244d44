//! The guest's driver of an engine behind a client, in memory of this process.

use std::sync::Arc;

use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use whimbrel_models::accel::guest::Platform;
use whimbrel_user::{Device, Error};
use whimbrel_vfio_user::Client;

/// A client and the memory that its device reaches from `base` on.
pub(crate) struct Seat<'a> {
    pub(crate) client: &'a mut Client,
    pub(crate) memory: Arc<MmapRegion>,
    pub(crate) base: u64,
}

impl Platform for Seat<'_> {
    type Error = Error;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.client.read_region(0, offset, data)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.client.write_region(0, offset, data)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Error> {
        self.memory.as_volatile_slice().read_slice(data, (address - self.base) as usize).unwrap();
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Error> {
        self.memory.as_volatile_slice().write_slice(data, (address - self.base) as usize).unwrap();
        Ok(())
    }
}
