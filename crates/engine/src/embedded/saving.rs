//! The source's side: devices that run while their state is sent, and stop when the VMM says so.

mod stream;

use std::fmt;
use std::io::{self, Write};
use std::ops::DerefMut;

use whimbrel_protocol::MigrationFlags;
use whimbrel_user::{Migratable, State};

use self::stream::Stream;
use super::Refused;
use crate::archive::cancel::NEVER;
use crate::archive::save::{offer, write_rest, write_setups};
use crate::archive::set::Set;
use crate::archive::writer::Writer;
use crate::error::Error;
use crate::proto::control::{Control, Table};
use crate::proto::frame::CHUNK;
use crate::proto::negotiate::Feature;
use crate::proto::table;

/// Devices that are migrated inside a VMM's own stream, at the source.
///
/// Calls have an order: [`start`](Saving::start), [`iterate`](Saving::iterate) any number of times,
/// [`stop`](Saving::stop), [`complete`](Saving::complete), [`finish`](Saving::finish). A call out of order is refused
/// and changes nothing. If another call fails, the devices are returned to the states in which they were at the start,
/// also before the error is returned: it reports a device for which that failed too, or whose state is unknown because a
/// call into its driver exceeded its timeout ([`Timed`](whimbrel_user::Timed)). [`abort`](Saving::abort), and
/// dropping it before [`complete`](Saving::complete), do the same.
///
/// After [`complete`](Saving::complete) the devices may run at the destination, which only the VMM knows. Dropped then,
/// also by a panic, it leaves them stopped and logs an error: only [`abort`](Saving::abort) lets them run here again.
///
/// `D` is any pointer to a device: `Box<dyn Migratable>`, `&mut dyn Migratable`, a box of the VMM's own type.
pub struct Saving<D: DerefMut<Target: Migratable>> {
    set: Set<D>,
    phase: Phase,
    /// The devices' states before the start.
    before: Vec<State>,
    streams: Vec<Stream>,
    writer: Writer<io::Sink>,
    chunk: Vec<u8>,
    uses_setup: bool,
    round: u32,
    needs_acknowledgement: bool,
    /// The first round after which all initial data had been sent, until a device starts over.
    initial_round: Option<u32>,
    is_acknowledged: bool,
}

/// The phase of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was requested.
    New,
    /// The devices run, those with pre-copy in PRE_COPY.
    Running,
    /// The devices are in STOP_COPY, and have more state.
    Stopped,
    /// The devices are in STOP_COPY, and all has been sent.
    Sent,
    /// It is over.
    Over,
}

/// An estimate of the data left, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// Initial data: without it at the destination, the downtime would be longer than necessary.
    pub initial: u64,
    /// Other data that can be sent while the devices run.
    pub dirty: u64,
    /// All data that would be left if the devices were stopped now, `initial` and `dirty` included.
    pub total: u64,
}

impl<D: DerefMut<Target: Migratable>> Saving<D> {
    /// Returns the migration of these devices, all of them or none. They are asked for their identities, and nothing else.
    pub fn new(devices: Vec<D>) -> Result<Saving<D>, Refused<D>> {
        let set = Set::new(devices).map_err(|(devices, error)| Refused { error, devices })?;
        Ok(Saving {
            streams: (0..set.len()).map(|_| Stream::default()).collect(),
            set,
            phase: Phase::New,
            before: Vec::new(),
            writer: Writer::new(io::sink()),
            chunk: vec![0; CHUNK],
            uses_setup: false,
            round: 0,
            needs_acknowledgement: false,
            initial_round: None,
            is_acknowledged: false,
        })
    }

    /// Lets the devices stop only once the destination has acknowledged their initial data:
    /// [`acknowledge`](Saving::acknowledge). Without a return path in the VMM's protocol, sent data counts as arrived.
    #[must_use]
    pub fn needs_acknowledgement(mut self) -> Saving<D> {
        self.needs_acknowledgement = true;
        self
    }

    /// Returns warnings about the devices for the user.
    pub fn warnings(&self) -> Vec<String> {
        self.set.warnings()
    }

    /// Begins: writes the devices' identities, and lets them enter PRE_COPY. Start their DMA logs before.
    pub fn start(&mut self, output: impl Write) -> Result<(), Error> {
        self.expect(Phase::New, "start")?;
        self.before = self.set.states_before_save()?;
        let result = self.try_start(output);
        self.settle(result)
    }

    fn try_start(&mut self, output: impl Write) -> Result<(), Error> {
        let table = Table { devices: self.set.identities(), ..Table::default() };
        table::check(&table)?;
        // Whether the devices have setups does not change when they stop, but what is in them.
        let setups = self.set.save_setups()?;
        self.uses_setup = setups.iter().any(Option::is_some);
        let hello = offer(&table, &setups);
        self.phase = Phase::Running;
        for index in 0..self.set.len() {
            let flags = MigrationFlags::from_bits_truncate(self.set.identity(index).migration_flags);
            // One that does not run has nothing to send before its stop.
            if self.before[index] == State::Running && flags.contains(MigrationFlags::PRE_COPY) {
                self.set.device(index).enable_precopy_info_v2()?;
                self.streams[index].data = Some(self.set.open(index, State::PreCopy)?);
                self.streams[index].has_precopy = true;
            }
        }
        self.query()?;
        self.write(output, |writer, _, _| {
            writer.write(Control::Hello(hello))?;
            writer.write(Control::Table(table))
        })
    }

    /// Asks the devices how much data is left. A device whose initial data starts over (REINIT) is noticed.
    pub fn left(&mut self) -> Result<Left, Error> {
        self.expect(Phase::Running, "left")?;
        let result = self.query();
        self.settle(result)
    }

    /// Sends state of the running devices, initial data first: what they had when the call began, and not more than
    /// `limit` bytes. Ends with a ROUND, whose number [`Part::Round`](super::Part::Round) tells the destination. Returns
    /// what is left.
    pub fn iterate(&mut self, output: impl Write, limit: u64) -> Result<Left, Error> {
        self.expect(Phase::Running, "iterate")?;
        let result = self.try_iterate(output, limit);
        self.settle(result)
    }

    fn try_iterate(&mut self, output: impl Write, limit: u64) -> Result<Left, Error> {
        self.query()?;
        let round = self.round.saturating_add(1);
        self.round = round;
        let initial = self.write(output, |writer, streams, chunk| {
            let mut budget = limit;
            for of_initial in [true, false] {
                for (device, stream) in (0..).zip(&mut *streams) {
                    let left = stream.precopy.remaining();
                    let wanted = if of_initial { left.initial } else { left.total() };
                    budget -= stream.send(writer, device, wanted.min(budget), chunk)?;
                }
            }
            let initial = streams.iter().all(Stream::initial_is_sent);
            writer.write(Control::Round { number: round, initial })?;
            Ok(initial)
        })?;
        if initial {
            self.initial_round.get_or_insert(round);
        }
        self.query()
    }

    /// Notes that the destination has loaded this round: [`Part::Round`](super::Part::Round).
    pub fn acknowledge(&mut self, round: u32) {
        self.is_acknowledged |= round <= self.round && self.initial_round.is_some_and(|first| first <= round);
    }

    /// Returns whether the devices may be stopped: all initial data has been sent, acknowledged if that is needed, and
    /// no device starts over. Ask right before the CPUs are stopped. It is the driver's advice, and
    /// [`stop`](Saving::stop) does not depend on it: a VMM whose user forces the switchover only risks a longer downtime.
    pub fn may_stop(&mut self) -> Result<bool, Error> {
        self.expect(Phase::Running, "may_stop")?;
        let result = self.query();
        self.settle(result)?;
        let is_sent = self.streams.iter().all(Stream::initial_is_sent);
        Ok(is_sent && (self.is_acknowledged || !self.needs_acknowledgement))
    }

    /// Stops the devices: all to a P2P state, then all to STOP_COPY. The VMM's CPUs must have stopped before. After it,
    /// read the DMA logs a last time.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.expect(Phase::Running, "stop")?;
        let result = self.try_stop();
        self.settle(result)
    }

    fn try_stop(&mut self) -> Result<(), Error> {
        self.set.quiesce(NEVER)?;
        for (index, stream) in self.streams.iter_mut().enumerate() {
            if stream.data.is_some() {
                self.set.stop_session(index)?;
            } else {
                stream.data = Some(self.set.open(index, State::StopCopy)?);
            }
        }
        self.phase = Phase::Stopped;
        Ok(())
    }

    /// Sends the rest of the devices' state, and the setups of PCI devices. The destination's devices may run once the
    /// VMM's protocol says so; these stay in STOP_COPY until [`finish`](Saving::finish) or [`abort`](Saving::abort).
    pub fn complete(&mut self, output: impl Write) -> Result<(), Error> {
        self.expect(Phase::Stopped, "complete")?;
        let result = self.try_complete(output);
        self.settle(result)
    }

    fn try_complete(&mut self, output: impl Write) -> Result<(), Error> {
        let setups = self.set.save_setups()?;
        if !self.uses_setup && setups.iter().any(Option::is_some) {
            let feature = Feature::Setup.name();
            return Err(Error::Protocol(format!(
                "a device has a {feature} that it did not have at the start"
            )));
        }
        self.write(output, |writer, streams, chunk| {
            write_setups(writer, &setups)?;
            for (device, stream) in (0..).zip(streams) {
                if let Some(data) = &mut stream.data {
                    stream.sent += write_rest(writer, device, data, chunk, NEVER, &mut |_| {})?;
                }
                writer.write(Control::DeviceEnd { device, bytes: stream.sent })?;
            }
            writer.write(Control::End { memory_bytes: 0 })
        })?;
        for index in 0..self.set.len() {
            self.set.check_still_in(index, State::StopCopy)?;
        }
        self.phase = Phase::Sent;
        Ok(())
    }

    /// Leaves the devices in STOP: they run at the destination, or may run there. Call it only after
    /// [`complete`](Saving::complete), and no more once the VMM's protocol has given them back.
    ///
    /// An error reports a device that cannot be brought to STOP. The devices are the destination's all the same.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.expect(Phase::Sent, "finish")?;
        self.phase = Phase::Over;
        self.close();
        let mut result = Ok(());
        for index in 0..self.set.len() {
            // All of them, whatever became of the others.
            result = result.and(self.set.set_state(index, State::Stop).map(drop));
        }
        result
    }

    /// Returns the devices to the states that they were in at the start. Possible at any time before
    /// [`finish`](Saving::finish); does nothing before [`start`](Saving::start).
    pub fn abort(&mut self) -> Result<(), Error> {
        self.bring_back(Ok(()))
    }

    /// Returns the devices. A migration that is not over ends before, as if it were dropped: after
    /// [`complete`](Saving::complete) they come back in STOP_COPY.
    pub fn into_devices(mut self) -> Vec<D> {
        self.end_unfinished();
        self.set.take_devices()
    }

    fn expect(&self, phase: Phase, call: &'static str) -> Result<(), Error> {
        if self.phase == phase {
            return Ok(());
        }
        let now = match self.phase {
            Phase::New => "before the start",
            Phase::Running => "while the devices run",
            Phase::Stopped => "while the devices are stopped",
            Phase::Sent => "after all state was sent",
            Phase::Over => "after the end",
        };
        Err(Error::OutOfOrder { call, now })
    }

    /// Asks each device that runs for its data.
    fn query(&mut self) -> Result<Left, Error> {
        let mut left = Left::default();
        for (index, stream) in self.streams.iter_mut().enumerate() {
            if let Some(data) = stream.data.as_mut().filter(|_| stream.has_precopy) {
                let report = data.precopy_info()?;
                stream.precopy.report(report.bytes, report.reinit);
                if report.reinit && report.bytes.initial > 0 {
                    (self.initial_round, self.is_acknowledged) = (None, false);
                }
            }
            let known = stream.precopy.remaining();
            let size = if stream.has_precopy {
                self.set.state_size(index)?.unwrap_or_else(|| known.total())
            } else {
                // Nothing else says how much it has.
                self.set.device(index).data_size()?
            };
            left.initial = left.initial.saturating_add(known.initial);
            left.dirty = left.dirty.saturating_add(known.dirty);
            left.total = left.total.saturating_add(size.max(known.total()));
        }
        Ok(left)
    }

    /// Writes messages to an output, all of which it has taken when this returns.
    fn write<T>(
        &mut self,
        output: impl Write,
        write: impl FnOnce(&mut Writer<&mut dyn Write>, &mut [Stream], &mut [u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut output = output;
        let writer = std::mem::replace(&mut self.writer, Writer::new(io::sink()));
        let mut writer = writer.with(&mut output as &mut dyn Write);
        let result = write(&mut writer, &mut self.streams, &mut self.chunk);
        let result = result.and_then(|done| writer.flush().map(|()| done));
        self.writer = writer.with(io::sink());
        result
    }

    /// Undoes a failure: the devices run on.
    fn settle<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        let Err(error) = result else { return result };
        let error = self.set.explain(error);
        self.bring_back(Err(error))
    }

    fn bring_back<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if !matches!(self.phase, Phase::Running | Phase::Stopped | Phase::Sent) {
            return result;
        }
        self.phase = Phase::Over;
        self.close();
        self.set.bring_back(&self.before, result)
    }

    /// Closes the sessions.
    fn close(&mut self) {
        self.streams.iter_mut().for_each(|stream| stream.data = None);
    }

    /// Ends a migration without the VMM's word on who has the devices.
    fn end_unfinished(&mut self) {
        if self.phase == Phase::Sent {
            self.leave_stopped();
        } else if let Err(error) = self.abort() {
            tracing::error!(%error, "a migration that was dropped");
        }
    }

    /// Leaves the devices as they are: if the VMM has handed over, they run at the destination, and must not run twice.
    fn leave_stopped(&mut self) {
        self.phase = Phase::Over;
        self.close();
        for index in 0..self.set.len() {
            let state = self.set.device(index).state();
            let state =
                state.map_or_else(|error| format!("an unknown state ({error})"), |state| state.to_string());
            tracing::error!(
                device = self.set.identity(index).name,
                "the migration was dropped after all state had been sent: here the device is left in {state}, and it may \
                 run at the destination; set it to RUNNING here only if it certainly does not run there"
            );
        }
    }
}

impl<D: DerefMut<Target: Migratable>> Drop for Saving<D> {
    fn drop(&mut self) {
        self.end_unfinished();
    }
}

impl<D: DerefMut<Target: Migratable>> fmt::Debug for Saving<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saving")
            .field("devices", &self.set.names())
            .field("phase", &self.phase)
            .field("round", &self.round)
            .finish_non_exhaustive()
    }
}
