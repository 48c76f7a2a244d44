//! The hand of the stream: it sends control messages and memory, and reads the logs of the memory.

use std::sync::Arc;

use parking_lot::Mutex;

use super::read_ahead::send_batches;
use super::transfer::Transfer;
use super::worker::{Hand, Turn};
use crate::error::Error;
use crate::guest::Blob;
use crate::progress::DirtyRange;
use crate::proto::frame::CHUNK;
use crate::proto::message::Message;
use crate::proto::operation::{Done, Operation, Sent};
use crate::set::{MemoryLogs, Pagemap, Ram, Scan, SharedLedger, Stretch};

/// The memory of a side, and the sender for it.
pub(super) struct StreamHand {
    pub(super) transfer: Arc<Transfer>,
    pub(super) ram: Option<Arc<dyn Ram>>,
    /// The holes of anonymous memory, read once for all rounds.
    pub(super) pagemap: Pagemap,
    pub(super) ledger: Arc<SharedLedger>,
    pub(super) logs: MemoryLogs<'static>,
    /// The owner's state, saved when it paused.
    pub(super) blobs: Arc<Mutex<Vec<Blob>>>,
}

impl StreamHand {
    fn send_memory(&mut self, turn: &Turn<'_>) -> Result<Sent, Error> {
        let Some(ram) = &self.ram else { return Ok(Sent::default()) };
        let dirty = self.ledger.lock().take();
        let scan = Scan::new(&**ram, &self.pagemap, dirty);
        let mut sent = Sent::default();
        sent.scanning = send_batches(scan, |batch| {
            for stretch in batch.stretches() {
                let (message, length) = match stretch {
                    Stretch::Zero { address, length } => {
                        sent.zero += length;
                        (Message::MemoryZero { address, length }, length)
                    }
                    Stretch::Data { address, data } => (Message::Memory { address, data }, data.len() as u64),
                };
                sent.bytes += length;
                sent.wire += self.transfer.send(&message, turn)?;
                self.transfer.count(length);
            }
            Ok(())
        })?;
        Ok(sent)
    }

    fn send_blobs(&mut self, turn: &Turn<'_>) -> Result<Sent, Error> {
        let mut sent = Sent::default();
        for blob in std::mem::take(&mut *self.blobs.lock()) {
            let mut pieces = blob.data.chunks(CHUNK).peekable();
            loop {
                let data = pieces.next().unwrap_or_default();
                let last = pieces.peek().is_none();
                let message = Message::Blob { name: &blob.name.name, version: blob.name.version, last, data };
                sent.wire += self.transfer.send(&message, turn)?;
                if last {
                    break;
                }
            }
        }
        Ok(sent)
    }

    fn send_padding(&mut self, mut left: u64, turn: &Turn<'_>) -> Result<Sent, Error> {
        let mut sent = Sent::default();
        let padding = vec![0; CHUNK];
        while left > 0 {
            let count = left.min(CHUNK as u64);
            let message = Message::Padding { data: &padding[..count as usize] };
            sent.wire += self.transfer.send(&message, turn)?;
            left -= count;
        }
        Ok(sent)
    }
}

impl Hand for StreamHand {
    fn perform(&mut self, operation: Operation, turn: &Turn<'_>) -> Result<Done, Error> {
        match operation {
            Operation::Send(control) => {
                self.transfer.send_now(&Message::Control(control), turn).map(|_| Done::Nothing)
            }
            Operation::StartMemoryLogs => {
                let (logs, ledger) = (&mut self.logs, &*self.ledger);
                turn.call(|| logs.start(ledger)).map(|()| Done::Nothing)
            }
            Operation::CollectMemoryLogs { stopped } => {
                let Some(ram) = &self.ram else { return Ok(Done::Bytes(0)) };
                let (logs, ledger) = (&mut self.logs, &*self.ledger);
                let bytes = turn.call(|| logs.collect(&**ram, ledger, stopped))?;
                // After the stop nobody is to blame any more.
                let most = if stopped { None } else { ledger.lock().dirtiest() };
                let most = most.map(|(part, dirty)| DirtyRange { start: part.start, size: part.size, dirty });
                Ok(Done::Dirty { bytes, most })
            }
            Operation::StopMemoryLogs => {
                let (logs, ledger) = (&mut self.logs, &*self.ledger);
                turn.call(|| logs.stop(ledger));
                Ok(Done::Nothing)
            }
            Operation::SendMemory => self.send_memory(turn).map(Done::Sent),
            Operation::SendBlobs => self.send_blobs(turn).map(Done::Sent),
            Operation::SendPadding(bytes) => self.send_padding(bytes, turn).map(Done::Sent),
            other => Err(Error::Protocol(format!("{other} is not asked of the stream"))),
        }
    }
}
