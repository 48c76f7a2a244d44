//! The buffers of device data on their way out: one fetched ahead, one shown to the user.

use super::super::{Backend, SectionMemory};
use crate::session::{SavingRead, saving_read};
use crate::{Errno, State};

/// A transaction is fetched from the device before `pending_bytes` is answered, because only the device knows
/// whether there is one: its estimate may say 0 while data is left, or the other way round.
#[derive(Debug)]
pub(super) struct Saving {
    buffer: Vec<u8>,
    capacity: usize,
    /// Bytes of `buffer` that have been fetched and not shown.
    fetched: usize,
    /// Bytes in the section that the user has not taken yet. It may be a buffer of none.
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

    /// The user begins an iteration, and has taken the buffer of the one before.
    pub(super) fn pending_bytes(&mut self, device: &mut dyn Backend, state: State) -> Result<u64, Errno> {
        self.shown = None;
        self.fetch(device, state)?;
        if self.fetched == 0 {
            return Ok(0);
        }
        // The count is an estimate: the loop goes on without it.
        let more = device.remaining().unwrap_or(0);
        Ok((self.fetched as u64).saturating_add(more))
    }

    /// The user asks for the data of this iteration.
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

    /// Bytes of the buffer that the user sees.
    pub(super) fn shown(&self) -> u64 {
        self.shown.unwrap_or(0)
    }

    fn fetch(&mut self, device: &mut dyn Backend, state: State) -> Result<(), Errno> {
        // In RUNNING the region says pre-copy for a device that has none.
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
