//! DMA mappings of a served device, by messages.

use std::os::fd::AsFd;

use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DirtyReport, DmaMap, DmaRegion, Error, FileOffset, Result};

use super::Client;
use super::connection::Connection;
use crate::message::{self, Command, DmaAccessModes, DmaUnmap, Reply, Request};

impl DmaMap for Client {
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        let connection = &mut *self.connection();
        let what = || format!("{} at {iova:#x}", Command::DmaMap);
        if connection.is_away() {
            return map_while_away(connection, what(), iova, rights, memory);
        }
        let file = memory.file().cloned().filter(|_| connection.agreed.max_msg_fds > 0);
        if file.is_none() {
            connection.attend().map_err(|error| {
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
            // The server has gone with the mapping, and the next one is told of it.
            Err(_) if is_new && connection.is_away() => Ok(()),
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
        let mut unmapped = 0;
        match unmap(connection, iova, size, &mut unmapped) {
            // The server has gone with the mappings.
            Err(_) if connection.is_away() => {}
            done => return done.map(|()| unmapped),
        }
        let what = || format!("{} at {iova:#x}", Command::DmaUnmap);
        let rest = connection.memory.unmap(iova, size).map_err(|errno| connection.refused(what(), errno))?;
        Ok(unmapped + rest)
    }

    fn unmap_dma_dirty(&mut self, dirty: &mut DirtyReport<'_>) -> Result<u64> {
        Client::unmap_dma_dirty(self, dirty)
    }
}

/// Maps memory for the next server: the previous one is gone.
fn map_while_away(
    connection: &Connection,
    what: String,
    iova: u64,
    rights: DmaMapFlags,
    memory: DmaRegion,
) -> Result<()> {
    if connection.memory.insert(iova, rights, memory) {
        return Ok(());
    }
    Err(connection.refused(what, Errno::EEXIST))
}

/// Unmaps a range by messages, and counts the bytes.
fn unmap(connection: &mut Connection, iova: u64, size: u64, unmapped: &mut u64) -> Result<()> {
    let mut ranges = connection.memory.filling(iova, size);
    if ranges.is_empty() {
        ranges.push((iova, size));
    }
    for (iova, size) in ranges {
        let what = || format!("{} at {iova:#x}", Command::DmaUnmap);
        let request = Request::DmaUnmap(DmaUnmap::Range { iova, size, bitmap: None });
        let answer = connection.ask_repeating(what, &request, &[])?;
        match answer.map(|answer| answer.reply) {
            None => *unmapped += size,
            Some(Reply::DmaUnmap(reply)) if reply.iova == iova && reply.size <= size => {
                *unmapped += reply.size;
            }
            _ => return Err(connection.invalid_reply(what(), "reply for a different range")),
        }
        connection.memory.remove(iova, size);
    }
    Ok(())
}
