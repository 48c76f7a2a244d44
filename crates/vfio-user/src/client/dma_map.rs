//! DMA mappings of a served device, by messages.

use std::os::fd::AsFd;

use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DirtyReport, DmaMap, DmaRegion, Error, FileOffset, Result};

use super::Client;
use crate::message::{self, Command, DmaAccessModes, DmaUnmap, Reply, Request};

impl DmaMap for Client {
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        let connection = &mut *self.connection();
        let what = || format!("{} at {iova:#x}", Command::DmaMap);
        let file = memory.file().cloned().filter(|_| connection.agreed.max_msg_fds > 0);
        if file.is_none() {
            connection.attend(&self.connection).map_err(|error| {
                let why =
                    format!("{}: cannot start a thread for the server's memory accesses: {error}", what());
                Error::unusable(&self.name, why)
            })?;
        }
        let offset = file.as_ref().map_or(0, FileOffset::start);
        let map =
            message::DmaMap { rights, modes: DmaAccessModes::empty(), offset, iova, size: memory.size() };
        let descriptors: Vec<_> = file.iter().map(|file| file.file().as_fd()).collect();
        // The device may ask for it before the server says that it is mapped.
        let size = memory.size();
        let is_new = connection.memory.insert(iova, rights, memory);
        match connection.ask(what, &Request::DmaMap(map), &descriptors).map(drop) {
            Ok(()) if is_new => Ok(()),
            Ok(()) => {
                Err(connection.invalid_reply(what(), "accepted a mapping that overlaps an earlier one"))
            }
            Err(error) => {
                if is_new {
                    connection.memory.remove(iova, size);
                }
                Err(error)
            }
        }
    }

    /// Unmaps the mappings in the range one by one, for servers that accept only one at a time.
    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64> {
        let connection = &mut *self.connection();
        let mut ranges = connection.memory.filling(iova, size);
        if ranges.is_empty() {
            ranges.push((iova, size));
        }
        let mut unmapped = 0;
        for (iova, size) in ranges {
            let what = || format!("{} at {iova:#x}", Command::DmaUnmap);
            let request = Request::DmaUnmap(DmaUnmap::Range { iova, size, bitmap: None });
            let answer = connection.ask_repeating(what, &request, &[])?;
            match answer.map(|answer| answer.reply) {
                None => unmapped += size,
                Some(Reply::DmaUnmap(reply)) if reply.iova == iova && reply.size <= size => {
                    unmapped += reply.size;
                }
                _ => return Err(connection.invalid_reply(what(), "reply for a different range")),
            }
            connection.memory.remove(iova, size);
        }
        Ok(unmapped)
    }

    fn unmap_dma_dirty(&mut self, dirty: &mut DirtyReport<'_>) -> Result<u64> {
        Client::unmap_dma_dirty(self, dirty)
    }
}
