//! The side that has the device and gives it away.
//!
//! The order: greet, start the logs, let the device enter PRE_COPY, send rounds until what is left fits the downtime
//! limit, stop, send the rest, hand over. Up to the handover everything can fail and the device runs on here.

mod carry;
mod dialogue;
mod measure;
mod recovery;

use std::time::{Duration, Instant};

use whimbrel_protocol::estimate::{self, Bandwidth, Decision};
use whimbrel_protocol::handover::{self, SourceAction};
use whimbrel_protocol::precopy;
use whimbrel_user::{DataFile, Migratable, MigrationFlags, State};

use crate::device_state;
use crate::dirty::{CpuLog, Dirty, NoCpuLog};
use crate::error::{Error, Outcome, SendError};
use crate::guest::{Guest, NoGuest};
use crate::memory::{PAGE, Ram};
use crate::progress::{Observer, Phase, Progress, Silent};
use crate::report::{Report, Round};
use crate::stream::{CHUNK, Hello, MAX_CONTROL, Message, Reader, Writer};
use crate::transport::Link;

use dialogue::Answer;
use measure::FullPass;

/// How a migration is to be done.
///
/// ```
/// use std::time::Duration;
/// use whimbrel_engine::SourceOptions;
///
/// let options = SourceOptions::default().downtime_limit(Duration::from_millis(100)).max_rounds(10);
/// assert_eq!(options.timeout, Duration::from_mins(1));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SourceOptions {
    /// The device is stopped once it is expected to stand still for no longer than this.
    pub downtime_limit: Duration,
    /// After this many rounds without that, the migration is given up and the device runs on.
    pub max_rounds: u32,
    /// How long the other side may take for an answer, its owner's inspection included, and how long it may take no
    /// byte of what is sent.
    pub timeout: Duration,
}

impl Default for SourceOptions {
    fn default() -> SourceOptions {
        SourceOptions {
            downtime_limit: Duration::from_millis(300),
            max_rounds: 30,
            timeout: Duration::from_mins(1),
        }
    }
}

impl SourceOptions {
    /// Sets [`SourceOptions::downtime_limit`].
    #[must_use]
    pub fn downtime_limit(self, downtime_limit: Duration) -> SourceOptions {
        SourceOptions { downtime_limit, ..self }
    }

    /// Sets [`SourceOptions::max_rounds`].
    #[must_use]
    pub fn max_rounds(self, max_rounds: u32) -> SourceOptions {
        SourceOptions { max_rounds, ..self }
    }

    /// Sets [`SourceOptions::timeout`].
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> SourceOptions {
        SourceOptions { timeout, ..self }
    }
}

const DESTINATION: &str = "destination";

/// A migration about to be sent.
pub struct Source<'a> {
    device: &'a mut dyn Migratable,
    ram: Option<&'a dyn Ram>,
    cpu_log: Box<dyn CpuLog + 'a>,
    guest: Box<dyn Guest + 'a>,
    observer: Box<dyn Observer + 'a>,
    options: SourceOptions,
}

impl<'a> Source<'a> {
    /// Moves a device alone.
    pub fn new(device: &'a mut dyn Migratable) -> Source<'a> {
        Source {
            device,
            ram: None,
            cpu_log: Box::new(NoCpuLog),
            guest: Box::new(NoGuest),
            observer: Box::new(Silent),
            options: SourceOptions::default(),
        }
    }

    /// Moves memory too. The device has been given it before, each address as the same IOVA; `cpu_log` knows what
    /// everyone but the device writes.
    #[must_use]
    pub fn memory(mut self, ram: &'a dyn Ram, cpu_log: impl CpuLog + 'a) -> Self {
        self.ram = Some(ram);
        self.cpu_log = Box::new(cpu_log);
        self
    }

    /// The program around the device.
    #[must_use]
    pub fn guest(mut self, guest: impl Guest + 'a) -> Self {
        self.guest = Box::new(guest);
        self
    }

    /// Someone who watches.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer + 'a) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// How it is to be done.
    #[must_use]
    pub fn options(mut self, options: SourceOptions) -> Self {
        self.options = options;
        self
    }

    /// Sends the device over a connected link. When this returns `Ok`, the device runs at the destination and stands
    /// in STOP here; otherwise the error says where it is.
    pub fn send(self, link: Link) -> Result<Report, SendError> {
        let mut sending = match Sending::new(self, link) {
            Ok(sending) => sending,
            Err(cause) => return Err(SendError { cause, outcome: Outcome::Untouched }),
        };
        match sending.migrate() {
            Ok(()) => Ok(sending.report),
            Err(cause) => {
                let outcome = sending.recover();
                sending.part(&cause);
                Err(SendError { cause, outcome })
            }
        }
    }
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("device", &self.device.name()).finish_non_exhaustive()
    }
}

/// A migration under way.
struct Sending<'a> {
    source: Source<'a>,
    flags: MigrationFlags,
    writer: Writer<Link>,
    reader: Reader<Link>,
    handover: handover::Source,
    dirty: Option<Dirty>,
    /// The running data session.
    data: Option<DataFile>,
    /// The state the device was last brought to.
    state: State,
    precopy: precopy::Progress,
    bandwidth: Bandwidth,
    /// Whether the link has carried enough to say how fast it is, or has been given padding to show it.
    measured: bool,
    /// Time this round spent on finding pages that are zero: the link had no part in it.
    scanning: Duration,
    /// What the first pass over all memory took: where no log tells what has changed, another one is needed when the
    /// device has stopped.
    full_pass: Option<FullPass>,
    /// The quickest answer so far: what a round trip costs.
    quickest_answer: Duration,
    paused: bool,
    chunk: Vec<u8>,
    /// Bytes sent when the destination was last listened to.
    listened_at: u64,
    phase: Phase,
    phase_done: u64,
    phase_total: u64,
    expected: Option<Duration>,
    started: Instant,
    report: Report,
}

impl<'a> Sending<'a> {
    fn new(source: Source<'a>, link: Link) -> Result<Sending<'a>, Error> {
        link.set_timeout(Some(source.options.timeout)).map_err(Error::Link)?;
        let reader = Reader::new(link.try_clone().map_err(Error::Link)?);
        let flags = source
            .device
            .migration_flags()?
            .ok_or_else(|| Error::NotMigratable { device: source.device.name().to_string() })?;
        let state = source.device.state()?;
        if state != State::Running {
            // The destination lets the device run: one that was stopped on purpose would start there.
            let device = source.device.name().to_string();
            return Err(Error::WrongState { device, state, work: "a live migration", needed: "RUNNING" });
        }
        let report = Report { device: source.device.name().to_string(), ..Report::default() };
        Ok(Sending {
            source,
            flags,
            writer: Writer::new(link),
            reader,
            handover: handover::Source::new(),
            dirty: None,
            data: None,
            state: State::Running,
            precopy: precopy::Progress::default(),
            bandwidth: Bandwidth::default(),
            measured: false,
            scanning: Duration::ZERO,
            full_pass: None,
            quickest_answer: Duration::MAX,
            paused: false,
            chunk: vec![0; CHUNK],
            listened_at: 0,
            phase: Phase::Greeting,
            phase_done: 0,
            phase_total: 0,
            expected: None,
            started: Instant::now(),
            report,
        })
    }

    fn migrate(&mut self) -> Result<(), Error> {
        self.greet()?;
        let regions = self.source.ram.map(Ram::regions).unwrap_or_default();
        self.dirty = Some(Dirty::start(regions, self.source.device, &mut *self.source.cpu_log)?);
        if self.flags.contains(MigrationFlags::PRE_COPY) {
            self.source.device.enable_precopy_info_v2()?;
            self.set_state(State::PreCopy)?;
        }
        for number in 1.. {
            let round = self.round(number)?;
            tracing::info!(
                number,
                memory_bytes = round.memory_bytes,
                device_bytes = round.device_bytes,
                ms = round.ms,
                memory_left = round.memory_left,
                device_left = round.device_left,
                expected_downtime_ms = round.expected_downtime_ms,
                "round done"
            );
            let initial_done = self.data.is_none() || self.precopy.initial_done();
            let decision = estimate::decide(
                self.expected,
                self.source.options.downtime_limit,
                initial_done,
                number,
                self.source.options.max_rounds,
            );
            self.report.rounds = number;
            self.report.round_list.push(round);
            match decision {
                Decision::Switchover => break,
                Decision::Continue => {}
                Decision::OutOfRounds if !initial_done => {
                    let left = self.precopy.remaining().initial;
                    return Err(Error::InitialData { rounds: number, left });
                }
                Decision::OutOfRounds => {
                    return Err(Error::NotConverging {
                        rounds: number,
                        expected: self.expected,
                        limit: self.source.options.downtime_limit,
                    });
                }
            }
        }
        self.switchover()?;
        self.enter(Phase::Done, 0);
        self.show();
        Ok(())
    }

    fn greet(&mut self) -> Result<(), Error> {
        let device = device_state::summary(self.source.device, self.flags)?;
        let memory = self.source.ram.map(Ram::regions).unwrap_or_default();
        if let Some(region) = memory.iter().find(|region| region.start % PAGE != 0) {
            return Err(Error::Layout(format!("the region at {:#x} does not start on a page", region.start)));
        }
        self.show();
        let regions = memory.len();
        let hello = Message::Hello(Hello { device, memory });
        if hello.payload().0.len() > MAX_CONTROL as usize {
            return Err(Error::Layout(format!("{regions} regions are more than a greeting can name")));
        }
        self.send(&hello)?;
        self.flush()?;
        let asked = Instant::now();
        self.expect_answer_by(self.source.options.timeout);
        self.reader.preamble().map_err(|error| self.unreadable(error))?;
        match self.answer()? {
            Answer::Accept => {
                self.quickest_answer = asked.elapsed();
                Ok(())
            }
            other => Err(Error::Protocol(format!("the destination answered the greeting with {other:?}"))),
        }
    }

    /// One round: everything marked and what the device has, then an estimate of what is left.
    fn round(&mut self, number: u32) -> Result<Round, Error> {
        let start = Instant::now();
        let wire_before = self.writer.bytes();
        let memory_left = self.dirty.as_ref().map_or(0, Dirty::bytes_left);
        let device_left = match self.data {
            Some(_) => self.refresh_precopy()?,
            None => 0,
        };
        self.enter(Phase::Round(number), memory_left.saturating_add(device_left));
        self.scanning = Duration::ZERO;
        let memory_bytes = self.send_memory()?;
        if self.full_pass.is_none() && memory_bytes > 0 {
            let wire = self.writer.bytes() - wire_before;
            self.full_pass = Some(FullPass { memory: memory_bytes, wire, scanning: self.scanning });
        }
        let device_bytes = if self.data.is_some() { self.send_precopy(device_left)? } else { 0 };
        self.measure_link(self.writer.bytes() - wire_before)?;
        self.send(&Message::Round { number })?;
        self.flush()?;
        let asked = Instant::now();
        match self.answer()? {
            Answer::RoundDone(done) if done == number => {}
            other => {
                return Err(Error::Protocol(format!(
                    "the destination answered round {number} with {other:?}"
                )));
            }
        }
        self.quickest_answer = self.quickest_answer.min(asked.elapsed());
        let elapsed = start.elapsed();
        self.bandwidth.sample(self.writer.bytes() - wire_before, elapsed.saturating_sub(self.scanning));
        let remaining = self.remaining()?;
        self.expected = self.expected_downtime(remaining);
        Ok(Round {
            number,
            memory_bytes,
            device_bytes,
            ms: milliseconds(elapsed),
            memory_left: remaining.memory,
            device_left: remaining.device,
            expected_downtime_ms: self.expected.map(milliseconds),
        })
    }

    /// Stops the device, sends the rest, hands over.
    fn switchover(&mut self) -> Result<(), Error> {
        let predicted = self.expected.unwrap_or_default();
        let memory_left = self.dirty.as_ref().map_or(0, Dirty::bytes_left);
        self.enter(Phase::Switchover, memory_left);
        let stopped_at = Instant::now();
        // Also a guest that could pause only in part is to go on.
        self.paused = true;
        self.source.guest.pause().map_err(Error::Guest)?;
        self.set_state(State::StopCopy)?;
        if let Some(dirty) = &mut self.dirty {
            dirty.collect(self.source.device, &mut *self.source.cpu_log, true)?;
        }
        let memory_bytes = self.send_memory()?;
        let device_bytes = self.send_stop_copy()?;
        self.send(&Message::DeviceEnd { device: 0, bytes: self.report.device_bytes })?;
        self.send(&Message::End { memory_bytes: self.report.memory_bytes })?;
        self.flush()?;
        let asked = Instant::now();
        let ready = match self.answer()? {
            Answer::Ready(ready) => ready,
            other => {
                return Err(Error::Protocol(format!("the destination answered the end with {other:?}")));
            }
        };
        // Its owner cannot have looked for longer than the answer took.
        let inspection = Duration::from_micros(ready.inspection_us).min(asked.elapsed());
        match self.handover.receive(handover::Message::Ready)? {
            SourceAction::SendHandover => {
                self.send(&Message::Handover)?;
                self.flush()?;
            }
            other => return Err(Error::Protocol(format!("READY led to {other:?}"))),
        }
        match self.answer()? {
            Answer::Running => self.handover.receive(handover::Message::Running)?,
            other => {
                return Err(Error::Protocol(format!("the destination answered the handover with {other:?}")));
            }
        };

        self.report.downtime_ms = milliseconds(stopped_at.elapsed().saturating_sub(inspection));
        self.report.predicted_downtime_ms = milliseconds(predicted);
        self.report.inspection_ms = milliseconds(inspection);
        self.report.total_ms = milliseconds(self.started.elapsed());
        self.report.final_bytes = memory_bytes + device_bytes;
        self.report.wire_bytes = self.writer.bytes();
        self.report.throughput_bytes_per_s = self.bandwidth.bytes_per_second().unwrap_or_default();

        self.stand_still();
        self.data = None;
        self.stop_logs();
        Ok(())
    }

    fn set_state(&mut self, state: State) -> Result<(), Error> {
        let opened = self.source.device.set_state(state)?;
        self.state = state;
        if let Some(data) = opened {
            self.data = Some(data);
        }
        if state.is_saving() && self.data.is_none() {
            return Err(Error::NoSession { device: self.source.device.name().to_string(), state });
        }
        Ok(())
    }

    fn enter(&mut self, phase: Phase, total: u64) {
        self.phase = phase;
        self.phase_done = 0;
        self.phase_total = total;
        self.show();
    }

    fn moved(&mut self, bytes: u64) {
        self.phase_done += bytes;
        self.show();
    }

    fn show(&mut self) {
        self.source.observer.progress(&Progress {
            phase: self.phase,
            done: self.phase_done,
            total: self.phase_total,
            expected_downtime: self.expected,
        });
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
