//! One of the demo's two hosts: a machine, the programs that run on it, and its end of the migration.
//!
//! It reads orders from stdin and writes events to stdout, a JSON object a line, and ends when stdin does.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::Args;
use parking_lot::Mutex;
use whimbrel_engine::channel::{Address, Connector, Listener, Until, connect};
use whimbrel_engine::{
    Destination, DestinationOptions, Error, Guest, GuestError, Phase, Progress, Source, SourceOptions,
};
use whimbrel_user::{Device, Migratable, State};

use super::attachment::{Attachment, Kind};
use super::cutter::Cutter;
use super::evidence;
use super::machine::Machine;
use super::messages::{Config, Event, Evidence, Failed, Figures, Moment, NotSent, Order, Place, Role};
use super::work::{self, Work};
use crate::failure::Failure;

/// A process of `whimbrel demo`, started by it.
#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// Time to watch the source after the migration, to verify that it is stopped.
const WATCH: Duration = Duration::from_millis(50);
/// Interval between two progress events.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);
/// Longest time from the stop to the handover, with the verification at the destination.
const VERIFICATION: Duration = Duration::from_mins(5);
/// The longest time until a connection that was cut is replaced.
const RECONNECT: Duration = Duration::from_secs(30);
/// Timeout for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Interval between two checks whether the work has failed.
const LOOK: Duration = Duration::from_millis(50);
/// Timeout for the first jobs.
const BEGINNING: Duration = Duration::from_mins(1);
/// Timeout for the work to continue after a failed migration.
const WATCH_WORK: Duration = Duration::from_secs(1);

/// Runs a host until its work is done or its orders end.
pub(crate) fn run(_: &Arguments) -> Result<(), Failure> {
    let orders = orders()?;
    let Order::Begin(config) = next(&orders)? else {
        return Err(Failure::new("the first order must be to begin"));
    };
    if let Err(failed) = begin(&config, &orders) {
        tell(&Event::Failed(failed))?;
    }
    // The demo ends its hosts by closing their stdin: an earlier exit would look like a failure.
    while next(&orders).is_ok() {}
    Ok(())
}

fn begin(config: &Config, orders: &Receiver<Order>) -> Result<(), Failed> {
    let failed = |failure: Failure, device_lost| Failed {
        error: failure.message(),
        hint: failure.advice().map(str::to_string),
        device_lost,
    };
    let attachments = config
        .devices
        .iter()
        .enumerate()
        .map(|(number, place)| Attachment::open(&name(config, number, place), place))
        .collect::<Result<Arc<[Attachment]>, _>>()
        .map_err(|failure| failed(failure, true))?;
    let work = match config.role {
        Role::Source => source,
        Role::Destination => destination,
    };
    work(config, &attachments, orders).map_err(|failure| failed(failure, is_lost(&attachments)))
}

/// The name of a device in this process.
fn name(config: &Config, number: usize, place: &Place) -> String {
    let model = match place {
        Place::Inside { model } => model.name(),
        // Named by its socket.
        Place::Served { .. } => "device",
    };
    let role = config.role;
    if config.devices.len() == 1 {
        format!("{model} at the {role}")
    } else {
        format!("{model} (device {}) at the {role}", number + 1)
    }
}

/// Returns whether a device can no longer be reached.
fn is_lost(attachments: &[Attachment]) -> bool {
    attachments.iter().any(Attachment::is_lost)
}

fn migratable(machine: &Machine) -> Result<Vec<Box<dyn Migratable>>, Failure> {
    Ok(machine.devices()?.into_iter().map(|device| device as Box<dyn Migratable>).collect())
}

fn kinds(machine: &Machine) -> Vec<Kind> {
    machine.attachments().iter().map(|attachment| attachment.kind).collect()
}

/// Reads orders on a thread, so that the end of stdin is noticed at any time.
fn orders() -> Result<Receiver<Order>, Failure> {
    let (send, receive) = channel();
    std::thread::Builder::new()
        .name("orders".into())
        .spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let Ok(order) = serde_json::from_str(&line) else { break };
                if send.send(order).is_err() {
                    break;
                }
            }
            // Without the demo there is nothing left to do.
            std::process::exit(0);
        })
        .map_err(|error| Failure::from_io("cannot start a thread", &error))?;
    Ok(receive)
}

fn next(orders: &Receiver<Order>) -> Result<Order, Failure> {
    orders.recv().map_err(|_| Failure::new("the orders ended"))
}

fn tell(event: &Event) -> Result<(), Failure> {
    let line = serde_json::to_string(event).map_err(|error| Failure::from_error(&error))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::from_io("cannot report to the demo", &error))
}

/// Waits, unless the orders end.
fn linger(orders: &Receiver<Order>, how_long: Duration) -> Result<(), Failure> {
    match orders.recv_timeout(how_long) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        Err(RecvTimeoutError::Disconnected) => Err(Failure::new("the orders ended")),
        Ok(order) => Err(Failure::new(format!("unexpected order {order:?}"))),
    }
}

/// Waits while the programs work, unless one fails.
fn linger_at_work(orders: &Receiver<Order>, work: &Work, ms: u64) -> Result<(), Failure> {
    let until = Instant::now().checked_add(Duration::from_millis(ms));
    loop {
        let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        linger(orders, left.min(LOOK))?;
        work.check()?;
        if left <= LOOK {
            return Ok(());
        }
    }
}

fn source(config: &Config, attachments: &Arc<[Attachment]>, orders: &Receiver<Order>) -> Result<(), Failure> {
    let machine = Machine::new(attachments, config.memory)?;
    work::set_up(&machine)?;
    let work = Arc::new(Work::start(&machine, config.dirty_rate)?);
    let until = Instant::now() + BEGINNING;
    while let Some(idle) = work::not_begun(&machine)? {
        if Instant::now() >= until {
            return Err(Failure::new(format!(
                "{}: the device did not complete its first jobs within {} s",
                machine.attachments()[idle].device()?.name(),
                BEGINNING.as_secs()
            )));
        }
        linger_at_work(orders, &work, 1)?;
    }
    let verification = rehearse(&machine, &work)?;
    linger_at_work(orders, &work, config.work_before_ms)?;
    tell(&Event::Working { devices: kinds(&machine), verification })?;
    let order = next(orders)?;
    let Order::Send { address } = order else {
        return Err(Failure::new(format!("unexpected order {order:?}")));
    };
    let address: Address = address.parse().map_err(|error| Failure::from_error(&error))?;
    let until = Until::timeout(PATIENCE);
    let stream = connect(&address, until)
        .map_err(|error| Failure::new(format!("cannot reach the destination: {error}")))?;
    let options = SourceOptions::default()
        // The limit is for the migration alone.
        .downtime_limit(Duration::from_millis(config.downtime_limit_ms).saturating_add(verification))
        .max_rounds(config.max_rounds)
        .channels(config.channels)
        .compression(config.compress)
        .reconnect(reconnect(config))
        .budget(VERIFICATION);
    let cutter = Cutter::new(config.cuts, config.channels);
    cutter.watch(&stream);
    let (mut told, mut shown, cuts) = (Instant::now(), Phase::Greeting, cutter.clone());
    let source = Source::new(migratable(&machine)?)
        .memory(machine.memory.clone(), machine.memory.clone())
        .guest(Held(work.clone()))
        .observer(move |progress: &Progress| {
            cuts.progress(progress);
            let is_lost = progress.phase == Phase::Reconnecting && shown != Phase::Reconnecting;
            shown = progress.phase;
            if is_lost || told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                // A demo that is gone ends this process by itself.
                let _ = tell(&Event::Progress(Moment::new(progress, verification)));
            }
        })
        .options(options);
    let connector = Connector::new(address.clone());
    let sent = match &config.certificates {
        None => source.connector(cutter.connector(connector)).send(stream),
        Some(certificates) => {
            let tls = certificates.tls()?;
            let encrypted = tls
                .connect(stream, &address, until)
                .map_err(|error| Failure::new(format!("cannot reach the destination: {error}")))?;
            source.connector(cutter.connector(connector.tls(tls))).send(encrypted)
        }
    };
    match sent.result {
        Ok(report) => {
            let evidence = evidence::gather(&machine, WATCH)?;
            tell(&Event::Sent { report: Figures::new(&report, verification), evidence })
        }
        Err(mut error) => {
            if let Error::NotConverging { expected, limit, .. } = &mut error.cause {
                *expected = expected.map(|expected| expected.saturating_sub(verification));
                *limit = limit.saturating_sub(verification);
            }
            let works_on = goes_on(&machine, orders)?;
            let device_lost = is_lost(attachments);
            tell(&Event::NotSent(NotSent { error: error.to_string(), works_on, device_lost }))
        }
    }
}

/// The time for the replacement of a connection; zero unless one is cut.
fn reconnect(config: &Config) -> Duration {
    if config.cuts > 0 { RECONNECT } else { Duration::ZERO }
}

/// Verifies the machine as the destination is going to during the downtime, and returns how long that takes. The devices
/// work before and after it. If that fails, they run all the same, because they may be a user's.
fn rehearse(machine: &Machine, work: &Work) -> Result<Duration, Failure> {
    let mut devices = machine.devices()?;
    work.pause().map_err(Failure::new)?;
    let stopped = devices.iter_mut().try_for_each(|device| device.go_to(State::Stop).map(drop));
    let verified = stopped.map_err(Failure::from).and_then(|()| {
        let started = Instant::now();
        evidence::gather(machine, Duration::ZERO)?;
        Ok(started.elapsed())
    });
    let mut result = verified;
    for device in &mut devices {
        // All of them, whatever became of the others.
        let back = bring_back(&mut **device);
        result = match (result, back) {
            (Err(first), Err(second)) => {
                let both = Failure::new(format!("{}; {}", first.message(), second.message()));
                Err(both.hint_if(first.advice()))
            }
            (result, back) => back.and(result),
        };
    }
    if result.is_ok() {
        work.resume();
    }
    result
}

/// Lets a device run, with a reset if it does not run with its state.
fn bring_back(device: &mut dyn Device) -> Result<(), Failure> {
    let Err(error) = device.go_to(State::Running) else { return Ok(()) };
    let error = Failure::from(error);
    let what = match device.reset() {
        Ok(()) => "the device was reset".to_string(),
        Err(failed) => format!("the device is not reset: {}", Failure::from(failed).message()),
    };
    Err(Failure::new(format!("{}; {what}", error.message())).hint_if(error.advice()))
}

/// Returns whether the work of all devices continues after a failed migration.
fn goes_on(machine: &Machine, orders: &Receiver<Order>) -> Result<bool, Failure> {
    let before = work::books(machine)?;
    let until = Instant::now() + WATCH_WORK;
    loop {
        linger(orders, Duration::from_millis(1))?;
        let now = work::books(machine)?;
        if before.iter().zip(now).all(|(before, now)| now.completed > before.completed) {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
    }
}

/// The programs as the engine sees them at the source.
struct Held(Arc<Work>);

impl Guest for Held {
    fn pause(&mut self) -> Result<(), GuestError> {
        self.0.pause()?;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.0.resume();
        Ok(())
    }
}

fn destination(
    config: &Config,
    attachments: &Arc<[Attachment]>,
    orders: &Receiver<Order>,
) -> Result<(), Failure> {
    let machine = Machine::new(attachments, config.memory)?;
    let mut listener = Listener::bind(&Address::Tcp("127.0.0.1:0".into()))
        .map_err(|error| Failure::from_io("cannot listen on 127.0.0.1", &error))?;
    if let Some(certificates) = &config.certificates {
        listener = listener.tls(certificates.tls()?).map_err(|error| Failure::from_error(&error))?;
    }
    let address = listener.address().to_string();
    tell(&Event::Listening { address, devices: kinds(&machine) })?;
    let order = next(orders)?;
    let Order::Expect { verification } = order else {
        return Err(Failure::new(format!("unexpected order {order:?}")));
    };
    let found = Arc::new(Mutex::new(Found::default()));
    let arrival = Arrival { machine: machine.clone(), rate: config.dirty_rate, found: found.clone() };
    let options = DestinationOptions::default()
        .call_timeout(VERIFICATION)
        .expected_inspection(verification)
        .reconnect(reconnect(config));
    let destination = Destination::new(migratable(&machine)?)
        .memory(machine.memory.clone())
        .guest(arrival)
        .options(options);
    // The demo ends this process if the source never comes.
    let accepted = destination
        .accept(&mut listener, Until::timeout(Duration::MAX))
        .map_err(|error| Failure::new(format!("cannot accept the source: {error}")))?;
    let arrived = destination.receive_accepted(accepted);
    arrived.result?;
    let Found { evidence: Some(evidence), work: Some(work) } = std::mem::take(&mut *found.lock()) else {
        return Err(Failure::new("the devices run, but their work was not started"));
    };
    tell(&Event::Received { evidence })?;
    linger_at_work(orders, &work, config.work_after_ms)?;
    tell(&Event::Finished(work.finish()?))
}

/// The programs as the engine sees them at the destination.
struct Arrival {
    machine: Machine,
    rate: u64,
    found: Arc<Mutex<Found>>,
}

/// The evidence and the work of an arrival.
#[derive(Default)]
struct Found {
    evidence: Option<Evidence>,
    work: Option<Work>,
}

impl Guest for Arrival {
    fn inspect(&mut self) -> Result<(), GuestError> {
        let evidence =
            evidence::gather(&self.machine, Duration::ZERO).map_err(|failure| failure.message())?;
        self.found.lock().evidence = Some(evidence);
        Ok(())
    }

    fn run(&mut self) -> Result<(), GuestError> {
        let work = Work::start(&self.machine, self.rate).map_err(|failure| failure.message())?;
        self.found.lock().work = Some(work);
        Ok(())
    }
}
