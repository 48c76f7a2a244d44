//! VFIO_USER_DEVICE_GET_REGION_IO_FDS: eventfds that each execute a write to the device when they are signalled: the
//! doorbells that its driver names, and those given to the [`Backend`](super::Backend).

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use whimbrel_device::{Errno, IoeventfdWrite};

use super::client::Client;
use crate::message::{IoFdKind, RegionIoFdsReply, Reply, SubRegion};

impl Client {
    pub(super) fn region_io_fds(&mut self, id: u16, argsz: u32, index: u32) -> Result<(), Errno> {
        self.device().region_info(index)?;
        let most = self.agreed.as_ref().map_or(0, |agreed| agreed.max_msg_fds as usize);
        let named = self.device().doorbells();
        let mut writes: Vec<IoeventfdWrite> = Vec::new();
        for write in named.iter().chain(&self.backend.ioeventfds).filter(|write| write.region == index) {
            if writes.len() < most && !writes.contains(write) {
                writes.push(*write);
            }
        }
        let sub_regions: Vec<SubRegion> = writes
            .iter()
            .zip(0..)
            .map(|(write, fd_index)| SubRegion {
                offset: write.offset,
                size: write.width.bytes() as u64,
                fd_index,
                kind: IoFdKind::Ioeventfd { flags: IoFdKind::DATAMATCH, datamatch: write.data },
            })
            .collect();
        let reply = RegionIoFdsReply::new(index, sub_regions, argsz);
        if reply.is_whole() {
            for write in writes {
                let fd = self.ioeventfd(write)?;
                self.descriptors.push(fd);
            }
        }
        self.out.reply(id, &Reply::DeviceGetRegionIoFds(reply));
        Ok(())
    }

    /// Returns the eventfd that executes a write, for the client.
    fn ioeventfd(&mut self, write: IoeventfdWrite) -> Result<OwnedFd, Errno> {
        let copy = |eventfd: &OwnedFd| {
            eventfd.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EMFILE))
        };
        if !self.ioeventfds.contains_key(&write) {
            let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            self.device().set_ioeventfd(write, Some(copy(&made)?))?;
            self.ioeventfds.insert(write, made);
        }
        copy(self.ioeventfds.get(&write).ok_or(Errno::EMFILE)?)
    }
}
