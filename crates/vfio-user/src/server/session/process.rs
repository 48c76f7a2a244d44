//! Converts a request of a message into the raw request of a process, so that the device's own checks apply, in their
//! order: the memory is the message, and descriptors are those received with it.

use std::os::fd::OwnedFd;

use whimbrel_device::{DataFile, Errno, Fault, Process};

use crate::descriptor_kind::DescriptorKind;
use crate::descriptors::Descriptors;

/// The address of a second piece of memory.
pub(super) const SECOND: u64 = 1 << 40;

/// The number of a data file in the process.
const DATA_FILE: i32 = i32::MAX;

/// The process of one request.
#[derive(Debug, Default)]
pub(super) struct Caller {
    /// At address 0.
    pub(super) memory: Vec<u8>,
    /// The contents after `memory`, unlimited; a fault if `None`.
    pub(super) filler: Option<u8>,
    /// At [`SECOND`].
    pub(super) second: Vec<u8>,
    /// Descriptors by their index in the message.
    pub(super) descriptors: Descriptors,
    /// The data file that the request opened.
    pub(super) data_file: Option<DataFile>,
}

impl Process for Caller {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let (piece, offset, filler) = match address.checked_sub(SECOND) {
            Some(offset) => (&self.second, offset, None),
            None => (&self.memory, address, self.filler),
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(piece.len());
        let found = &piece[start..piece.len().min(start.saturating_add(buffer.len()))];
        let (head, tail) = buffer.split_at_mut(found.len());
        if let (false, None) = (tail.is_empty(), filler) {
            return Err(Fault::new(address.saturating_add(found.len() as u64)));
        }
        head.copy_from_slice(found);
        tail.fill(filler.unwrap_or_default());
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        let start = usize::try_from(address).map_err(|_| Fault::new(address))?;
        let end = start.checked_add(data.len()).ok_or(Fault::new(address))?;
        self.memory.get_mut(start..end).ok_or(Fault::new(address))?.copy_from_slice(data);
        Ok(())
    }

    fn install(&mut self, file: DataFile) -> Result<i32, Errno> {
        self.data_file = Some(file);
        Ok(DATA_FILE)
    }

    fn uninstall(&mut self, _fd: i32) {
        self.data_file = None;
    }

    fn eventfd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        let found = usize::try_from(fd).ok().and_then(|index| self.descriptors.get(index));
        let found = found.ok_or(Errno::EBADF)?;
        // Closing a copy of anything else might block forever.
        if DescriptorKind::of(found) != DescriptorKind::Eventfd {
            return Err(Errno::EINVAL);
        }
        found.try_clone().map_err(|_| Errno::EMFILE)
    }
}
