//! The copies of device state that a source keeps until the destination confirms it, shared by the threads of its devices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::transfer::Transfer;
use super::worker::Turn;
use crate::error::Error;
use crate::proto::DESTINATION;
use crate::proto::backlog::{Backlog, Piece};
use crate::proto::intake::Misplaced;

/// The interval at which a wait looks whether it is interrupted.
const LOOK: Duration = Duration::from_millis(20);

/// The bytes of a piece of state.
pub(super) type Bytes = Arc<[u8]>;

/// The copies; none at a source whose lost connection ends the migration.
#[derive(Debug, Default)]
pub(super) struct Copies {
    backlog: Mutex<Option<Backlog<Bytes>>>,
    taken: Condvar,
}

impl Copies {
    /// Keeps copies from here on, of at most so many bytes.
    pub(super) fn keep(&self, devices: usize, window: u64) {
        *self.backlog.lock() = Some(Backlog::new(devices, window));
    }

    /// Returns whether copies are kept.
    pub(super) fn are_kept(&self) -> bool {
        self.backlog.lock().is_some()
    }

    /// Waits until there is room for another piece.
    pub(super) fn wait_for_room(&self, transfer: &Transfer, turn: &Turn<'_>) -> Result<(), Error> {
        let deadline = Instant::now() + transfer.timeout();
        let mut backlog = self.backlog.lock();
        while backlog.as_ref().is_some_and(|backlog| !backlog.has_room()) {
            if !transfer.allows(turn.epoch) {
                return Err(Error::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(Error::Silent { side: DESTINATION, waited: transfer.timeout() });
            }
            self.taken.wait_for(&mut backlog, LOOK);
        }
        Ok(())
    }

    /// Keeps a piece that is about to be sent.
    pub(super) fn push(&self, device: u32, data: &[u8], ends: bool) {
        if let Some(backlog) = &mut *self.backlog.lock() {
            backlog.push(device as usize, Piece { length: data.len() as u64, ends, data: data.into() });
        }
    }

    /// Takes in that state of a device has arrived.
    pub(super) fn taken(&self, device: u32, bytes: u64) -> Result<(), Misplaced> {
        let taken = self.backlog.lock().as_mut().map_or(Ok(()), |backlog| backlog.taken(device, bytes));
        self.taken.notify_all();
        taken
    }

    /// Takes in that all state has arrived.
    pub(super) fn all_taken(&self) {
        if let Some(backlog) = &mut *self.backlog.lock() {
            backlog.all_taken();
        }
        self.taken.notify_all();
    }

    /// Returns the pieces of a device after the first `from` bytes of its state, and all bytes so far.
    pub(super) fn after(&self, device: u32, from: u64) -> Result<(Vec<Piece<Bytes>>, u64), Misplaced> {
        match &mut *self.backlog.lock() {
            None => Ok((Vec::new(), 0)),
            Some(backlog) => {
                backlog.taken(device, from)?;
                Ok((backlog.left(device as usize), backlog.total(device as usize)))
            }
        }
    }
}
