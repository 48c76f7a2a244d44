//! Outgoing buffers of device data: one fetched ahead, one shown to the user.

use super::super::{Backend, SectionMemory};
use crate::session::{SavingRead, saving_read};
use crate::{Errno, State};

/// The outgoing buffers. A transaction is fetched from the device before `pending_bytes` is answered, because
/// only a fetch tells whether one exists: the device's estimate may be 0 while data is left, or the other way
/// round.
#[derive(Debug)]
pub(super) struct Saving {
    buffer: Vec<u8>,
    capacity: usize,
    /// Bytes of `buffer` that have been fetched and not shown.
    fetched: usize,
    /// Bytes in the section that the user has not taken yet. The buffer may be empty.
    shown: Option<u64>,
}

impl Saving {
    pub(super) fn new(capacity: usize) -> Saving {
        Saving { buffer: Vec::new(), capacity, fetched: 0, shown: None }
    }

    pub(super) fn clear(&mut self) {
        self.fetched = 0;
        self.shown = None;
    }

    /// Begins an iteration of the user, who has taken the buffer of the previous one.
    pub(super) fn pending_bytes(&mut self, device: &mut dyn Backend, state: State) -> Result<u64, Errno> {
        self.shown = None;
        self.fetch(device, state)?;
        if self.fetched == 0 {
            return Ok(0);
        }
        // The count is an estimate: the loop continues without it.
        let more = device.remaining().unwrap_or(0);
        Ok((self.fetched as u64).saturating_add(more))
    }

    /// Shows the data of this iteration to the user.
    pub(super) fn show(
        &mut self,
        device: &mut dyn Backend,
        state: State,
        data_offset: u64,
        memory: &mut impl SectionMemory,
    ) -> Result<(), Errno> {
        if self.shown.is_some() {
            return Ok(());
        }
        self.fetch(device, state)?;
        memory.write(data_offset, &self.buffer[..self.fetched])?;
        self.shown = Some(self.fetched as u64);
        self.fetched = 0;
        Ok(())
    }

    /// Returns the size in bytes of the buffer that the user sees.
    pub(super) fn shown(&self) -> u64 {
        self.shown.unwrap_or(0)
    }

    fn fetch(&mut self, device: &mut dyn Backend, state: State) -> Result<(), Errno> {
        // In RUNNING the region shows pre-copy for a device without it.
        if self.fetched > 0 || !state.is_saving() {
            return Ok(());
        }
        self.buffer.resize(self.capacity, 0);
        let read = device.save(&mut self.buffer).map(|count| count.min(self.capacity));
        if let SavingRead::Data(count) = saving_read(state, read)? {
            self.fetched = count;
        }
        Ok(())
    }
}
