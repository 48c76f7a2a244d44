//! The hand of the stream: it sends control messages and memory, and reads the logs of the memory.

use std::sync::Arc;

use parking_lot::Mutex;

use super::lanes::{each_lane, open_lanes};
use super::read_ahead::send_batches;
use super::replace::Replace;
use super::transfer::Transfer;
use super::worker::{Hand, Turn};
use crate::channel::Connect;
use crate::error::Error;
use crate::guest::Blob;
use crate::progress::DirtyRange;
use crate::proto::control::Control;
use crate::proto::frame::CHUNK;
use crate::proto::lanes::Share;
use crate::proto::message::Message;
use crate::proto::operation::{Done, Operation, Sent};
use crate::set::{Batch, MemoryLogs, Pagemap, Ram, Scan, SharedLedger, Stretch, Walk};

/// The memory of a side, and the sender for it.
pub(super) struct StreamHand {
    pub(super) transfer: Arc<Transfer>,
    /// The replacement of a lost connection.
    pub(super) replace: Box<dyn Replace>,
    /// Opens further connections, at a source that has one.
    pub(super) connector: Option<Box<dyn Connect>>,
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
        let lanes = self.transfer.lanes();
        if lanes == 1 {
            let mut sent = Sent::default();
            let scan = Scan::new(&**ram, &self.pagemap, dirty);
            sent.scanning =
                send_batches(scan, |batch| send_batch(&self.transfer, 0, batch, &mut sent, turn))?;
            return Ok(sent);
        }
        let (transfer, pagemap) = (&*self.transfer, &self.pagemap);
        let walk = Walk::new(&**ram, pagemap, dirty);
        each_lane(lanes, |lane| {
            let mut sent = Sent::default();
            let mut scan = walk.scan(Share::new(lane, lanes));
            let mut batch = Batch::default();
            while scan.fill(&mut batch)? {
                send_batch(transfer, lane, &batch, &mut sent, turn)?;
            }
            sent.scanning = scan.scanning();
            Ok(sent)
        })
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

    fn send_padding(&mut self, bytes: u64, turn: &Turn<'_>) -> Result<Sent, Error> {
        let padding = vec![0; CHUNK];
        let lanes = self.transfer.lanes();
        each_lane(lanes, |lane| {
            let mut sent = Sent::default();
            let mut left = bytes / u64::from(lanes);
            while left > 0 {
                let count = left.min(CHUNK as u64);
                let message = Message::Padding { data: &padding[..count as usize] };
                sent.wire += self.transfer.send_on(lane, &message, turn)?;
                left -= count;
            }
            Ok(sent)
        })
    }

    fn mark_lanes(&mut self, number: u32, turn: &Turn<'_>) -> Result<(), Error> {
        let mark = Message::Control(Control::Mark { number });
        (1..self.transfer.lanes()).try_for_each(|lane| self.transfer.send_now_on(lane, &mark, turn).map(drop))
    }
}

/// Sends the stretches of a batch on a lane, and counts them.
fn send_batch(
    transfer: &Transfer,
    lane: u32,
    batch: &Batch,
    sent: &mut Sent,
    turn: &Turn<'_>,
) -> Result<(), Error> {
    let most = transfer.compressors().most_memory();
    let mut give = |message: Message<'_>, length: u64, zero: u64| {
        sent.zero += zero;
        sent.bytes += length;
        sent.wire += transfer.send_on(lane, &message, turn)?;
        transfer.count_memory(length, zero > 0);
        Ok::<(), Error>(())
    };
    for stretch in batch.stretches() {
        match stretch {
            Stretch::Zero { address, length } => {
                give(Message::MemoryZero { address, length }, length, length)?;
            }
            Stretch::Data { address, data } => {
                for (piece, data) in data.chunks(most).enumerate() {
                    let address = address + (piece * most) as u64;
                    give(Message::Memory { address, data }, data.len() as u64, 0)?;
                }
            }
        }
    }
    Ok(())
}

impl Hand for StreamHand {
    fn perform(&mut self, operation: Operation, turn: &Turn<'_>) -> Result<Done, Error> {
        match operation {
            Operation::Send(control) => {
                self.transfer.send_now(&Message::Control(control), turn).map(|_| Done::Nothing)
            }
            Operation::OpenLanes { joins, timeout } => {
                let Some(connector) = &mut self.connector else {
                    return Err(Error::Protocol("further connections without a connector".into()));
                };
                open_lanes(&mut **connector, &self.transfer, &joins, timeout, turn).map(|()| Done::Nothing)
            }
            Operation::MarkLanes(number) => self.mark_lanes(number, turn).map(|()| Done::Nothing),
            Operation::StartMemoryLogs => {
                let (logs, ledger) = (&mut self.logs, &*self.ledger);
                turn.call(|| logs.start(ledger)).map(|()| Done::Nothing)
            }
            Operation::CollectMemoryLogs { stopped } => {
                let Some(ram) = &self.ram else { return Ok(Done::Bytes(0)) };
                let (logs, ledger) = (&mut self.logs, &*self.ledger);
                let bytes = turn.call(|| logs.collect(&**ram, ledger, stopped))?;
                if stopped {
                    self.transfer.tally().stopped();
                }
                let ledger = ledger.lock();
                // After the stop nobody is to blame any more.
                let most = if stopped { None } else { ledger.dirtiest() };
                let most = most.map(|(part, dirty)| DirtyRange { start: part.start, size: part.size, dirty });
                Ok(Done::Dirty { bytes, most, is_logged: !ledger.is_unlogged() })
            }
            Operation::StopMemoryLogs => {
                let (logs, ledger) = (&mut self.logs, &*self.ledger);
                turn.call(|| logs.stop(ledger));
                Ok(Done::Nothing)
            }
            Operation::SendMemory => self.send_memory(turn).map(Done::Sent),
            Operation::SendBlobs => self.send_blobs(turn).map(Done::Sent),
            Operation::SendPadding(bytes) => self.send_padding(bytes, turn).map(Done::Sent),
            Operation::RoundArrived => {
                self.ledger.lock().round_arrived();
                self.transfer.tally().round_arrived();
                self.transfer.copies().all_taken();
                Ok(Done::Nothing)
            }
            Operation::RoundLost => {
                let mut ledger = self.ledger.lock();
                ledger.round_lost();
                self.transfer.tally().round_lost();
                Ok(Done::Bytes(ledger.bytes_left()))
            }
            other => self.replace.perform(other, self.connector.as_deref_mut(), &self.transfer, turn),
        }
    }
}
