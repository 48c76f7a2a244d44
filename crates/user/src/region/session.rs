//! A data session whose bytes go through the data section.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::region::{Phase, UserError, Version};
use whimbrel_protocol::session::Direction;

use super::half::Half;
use crate::data_file::StateFile;
use crate::error::Error;

/// Locks the half, which is consistent at every moment, even if a thread panicked.
pub(super) fn lock(half: &Mutex<Half>) -> MutexGuard<'_, Half> {
    half.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user's end of one session.
pub(super) struct RegionFile {
    half: Arc<Mutex<Half>>,
    direction: Direction,
    generation: u64,
    /// The transaction that is being handed out, and how many bytes of it have been.
    given: Vec<u8>,
    at: usize,
    /// The pieces of the transaction that is being taken.
    taken: Vec<u8>,
    failure: Option<Error>,
}

impl RegionFile {
    /// The session that `half` has just opened.
    pub(super) fn new(half: &Arc<Mutex<Half>>, direction: Direction) -> RegionFile {
        RegionFile {
            half: half.clone(),
            direction,
            generation: lock(half).generation,
            given: Vec::new(),
            at: 0,
            taken: Vec::new(),
            failure: None,
        }
    }

    /// Runs a function in the session, if the session is this file's and has not ended.
    fn with<T>(
        &mut self,
        direction: Direction,
        act: impl FnOnce(&mut Half) -> std::result::Result<T, UserError>,
    ) -> std::result::Result<T, Errno> {
        if self.direction != direction {
            return Err(Errno::EBADF);
        }
        let mut half = lock(&self.half);
        if half.generation != self.generation {
            return Err(Errno::ENODEV);
        }
        act(&mut half).map_err(|error| {
            let error = half.failed(error);
            let errno = error.errno().unwrap_or(Errno::EIO);
            self.failure = Some(error);
            errno
        })
    }

    fn load(&mut self, data: Vec<u8>, may_be_cut: bool) -> std::result::Result<(), Errno> {
        self.with(Direction::Resuming, |half| half.load(data, may_be_cut))
    }
}

impl StateFile for RegionFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        if self.at == self.given.len() {
            self.given = self.with(Direction::Saving, Half::save)?.unwrap_or_default();
            self.at = 0;
        } else {
            // Bytes that wait here end with the session.
            self.with(Direction::Saving, |_| Ok(()))?;
        }
        let count = buffer.len().min(self.given.len() - self.at);
        buffer[..count].copy_from_slice(&self.given[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }

    /// Bytes that nobody has divided are divided by the room there is.
    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        self.load(data.to_vec(), true)?;
        Ok(data.len())
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        let left = (self.given.len() - self.at) as u64;
        let pending = self
            .with(Direction::Saving, |half| half.is_in(Phase::PreCopy).then(|| half.pending()).transpose())?;
        // A region does not tell what must be carried before the stop from what may be.
        let dirty = pending.ok_or(Errno::EINVAL)?.saturating_add(left);
        Ok(PrecopyReport::new(0, dirty))
    }

    fn ends_transaction(&self) -> bool {
        self.at == self.given.len()
    }

    fn write_piece(&mut self, data: &[u8], ends: bool) -> std::result::Result<usize, Errno> {
        let (version, room) = {
            let half = lock(&self.half);
            (half.version(), half.room())
        };
        // The draft asks for the order only.
        if version == Version::Draft {
            return self.write(data);
        }
        let bytes = (self.taken.len() as u64).saturating_add(data.len() as u64);
        if bytes > room {
            self.taken = Vec::new();
            return self.with(Direction::Resuming, |_| Err(UserError::NoRoom { bytes, room }));
        }
        self.taken.extend_from_slice(data);
        if ends {
            let transaction = std::mem::take(&mut self.taken);
            self.load(transaction, false)?;
        }
        Ok(data.len())
    }

    fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}
