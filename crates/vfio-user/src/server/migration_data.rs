//! VFIO_USER_MIG_DATA_READ and VFIO_USER_MIG_DATA_WRITE: the device's state, over the socket of the commands.

use whimbrel_device::Errno;

use super::client::Client;
use crate::message::{Command, Kind, Reply};

impl Client {
    /// Fewer bytes than asked for mean that there are no more, for good or for now: so it reads until one or
    /// the other.
    pub(super) fn mig_data_read(&mut self, id: u16, size: u32) -> Result<(), Errno> {
        let backend = self.backend.clone();
        let data_file = backend.data_file.lock();
        // As a descriptor that was never given.
        let data_file = data_file.as_ref().ok_or(Errno::EBADF)?;
        let message = self.out.begin(id, Command::MigDataRead.number(), Kind::Reply);
        self.out.put(&[0; 8]);
        let room = self.out.grow(size as usize);
        let mut filled = 0;
        while filled < room.len() {
            match data_file.read(&mut room[filled..]) {
                Ok(0) | Err(Errno::ENOMSG) => break,
                Ok(count) => filled += count,
                Err(errno) => return Err(errno),
            }
        }
        self.out.shrink(size as usize - filled);
        self.out.patch_u32(&message, 0, 8 + filled as u32);
        self.out.patch_u32(&message, 4, filled as u32);
        self.out.finish(message);
        Ok(())
    }

    pub(super) fn mig_data_write(&mut self, id: u16, mut data: &[u8]) -> Result<(), Errno> {
        let backend = self.backend.clone();
        let data_file = backend.data_file.lock();
        let data_file = data_file.as_ref().ok_or(Errno::EBADF)?;
        // A write of nothing is judged too.
        loop {
            let taken = data_file.write(data)?;
            data = &data[taken.min(data.len())..];
            match (data.is_empty(), taken) {
                (true, _) => break,
                // Nothing would ever change.
                (false, 0) => return Err(Errno::EIO),
                (false, _) => {}
            }
        }
        self.out.reply(id, &Reply::MigDataWrite);
        Ok(())
    }
}
