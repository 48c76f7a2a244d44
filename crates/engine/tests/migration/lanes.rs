//! Migrations over several connections: what moves over which, and what happens when one is refused, cut or never answered.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::dispatcher::with_default;
use vm_memory::{Bytes, GuestAddress};
use whimbrel_engine::channel::{
    Address, Channel, Connect, Connector, ConnectorError, Joins, Listener, Receiver, Sender, Stream, Tls,
    TlsStream, Until, connect,
};
use whimbrel_engine::proto::control::{Control, Reason};
use whimbrel_engine::proto::join::{Join, Purpose, Secret};
use whimbrel_engine::proto::lanes::STRIPE;
use whimbrel_engine::{Phase, Progress};
use whimbrel_user::State;

use crate::decoder::{account, decode, merged};
use crate::live::assert_same_memory;
use crate::support::certificates::trusting;
use crate::support::engine::{Error, Feature, Outcome};
use crate::support::{At, Ended, Recorder, Rig, Shape, Written, on_phase};

/// Two regions, neither of a round size, one of which begins in the middle of a stripe.
const REGIONS: [(u64, usize); 2] =
    [(0, 9 * STRIPE as usize + 0x3000), ((1 << 40) + 0x5000, 5 * STRIPE as usize + 0x1000)];

fn until() -> Until<'static> {
    Until::timeout(Duration::from_secs(30))
}

/// Three devices with much state, and memory of which each lane has some: data, zeros and pages that only begin with zeros.
fn rig() -> Rig {
    let shape = Shape { size: 3000, ..Shape::default() };
    let rig = Rig::set(3, &shape).with_memory(&REGIONS);
    let (here, there) = rig.memory.as_ref().unwrap();
    for (start, size) in REGIONS {
        for at in (0..size as u64 - 0x1000).step_by(0x1000).filter(|at| at / 0x1000 % 5 != 0) {
            here.write_obj(start + at + 7, GuestAddress(start + at + 0x800)).unwrap();
        }
        // What is zero at the source is not at the destination.
        there.write_obj(u64::MAX, GuestAddress(start + 3 * STRIPE)).unwrap();
    }
    rig
}

fn listener() -> Listener {
    Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap()
}

/// Returns what connects to an address.
fn control_to(address: &Address) -> impl FnOnce() -> Stream + use<> {
    let address = address.clone();
    move || connect(&address, until()).unwrap()
}

/// As [`control_to`], with TLS.
fn encrypted(tls: &Tls, address: &Address) -> impl FnOnce() -> TlsStream + use<> {
    let (tls, address) = (tls.clone(), address.clone());
    move || tls.connect(connect(&address, until()).unwrap(), &address, until()).unwrap()
}

/// Migrates with so many connections over TCP.
fn migrate(mut rig: Rig, channels: u32, change: impl FnOnce(Box<dyn Connect>) -> Box<dyn Connect>) -> Ended {
    let listener = listener();
    let address = listener.address().clone();
    rig.options = rig.options.channels(channels);
    let connector = change(Box::new(Connector::new(address.clone())));
    let control = control_to(&address);
    rig.migrate_at(listener, control, |source| source.connector(Changed(connector)))
}

/// A connector in a box.
struct Changed(Box<dyn Connect>);

impl Connect for Changed {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        self.0.connect(until)
    }
}

fn assert_migrated(mut ended: Ended, channels: usize) {
    ended.assert_sane("lanes");
    let (report, received) = (ended.sent.unwrap(), ended.received.unwrap());
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    assert_eq!(report.lanes.len(), channels);
    assert!(report.lanes.iter().all(|lane| lane.wire_bytes > STRIPE && lane.ms > 0.0), "{:?}", report.lanes);
    let wire: u64 = report.lanes.iter().map(|lane| lane.wire_bytes).sum();
    assert_eq!(wire, report.wire_bytes, "all that went over them");
    assert_eq!(received.lane_bytes.len(), channels);
    let arrived: u64 = received.lane_bytes.iter().sum();
    assert_eq!(arrived, report.memory_bytes + report.device_bytes);
    assert!(received.lane_bytes.iter().all(|bytes| *bytes > STRIPE), "{:?}", received.lane_bytes);
}

#[test]
fn memory_and_devices_arrive_whole_over_any_number_of_connections() {
    for channels in [1, 2, 3, 4] {
        assert_migrated(migrate(rig(), channels, |connector| connector), channels as usize);
    }
}

#[test]
fn each_connection_has_tls_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = trusting(folder.path());
    for channels in [2, 4] {
        let listener = listener().tls(there.clone()).unwrap();
        let address = listener.address().clone();
        let mut rig = rig();
        rig.options = rig.options.channels(channels);
        let control = encrypted(&here, &address);
        let connector = Connector::new(address).tls(here.clone());
        let ended = rig.migrate_at(listener, control, |source| source.connector(connector));
        assert_migrated(ended, channels as usize);
    }
}

#[test]
fn a_connection_with_another_certificate_is_refused_before_a_device_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = trusting(folder.path());
    let listener = listener().tls(there.clone()).unwrap();
    let address = listener.address().clone();
    let mut rig = rig();
    rig.options = rig.options.channels(2);
    let control = encrypted(&here, &address);
    // The other host's certificate is as good, but it is not that of the source.
    let connector = Connector::new(address).tls(there);
    let mut ended = rig.migrate_at(listener, control, |source| source.connector(connector));
    let (sent, _) = ended.refused("another certificate");
    assert!(sent.contains("no such migration"), "{sent}");
    assert_untouched(&ended);
}

/// No device of the source has left RUNNING.
fn assert_untouched(ended: &Ended) {
    for unit in &ended.rig.here.units {
        let arcs = unit.control.requests().into_iter().filter(|at| matches!(at, At::Arc(..)));
        assert_eq!(arcs.collect::<Vec<_>>(), [], "a device was touched");
    }
}

#[test]
fn a_destination_may_allow_fewer_connections_or_none() {
    for (allowed, used) in [(2, 2), (1, 1)] {
        let mut rig = rig();
        rig.there_options = rig.there_options.channels(allowed);
        let ended = migrate(rig, 4, |connector| connector);
        let warnings = ended.sent.as_ref().unwrap().warnings.clone();
        let told = format!("the destination allows {allowed} of 4 connections");
        assert!(warnings.contains(&told), "{warnings:?}");
        assert_migrated(ended, used);
    }
    // As many as there is memory for.
    let mut rig = rig();
    rig.there_options = rig.there_options.receive_memory(10 << 20);
    assert_migrated(migrate(rig, 4, |connector| connector), 3);
    // A side without the feature, and a source without a connector.
    let mut rig = self::rig();
    rig.there.features.retain(|feature| *feature != Feature::Lanes);
    assert_migrated(migrate(rig, 4, |connector| connector), 1);
    let mut rig = self::rig();
    rig.options = rig.options.channels(4);
    assert_migrated(rig.migrate(), 1);
}

#[test]
fn a_program_without_a_listener_hands_the_connections_over_itself() {
    /// Connects by handing the other end over, and records what is written.
    struct Handing(Joins, Arc<Mutex<Vec<Written>>>);

    impl Connect for Handing {
        fn connect(&mut self, _: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
            let (left, right) = UnixStream::pair()?;
            let joins = self.0.clone();
            thread::spawn(move || joins.join(Stream::from(right), until()).unwrap());
            let (left, written) = Recorder::new(Stream::from(left));
            self.1.lock().push(written);
            Ok(Arc::new(left))
        }
    }

    let (joins, written) = (Joins::new(), Arc::new(Mutex::new(Vec::new())));
    let mut rig = rig();
    rig.options = rig.options.channels(3);
    rig.there_joins = Some(joins.clone());
    let (left, right) = UnixStream::pair().unwrap();
    let (left, control) = Recorder::new(left.into());
    let handing = Handing(joins, written.clone());
    let ended = rig.migrate_unchecked(left, right.into(), |source| source.connector(handing));
    // By a decoder that shares no code with the engine.
    let lanes: Vec<_> = written.lock().iter().map(|lane| decode(&lane.bytes()).unwrap()).collect();
    let account = account(&merged(&decode(&control.bytes()).unwrap(), &lanes).unwrap()).unwrap();
    let report = ended.sent.as_ref().unwrap();
    let memory: u64 = account.memory.iter().map(|(_, length, _)| length).sum();
    let state: usize = account.devices.iter().map(|device| device.state.len()).sum();
    assert_eq!((memory, state as u64), (report.memory_bytes, report.device_bytes));
    assert!(account.is_handed_over && account.rounds == report.rounds);
    assert_migrated(ended, 3);
}

/// A connection that breaks once so many bytes were written to all such connections.
#[derive(Debug)]
struct Breaking {
    stream: Stream,
    left: Arc<AtomicUsize>,
}

impl Channel for Breaking {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.try_read(buffer)
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        let wanted: usize = data.iter().map(|part| part.len()).sum();
        let left = self.left.load(Ordering::SeqCst);
        if wanted > left {
            rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both)?;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = self.stream.try_write(data)?;
        self.left.fetch_sub(count, Ordering::SeqCst);
        Ok(count)
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        self.stream.readiness_fd()
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.stream.shutdown_write()
    }
}

/// Opens the connections of the lanes, of which those from the second on break.
struct Breaks {
    connector: Box<dyn Connect>,
    address: Address,
    opened: usize,
    left: Arc<AtomicUsize>,
}

impl Connect for Breaks {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        self.opened += 1;
        if self.opened == 1 {
            return self.connector.connect(until);
        }
        let stream = connect(&self.address, until)?;
        Ok(Arc::new(Breaking { stream, left: self.left.clone() }))
    }
}

#[test]
fn wherever_a_lane_is_cut_the_devices_run_on_at_the_source() {
    for cut in [0, 200, 1000, 100_000, 1 << 20, 3 << 20] {
        let mut rig = rig();
        // One that breaks as it joins is tried again for that long.
        rig.options = rig.options.channels(3).timeout(Duration::from_secs(2));
        let listener = listener();
        let address = listener.address().clone();
        let connector = Breaks {
            connector: Box::new(Connector::new(address.clone())),
            address: address.clone(),
            opened: 0,
            left: Arc::new(AtomicUsize::new(cut)),
        };
        let control = control_to(&address);
        let mut ended = rig.migrate_at(listener, control, |source| source.connector(connector));
        let what = format!("cut after {cut} bytes");
        let (sent, received) = ended.refused(&what);
        assert!(sent.contains("connection"), "{what}: {sent}");
        assert!(!received.is_empty());
        if cut == 0 {
            assert!(sent.contains("connection 2 of the migration"), "{sent}");
            assert_untouched(&ended);
        }
    }
}

/// Gives the source the other end of a connection that a test answers by hand.
struct Answered(fn(Stream));

impl Connect for Answered {
    fn connect(&mut self, _: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        let (left, right) = UnixStream::pair()?;
        let answer = self.0;
        thread::spawn(move || answer(Stream::from(right)));
        Ok(Arc::new(Stream::from(left)))
    }
}

fn say(stream: Stream, control: Control) {
    let channel = Arc::new(stream);
    let mut sender = Sender::new(channel.clone());
    let _ = sender.send_now(&control.into(), until());
    // Until the source has gone.
    let _ = Receiver::new(channel).drain(until());
}

#[test]
fn a_connection_that_cannot_be_opened_ends_the_migration_before_a_device_is_touched() {
    /// Connects to nothing.
    struct Nowhere;

    impl Connect for Nowhere {
        fn connect(&mut self, _: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
            Err("the cable is cut".into())
        }
    }

    let cases: [(&str, Box<dyn Connect>); 5] = [
        ("the cable is cut", Box::new(Nowhere)),
        (
            "the destination ended the migration: full",
            Box::new(Answered(|stream| say(stream, Control::Failed(Reason { reason: "full".into() })))),
        ),
        (
            "unexpected HANDOVER in answer to JOIN",
            Box::new(Answered(|stream| say(stream, Control::Handover))),
        ),
        ("closed the connection", Box::new(Answered(drop))),
        (
            "no data",
            Box::new(Answered(|stream| {
                let _ = Receiver::new(Arc::new(stream)).drain(until());
            })),
        ),
    ];
    for (why, connector) in cases {
        let mut rig = rig();
        if ["no data", "closed the connection"].contains(&why) {
            // It is tried again for that long.
            rig.options = rig.options.timeout(Duration::from_millis(300));
        }
        let mut ended = migrate(rig, 2, |_| connector);
        let (sent, _) = ended.refused(why);
        assert!(sent.contains(why), "{why}: {sent}");
        assert!(matches!(ended.sent.as_ref().unwrap_err().outcome, Outcome::RunsOn | Outcome::Untouched));
        assert_untouched(&ended);
    }
}

/// Gives the source connections that are refused for now, and then others.
struct RefusedAtFirst {
    left: usize,
    connector: Box<dyn Connect>,
}

impl Connect for RefusedAtFirst {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        let Some(left) = self.left.checked_sub(1) else { return self.connector.connect(until) };
        self.left = left;
        match left % 3 {
            0 => Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
            1 => Answered(drop).connect(until),
            _ => {
                let reason = "busy: too many connections without a complete greeting".to_string();
                let (left, right) = UnixStream::pair()?;
                thread::spawn(move || say(Stream::from(right), Control::Failed(Reason { reason })));
                Ok(Arc::new(Stream::from(left)))
            }
        }
    }
}

#[test]
fn a_connection_that_is_refused_for_now_is_tried_again() {
    let ended =
        migrate(rig(), 3, |connector| Box::new(RefusedAtFirst { left: 3, connector }) as Box<dyn Connect>);
    assert_migrated(ended, 3);
}

#[test]
fn a_migration_is_cancelled_at_once_while_connections_are_refused_for_now() {
    let rig = rig();
    let cancel = rig.here.cancel.clone();
    let phases = on_phase(move |name| {
        if name == "Lanes" {
            cancel.cancel("an operator");
        }
    });
    let began = std::time::Instant::now();
    let mut ended = with_default(&phases, || {
        migrate(rig, 2, |connector| {
            Box::new(RefusedAtFirst { left: usize::MAX, connector }) as Box<dyn Connect>
        })
    });
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let (sent, _) = ended.refused("cancelled");
    assert!(sent.starts_with("cancelled: an operator"), "{sent}");
    assert_untouched(&ended);
}

#[test]
fn a_stranger_who_guesses_does_not_join_and_does_not_disturb() {
    let mut rig = rig();
    rig.options = rig.options.channels(2);
    let listener = listener();
    let address = listener.address().clone();
    let (asked, told) = std::sync::mpsc::channel();
    let its_address = address.clone();
    let mut is_first = true;
    rig.here.observer = Some(Box::new(move |progress: &Progress| {
        if matches!(progress.phase, Phase::Round(_)) && std::mem::take(&mut is_first) {
            let channel = Arc::new(connect(&its_address, until()).unwrap());
            let join = Join::new(7, Secret::new([0; 32]), Purpose::lane(1));
            Sender::new(channel.clone()).send_now(&Control::Join(join).into(), until()).unwrap();
            asked.send(channel).unwrap();
        }
    }));
    let control = control_to(&address);
    let ended = rig.migrate_at(listener, control, |source| source.connector(Connector::new(address)));
    assert_migrated(ended, 2);
    let mut receiver = Receiver::new(told.recv().unwrap());
    let answer = format!("{:?}", receiver.next(until()).unwrap());
    assert!(answer.contains("no such migration"), "{answer}");
}

#[test]
fn a_cancelled_migration_with_lanes_runs_on_at_the_source() {
    for side in [true, false] {
        let rig = rig();
        let cancel = if side { rig.here.cancel.clone() } else { rig.there.cancel.clone() };
        let unit = if side { &rig.here.units[1] } else { &rig.there.units[1] };
        let when = if side {
            At::Arc(State::PreCopyP2p, State::StopCopy)
        } else {
            At::Arc(State::Resuming, State::Stop)
        };
        unit.control.when(when, 0, move || cancel.cancel("an operator"));
        let mut ended = migrate(rig, 4, |connector| connector);
        let (sent, received) = ended.refused("cancelled");
        assert!(sent.contains("an operator") && received.contains("an operator"), "{sent}; {received}");
        assert!(!matches!(ended.sent, Err(ref error) if matches!(error.cause, Error::Interrupted)));
    }
}
