//! The replacement of connections of which one was lost: what each side does with its own.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::inflow::Inflow;
use super::joining;
use super::line::{Lanes, Line};
use super::transfer::Transfer;
use super::worker::Turn;
use crate::channel::{Connect, Joins, Receiver, Sender, Until, WaitError};
use crate::error::Error;
use crate::proto::control::Control;
use crate::proto::join::{Join, Resumed};
use crate::proto::operation::{Done, Operation};

/// The part of a side in the replacement of its lost connection.
pub(super) trait Replace: Send {
    /// Executes an operation on the connection.
    fn perform(
        &mut self,
        operation: Operation,
        connector: Option<&mut (dyn Connect + 'static)>,
        transfer: &Transfer,
        turn: &Turn<'_>,
    ) -> Result<Done, Error>;
}

/// A side whose lost connection ends the migration.
#[derive(Debug)]
pub(super) struct NoReplacement;

impl Replace for NoReplacement {
    fn perform(
        &mut self,
        operation: Operation,
        _: Option<&mut (dyn Connect + 'static)>,
        _: &Transfer,
        _: &Turn<'_>,
    ) -> Result<Done, Error> {
        Err(Error::Protocol(format!("{operation} is not asked of the stream")))
    }
}

/// Starts the receiver of a new connection.
type Listen = Box<dyn FnMut(Receiver) -> io::Result<()> + Send>;

/// The source's part: it connects again. Its lanes are opened later.
pub(super) struct Redial {
    pub(super) line: Line,
    pub(super) listen: Listen,
    /// The new connection, until something is received from it.
    pub(super) next: Option<Receiver>,
}

impl Redial {
    fn reconnect(
        &mut self,
        connector: &mut dyn Connect,
        join: Join,
        pause: Duration,
        timeout: Duration,
        transfer: &Transfer,
        turn: &Turn<'_>,
    ) -> Result<(), Error> {
        self.line.end();
        transfer.hang_up();
        self.next = None;
        let (sender, receiver) = transfer.with_interrupt(turn, |interrupt, _| {
            if let WaitError::Interrupted = Until::new(Instant::now() + pause, interrupt).sleep() {
                return Err(Error::Interrupted);
            }
            let until = Until::new(Instant::now() + timeout, interrupt);
            joining::join(connector, join, timeout, until)
        })?;
        transfer.replace(sender, turn)?;
        self.next = Some(receiver);
        Ok(())
    }
}

/// Gives the receiver of a new connection to its thread.
fn listen(next: &mut Option<Receiver>, listen: &mut Listen) -> Result<Done, Error> {
    match next.take() {
        Some(receiver) => listen(receiver).map_err(Error::Thread)?,
        None => return Err(Error::Protocol("there is no new connection to receive from".into())),
    }
    Ok(Done::Nothing)
}

impl Replace for Redial {
    fn perform(
        &mut self,
        operation: Operation,
        connector: Option<&mut (dyn Connect + 'static)>,
        transfer: &Transfer,
        turn: &Turn<'_>,
    ) -> Result<Done, Error> {
        match operation {
            Operation::Reconnect { join, pause, timeout } => {
                let connector = connector
                    .ok_or_else(|| Error::Protocol("another connection without a connector".into()))?;
                self.reconnect(connector, join, pause, timeout, transfer, turn).map(|()| Done::Nothing)
            }
            Operation::Listen => listen(&mut self.next, &mut self.listen),
            other => NoReplacement.perform(other, connector, transfer, turn),
        }
    }
}

/// A connection of the source that has come back, with the number of its JOIN.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) number: u32,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

/// The destination's part: it takes the connection on which the source has come back.
pub(super) struct Readmit {
    pub(super) line: Line,
    pub(super) lanes: Lanes,
    /// Lets the lanes in beside a new connection; `None` if nobody can join.
    pub(super) joins: Option<Joins>,
    pub(super) back: Arc<Mutex<Option<Back>>>,
    pub(super) inflow: Arc<Inflow>,
    pub(super) listen: Listen,
    /// The new connection, until something is received from it.
    pub(super) next: Option<Receiver>,
}

impl Readmit {
    /// Ends all connections. The source finds that at once where it is still reached, and sends no more.
    fn unlink(&self, transfer: &Transfer) {
        if let Some(joins) = &self.joins {
            joins.forget_lanes();
        }
        transfer.hang_up();
        self.inflow.interrupt();
        self.lanes.end();
        self.line.end();
    }

    fn rejoin(&mut self, round: u32, number: u32, transfer: &Transfer, turn: &Turn<'_>) -> Result<(), Error> {
        let newest = self.back.lock().take_if(|back| back.number == number);
        // A newer one is announced by an event of its own.
        let Some(Back { sender, receiver, .. }) = newest else {
            return Err(Error::Lost { side: crate::proto::SOURCE });
        };
        transfer.replace(sender, turn)?;
        let devices = self.inflow.resume();
        // They may come as soon as the source has the answer.
        if let Some(joins) = &self.joins {
            joins.expect_lanes_of(number);
        }
        transfer.send_now(&Control::Resumed(Resumed { round, devices }).into(), turn)?;
        self.next = Some(receiver);
        Ok(())
    }
}

impl Replace for Readmit {
    fn perform(
        &mut self,
        operation: Operation,
        connector: Option<&mut (dyn Connect + 'static)>,
        transfer: &Transfer,
        turn: &Turn<'_>,
    ) -> Result<Done, Error> {
        match operation {
            Operation::Unlink => {
                self.unlink(transfer);
                Ok(Done::Nothing)
            }
            Operation::Rejoin { round, number } => {
                self.rejoin(round, number, transfer, turn).map(|()| Done::Nothing)
            }
            Operation::Listen => listen(&mut self.next, &mut self.listen),
            other => NoReplacement.perform(other, connector, transfer, turn),
        }
    }
}
