//! The hand of one device: it makes every call into the device's driver, on a thread of its own.

use std::sync::Arc;
use std::time::Instant;

use tracing::field;
use whimbrel_user::{DataFile, DeviceSetup, Migratable, SavingRead, State};

use super::buffers::Buffers;
use super::transfer::Transfer;
use super::worker::{Hand, Item, Turn};
use crate::error::Error;
use crate::proto::message::Message;
use crate::proto::operation::{Done, Operation, Sent};
use crate::report::rounded_ms;
use crate::set::{
    DeviceDirty, DirtyChoice, SharedLedger, check_still_in, explain, has_session, reset_meanwhile, state_size,
};

/// The facts about all devices that are known before one is asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// Their state.
    pub(super) state: Option<State>,
    /// Their address space has a dirty log.
    pub(super) is_covered: bool,
}

/// A device, and the sender for its state.
pub(super) struct DeviceHand {
    number: u32,
    device: Box<dyn Migratable>,
    data: Option<DataFile>,
    transfer: Arc<Transfer>,
    buffers: Buffers,
    ledger: Arc<SharedLedger>,
    log: Option<DeviceDirty>,
    /// Set if its address space has a log.
    is_covered: bool,
    /// The source of its dirty pages, for the report.
    choice: DirtyChoice,
    /// The last known state.
    state: Option<State>,
    /// The setup to restore after a reset, or before the device runs here.
    setup: Option<DeviceSetup>,
    /// The error of reading it, if it is to be restored and was never read.
    unread_setup: Option<whimbrel_user::Error>,
    /// Bytes of state loaded.
    taken: u64,
    /// Set if the device has refused state that arrived.
    refused: bool,
}

impl DeviceHand {
    pub(super) fn new(
        number: u32,
        device: Box<dyn Migratable>,
        known: Known,
        transfer: &Arc<Transfer>,
        buffers: &Buffers,
        ledger: &Arc<SharedLedger>,
    ) -> DeviceHand {
        DeviceHand {
            number,
            device,
            data: None,
            transfer: transfer.clone(),
            buffers: buffers.clone(),
            ledger: ledger.clone(),
            log: None,
            is_covered: known.is_covered,
            choice: DirtyChoice::NoMemory,
            state: known.state,
            setup: None,
            unread_setup: None,
            taken: 0,
            refused: false,
        }
    }

    /// Returns the device, without a session.
    pub(super) fn into_device(self) -> Box<dyn Migratable> {
        self.device
    }

    /// Returns the source of the device's dirty pages, for the report.
    pub(super) fn choice(&self) -> DirtyChoice {
        self.choice
    }

    fn execute(&mut self, operation: Operation, turn: &Turn<'_>) -> Result<Done, Error> {
        let device = &mut self.device;
        match operation {
            Operation::QueryState => {
                let state = turn.call(|| device.state())?;
                self.state = Some(state);
                Ok(Done::State(state))
            }
            Operation::SetState(state) => self.set_state(state, turn),
            Operation::EnableReinit => {
                turn.call(|| device.enable_precopy_info_v2())?;
                Ok(Done::Nothing)
            }
            Operation::QueryPrecopy => self.query_precopy(turn),
            Operation::QueryDataSize => Ok(Done::Bytes(turn.call(|| device.data_size())?)),
            Operation::SendState { limit } => self.send_state(limit, turn),
            Operation::ResendState { from } => self.resend_state(from, turn),
            Operation::StartLog => self.start_log(turn).map(|()| Done::Nothing),
            Operation::CollectLog { stopped } => self.collect_log(stopped, turn).map(|()| Done::Nothing),
            Operation::StopLog => self.stop_log(turn).map(|()| Done::Nothing),
            Operation::Reset => {
                // A session does not outlive the reset.
                self.data = None;
                let device = &mut self.device;
                let span = tracing::info_span!("reset", device = %device.name(), took_ms = field::Empty);
                let _in_span = span.enter();
                self.state = None;
                let began = Instant::now();
                turn.call(|| device.reset())?;
                span.record("took_ms", rounded_ms(began.elapsed()));
                tracing::info!("device reset");
                self.state = Some(State::Running);
                Ok(Done::Nothing)
            }
            Operation::SaveSetup { send } => self.save_setup(send, turn).map(Done::Sent),
            Operation::RestoreSetup => self.restore_setup(turn).map(|()| Done::Nothing),
            Operation::DrainState if self.refused => Err(Error::Interrupted),
            Operation::DrainState => {
                // A device that was reset meanwhile would enter STOP without what it has loaded.
                if self.state == Some(State::Resuming) {
                    turn.call(|| check_still_in(&mut **device, State::Resuming))?;
                }
                Ok(Done::Bytes(self.taken))
            }
            other => Err(Error::Protocol(format!("{other} is not asked of a device"))),
        }
    }

    /// Returns the error of a request to the device: the reset that has ended its session, if there was one.
    fn explain(&mut self, expected: Option<State>, error: Error, turn: &Turn<'_>) -> Error {
        let device = &mut self.device;
        turn.call(|| explain(&mut **device, expected, error))
    }

    fn set_state(&mut self, state: State, turn: &Turn<'_>) -> Result<Done, Error> {
        let device = &mut self.device;
        let from = self.state.take();
        let span = tracing::info_span!(
            "transition",
            device = %device.name(),
            from = from.map(field::display),
            to = %state,
            took_ms = field::Empty
        );
        let _in_span = span.enter();
        let began = Instant::now();
        let opened = turn.call(|| device.go_to(state))?;
        span.record("took_ms", rounded_ms(began.elapsed()));
        tracing::info!("device in {state}");
        self.state = Some(state);
        let has_session = has_session(state);
        if let Some(opened) = opened {
            let replaced = self.data.replace(opened);
            // Moves among the saving states keep a session.
            if let (Some(_), Some(from)) = (replaced, from.filter(|from| from.is_saving())) {
                return Err(reset_meanwhile(&*self.device, from, None));
            }
        } else if !has_session {
            // The session stays open until the driver has validated the data.
            self.data = None;
        }
        if has_session && self.data.is_none() {
            return Err(Error::NoSession { device: self.device.name().to_string(), state });
        }
        Ok(Done::Nothing)
    }

    fn query_precopy(&mut self, turn: &Turn<'_>) -> Result<Done, Error> {
        let data = session(&mut self.data, &*self.device)?;
        let report = turn.call(|| data.precopy_info())?;
        let device = &mut self.device;
        let data_size = turn.call(|| state_size(&mut **device))?;
        Ok(Done::Precopy { report, data_size })
    }

    fn send_state(&mut self, limit: Option<u64>, turn: &Turn<'_>) -> Result<Done, Error> {
        let mut sent = Sent::default();
        let copies = Some(self.transfer.copies()).filter(|copies| limit.is_some() && copies.are_kept());
        while limit.is_none_or(|limit| sent.bytes < limit) {
            if !self.transfer.allows(turn.epoch) {
                return Err(Error::Interrupted);
            }
            let mut buffer = self.buffers.take().ok_or(Error::Interrupted)?;
            if let Some(copies) = copies {
                copies.wait_for_room(&self.transfer, turn)?;
            }
            let data = session(&mut self.data, &*self.device)?;
            // What is read at a time is one frame.
            let most = buffer.len().min(self.transfer.piece());
            let read = turn.call(|| data.read(&mut buffer[..most]))?;
            let SavingRead::Data(count) = read else { break };
            buffer.truncate(count);
            let ends = data.ends_transaction();
            if let Some(copies) = copies {
                copies.push(self.number, &buffer, ends);
            }
            let message = Message::DeviceState { device: self.number, ends, data: &buffer };
            sent.wire += self.transfer.send_of_device(self.number, &message, turn)?;
            sent.bytes += count as u64;
            self.transfer.count_state(self.number, count as u64, limit.is_none());
        }
        Ok(Done::Sent(sent))
    }

    /// Sends the state again that the destination lacks: the device gives each byte once.
    fn resend_state(&mut self, from: u64, turn: &Turn<'_>) -> Result<Done, Error> {
        let left = self.transfer.copies().after(self.number, from);
        let (pieces, total) = left.map_err(|misplaced| Error::Protocol(misplaced.to_string()))?;
        for piece in pieces {
            let message = Message::DeviceState { device: self.number, ends: piece.ends, data: &piece.data };
            self.transfer.send_of_device(self.number, &message, turn)?;
        }
        Ok(Done::Bytes(total))
    }

    fn save_setup(&mut self, send: bool, turn: &Turn<'_>) -> Result<Sent, Error> {
        let device = &mut self.device;
        match turn.call(|| device.save_setup()) {
            Ok(setup) => self.setup = setup,
            Err(error) if send => return Err(error.into()),
            Err(error) => self.unread_setup = Some(error),
        }
        let mut done = Sent::default();
        if let Some(setup) = self.setup.as_ref().filter(|_| send) {
            let data = setup.to_bytes();
            let message = Message::Setup { device: self.number, data: &data };
            done.wire = self.transfer.send_of_device(self.number, &message, turn)?;
        }
        Ok(done)
    }

    fn restore_setup(&mut self, turn: &Turn<'_>) -> Result<(), Error> {
        let unread = self.unread_setup.take();
        let Some(setup) = &self.setup else { return unread.map_or(Ok(()), |error| Err(error.into())) };
        let device = &mut self.device;
        Ok(turn.call(|| device.restore_setup(setup))?)
    }

    fn start_log(&mut self, turn: &Turn<'_>) -> Result<(), Error> {
        let (device, ledger, is_covered) = (&mut *self.device, &*self.ledger, self.is_covered);
        let log = turn.call(|| DeviceDirty::start(device, is_covered, ledger))?;
        self.choice = log.choice();
        self.log = Some(log);
        Ok(())
    }

    fn collect_log(&mut self, stopped: bool, turn: &Turn<'_>) -> Result<(), Error> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let (device, ledger) = (&mut *self.device, &*self.ledger);
        turn.call(|| log.collect(device, ledger, stopped))?;
        self.choice = log.choice();
        Ok(())
    }

    fn stop_log(&mut self, turn: &Turn<'_>) -> Result<(), Error> {
        let Some(mut log) = self.log.take() else { return Ok(()) };
        let device = &mut *self.device;
        turn.call(|| log.stop(device))
    }
}

fn session<'a>(data: &'a mut Option<DataFile>, device: &dyn Migratable) -> Result<&'a mut DataFile, Error> {
    data.as_mut()
        .ok_or_else(|| Error::NoSession { device: device.name().to_string(), state: State::StopCopy })
}

impl Hand for DeviceHand {
    fn perform(&mut self, operation: Operation, turn: &Turn<'_>) -> Result<Done, Error> {
        let expected = self.state;
        self.execute(operation, turn).map_err(|error| self.explain(expected, error, turn))
    }

    fn take(&mut self, item: Item, turn: &Turn<'_>) -> Result<(), Error> {
        let (data, ends) = match item {
            Item::State { data, ends } => (data, ends),
            Item::Setup(bytes) => {
                let setup = DeviceSetup::parse(&bytes).map_err(|error| {
                    Error::Protocol(format!("malformed setup of {}: {error}", self.device.name()))
                })?;
                self.setup = Some(setup);
                return Ok(());
            }
            Item::Task(_) => return Ok(()),
        };
        if self.refused {
            return Ok(());
        }
        let file = session(&mut self.data, &*self.device)?;
        let result = turn.call(|| match ends {
            Some(ends) => file.write_piece(&data, ends),
            None => file.write_all(&data),
        });
        self.taken += data.len() as u64;
        self.refused = result.is_err();
        result.map_err(|error| self.explain(self.state, error.into(), turn))
    }
}
