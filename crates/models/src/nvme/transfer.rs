//! The transfer of a command's data between its buffer and the host's memory, one access at a time. No I/O.

use whimbrel_device::dma::{Access, DmaAccess};

use super::command::{Status, SubmissionEntry};
use super::prp::{PrpStep, PrpWalk};

/// A transfer in progress. It is no part of the device's state: a device that forgets it begins it again.
#[derive(Debug)]
pub(super) struct Transfer {
    walk: PrpWalk,
    data: Vec<u8>,
    /// Bytes of data that were transferred.
    done: usize,
    /// The device writes the host's memory.
    is_to_host: bool,
    /// The access in flight reads a list.
    reads_list: bool,
    /// Memory for accesses to part of the data.
    part: Vec<u8>,
}

impl Transfer {
    /// Returns a transfer of data to the host.
    pub(super) fn to_host(entry: &SubmissionEntry, data: Vec<u8>) -> Result<Transfer, Status> {
        Transfer::new(entry, data, true)
    }

    /// Returns a transfer from the host into a buffer.
    pub(super) fn from_host(entry: &SubmissionEntry, buffer: Vec<u8>) -> Result<Transfer, Status> {
        Transfer::new(entry, buffer, false)
    }

    fn new(entry: &SubmissionEntry, data: Vec<u8>, is_to_host: bool) -> Result<Transfer, Status> {
        let walk = PrpWalk::new(entry.prp1, entry.prp2, data.len() as u64)?;
        Ok(Transfer { walk, data, done: 0, is_to_host, reads_list: false, part: Vec::new() })
    }

    /// Returns the next access; `None` at the end.
    pub(super) fn next(&mut self) -> Option<DmaAccess> {
        let (piece, is_list) = match self.walk.step() {
            PrpStep::End => return None,
            PrpStep::List(piece) => (piece, true),
            PrpStep::Data(piece) => (piece, false),
        };
        self.reads_list = is_list;
        let bytes = piece.bytes as usize;
        let mut part = std::mem::take(&mut self.part);
        if is_list || !self.is_to_host {
            if !is_list && bytes == self.data.len() {
                return Some(DmaAccess::read(piece.address, std::mem::take(&mut self.data)));
            }
            part.resize(bytes, 0);
            return Some(DmaAccess::read(piece.address, part));
        }
        if bytes == self.data.len() {
            return Some(DmaAccess::write(piece.address, std::mem::take(&mut self.data)));
        }
        part.clear();
        part.extend_from_slice(&self.data[self.done..self.done + bytes]);
        Some(DmaAccess::write(piece.address, part))
    }

    /// Continues after an access that succeeded.
    pub(super) fn accessed(&mut self, access: DmaAccess) -> Result<(), Status> {
        if self.reads_list {
            let result = self.walk.take_list(&access.data);
            self.part = access.data;
            return result;
        }
        let bytes = access.data.len();
        if self.data.is_empty() {
            self.data = access.data;
        } else {
            if access.access == Access::Read {
                self.data[self.done..self.done + bytes].copy_from_slice(&access.data);
            }
            self.part = access.data;
        }
        self.done += bytes;
        Ok(())
    }

    /// Returns whether the host gets the data.
    pub(super) fn is_to_host(&self) -> bool {
        self.is_to_host
    }

    /// Returns the data, after the last access.
    pub(super) fn into_data(self) -> Vec<u8> {
        self.data
    }
}
