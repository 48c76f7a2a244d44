//! Reads and writes of regions.

use whimbrel_device::Errno;

use super::client::Client;
use crate::message::{Command, Kind, RegionAccess, Reply, WriteMulti};

impl Client {
    pub(super) fn region_read(&mut self, id: u16, access: RegionAccess) -> Result<(), Errno> {
        /// The offset of the count in a reply.
        const COUNT: usize = 12;
        let message = self.out.begin(id, Command::RegionRead.number(), Kind::Reply);
        access.put(&mut self.out);
        let room = self.out.grow(access.count as usize);
        let count = self.backend.device.read_region(access.region, access.offset, room)?;
        self.out.shrink(access.count as usize - count);
        self.out.patch_u32(&message, COUNT, count as u32);
        self.out.finish(message);
        Ok(())
    }

    pub(super) fn write_multi(&mut self, id: u16, writes: &WriteMulti<'_>) -> Result<(), Errno> {
        if !self.agreed.as_ref().is_some_and(|agreed| agreed.write_multiple) {
            return Err(Errno::ENOTTY);
        }
        let mut completed = 0;
        for write in writes.iter() {
            match self.device().write_region(write.region(), write.offset(), write.data()) {
                Ok(count) if count == write.data().len() => completed += 1,
                Err(errno) if completed == 0 => return Err(errno),
                // What was done is told, as the kernel tells of a write that ends early.
                Ok(_) | Err(_) => break,
            }
        }
        self.out.reply(id, &Reply::RegionWriteMulti { completed });
        Ok(())
    }
}
