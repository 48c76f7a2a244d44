//! The hand of the owner: its program's hooks, and the journal.

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::handover::Entry;

use super::journal::Journal;
use super::worker::{Hand, Turn};
use crate::error::Error;
use crate::guest::{Blob, Guest, save_listed};
use crate::proto::operation::{Done, Operation};

/// The owner's program and journal.
pub(super) struct OwnerHand {
    pub(super) guest: Box<dyn Guest>,
    pub(super) journal: Option<Journal>,
    /// The owner's state: saved when it paused, or received for it.
    pub(super) blobs: Arc<Mutex<Vec<Blob>>>,
}

impl OwnerHand {
    fn pause(&mut self, turn: &Turn<'_>) -> Result<(), Error> {
        let guest = &mut self.guest;
        let listed = guest.blobs();
        let saved = turn.call(|| guest.pause().and_then(|()| save_listed(&mut **guest, &listed)));
        *self.blobs.lock() = saved.map_err(Error::Guest)?;
        Ok(())
    }

    fn inspect(&mut self, turn: &Turn<'_>) -> Result<(), Error> {
        let guest = &mut self.guest;
        let blobs = std::mem::take(&mut *self.blobs.lock());
        turn.call(|| guest.load(blobs).and_then(|()| guest.inspect())).map_err(Error::Guest)
    }

    fn record(&mut self, migration: u128, entry: Entry, turn: &Turn<'_>) -> Result<(), Error> {
        match &mut self.journal {
            Some(journal) => turn.call(|| journal.append(migration, entry)),
            None => Ok(()),
        }
    }
}

impl Hand for OwnerHand {
    fn perform(&mut self, operation: Operation, turn: &Turn<'_>) -> Result<Done, Error> {
        let guest = &mut self.guest;
        match operation {
            Operation::Slow(step) => {
                return turn.call(|| guest.slow_down(step)).map(Done::Slowed).map_err(Error::Guest);
            }
            Operation::Pause => self.pause(turn)?,
            Operation::Resume => turn.call(|| guest.resume()).map_err(Error::Guest)?,
            Operation::Inspect => self.inspect(turn)?,
            Operation::Run => turn.call(|| guest.run()).map_err(Error::Guest)?,
            Operation::Record { migration, entry } => self.record(migration, entry, turn)?,
            other => return Err(Error::Protocol(format!("{other} is not asked of the owner"))),
        }
        Ok(Done::Nothing)
    }
}
