//! Cancelling from another thread, in every phase and on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use whimbrel_engine::channel::{Connector, Listener, Until, connect};
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::lanes::STRIPE;
use whimbrel_engine::proto::{destination, source};
use whimbrel_engine::{Destination, NoCpuLog, Phase, Ram, RamError, RamRegion, Source, SourceOptions};
use whimbrel_models::Model;
use whimbrel_user::Local;
use whimbrel_user::State;

use crate::phases;
use crate::support::engine::{Cancel, Error, Outcome};
use crate::support::peer::{Peer, accept, hello, table};
use crate::support::wire::kind;
use crate::support::{At, Rig, Shape, Side, on_phase, try_all};

/// Long before anything times out.
const SOON: Duration = Duration::from_secs(10);

fn rig() -> Rig {
    Rig::set(2, &Shape::default()).with_memory(&[(0, 0x8000)])
}

/// What becomes of a migration that is cancelled as a phase begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It is given up.
    Cancelled,
    /// It goes on to its end: the devices have been handed over, or may have been.
    TooLate,
    /// It has been cancelled before, as the phase of this name began, and nothing changes.
    CancelledBefore(&'static str),
    /// The phase is the one that a machine starts in: see [`a_destination_that_waits_for_a_peer_is_cancelled_at_once`].
    First,
    /// The phase follows on failures, on rounds that get no better, or needs several connections, which the simulation combines
    /// with a cancel.
    Simulated,
}

/// A new phase does not compile without a line here.
fn at_the_source(phase: source::Phase) -> Then {
    use source::{Back, Phase, Then as After};
    match phase {
        Phase::Hello
        | Phase::Table
        | Phase::Precopy
        | Phase::RoundQuery
        | Phase::RoundSend
        | Phase::RoundEnd
        | Phase::Ping
        | Phase::RoundLeft
        | Phase::RoundMemoryLeft
        | Phase::Record
        | Phase::Pause
        | Phase::Quiesce
        | Phase::Stop
        | Phase::Rest
        | Phase::End => Then::Cancelled,
        Phase::Committed | Phase::Release | Phase::Over => Then::TooLate,
        Phase::Settle(After::Back)
        | Phase::Back(Back::Query | Back::Quiesce | Back::Run | Back::Owner | Back::Tell) => {
            Then::CancelledBefore("End")
        }
        Phase::Lanes
        | Phase::Slow
        | Phase::Broken
        | Phase::Reconnect
        | Phase::Join
        | Phase::Resend
        | Phase::Back(Back::Reset)
        | Phase::Settle(After::Park | After::Release)
        | Phase::Park => Then::Simulated,
    }
}

/// As [`at_the_source`].
fn at_the_destination(phase: destination::Phase) -> Then {
    use destination::Phase;
    match phase {
        Phase::Hello => Then::First,
        Phase::Table
        | Phase::Resume
        | Phase::Load
        | Phase::RoundEnd
        | Phase::Finish
        | Phase::Inspect
        | Phase::Ready => Then::Cancelled,
        Phase::Quiesce | Phase::Start | Phase::Run | Phase::Over => Then::TooLate,
        Phase::Settle | Phase::Record | Phase::Reset | Phase::Tell => Then::CancelledBefore("Ready"),
        Phase::Broken | Phase::Await | Phase::Rejoin | Phase::Verify => Then::Simulated,
    }
}

/// Has a side cancelled as a phase begins, and before that as another one does. Returns whether both have begun.
fn cancel_at(side: &mut Side, phase: &'static str, before: Option<&'static str>) -> Arc<AtomicUsize> {
    let cancel = side.cancel.clone();
    let met = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&met);
    let mut left: Vec<&str> = before.into_iter().chain([phase]).collect();
    side.phases = Some(on_phase(move |name| {
        if left.first() == Some(&name) {
            left.remove(0);
            counter.fetch_add(1, Ordering::Relaxed);
            cancel.cancel("SIGTERM");
        }
    }));
    met
}

/// Cancels a side as a phase begins, and returns what both sides say if the migration failed.
fn cancelled(is_here: bool, phase: &'static str, then: Then) -> Option<(String, String)> {
    let what = format!("{}, {phase}", if is_here { "source" } else { "destination" });
    let folder = tempfile::tempdir().unwrap();
    let mut rig = rig();
    // Without a journal there is no discard to record.
    rig.there.journal = Some(folder.path().join("there"));
    let before = match then {
        Then::CancelledBefore(before) => Some(before),
        _ => None,
    };
    let met = cancel_at(if is_here { &mut rig.here } else { &mut rig.there }, phase, before);
    let started = Instant::now();
    let mut ended = rig.migrate();
    assert!(started.elapsed() < SOON, "{what}: {:?}", started.elapsed());
    assert_eq!(met.load(Ordering::Relaxed), 1 + usize::from(before.is_some()), "{what} does not begin");
    if then == Then::TooLate {
        ended.assert_sane(&what);
        assert!(ended.sent.is_ok() && ended.received.is_ok(), "{what}: {:?}", ended.sent);
        return None;
    }
    let side = if is_here { &ended.rig.here } else { &ended.rig.there };
    assert_eq!(side.cancel.reason().as_deref(), Some("SIGTERM"));
    Some(ended.refused(&what))
}

#[test]
fn a_source_that_is_cancelled_in_any_phase_runs_on_and_the_destination_is_clean() {
    for &(phase, name) in phases::SOURCE {
        let then = at_the_source(phase);
        if !matches!(then, Then::First | Then::Simulated)
            && let Some((sent, received)) = cancelled(true, name, then)
        {
            assert!(sent.starts_with("cancelled: SIGTERM; "), "{name}: {sent}");
            assert_eq!(received, "the source ended the migration: cancelled: SIGTERM", "{name}");
        }
    }
}

#[test]
fn a_destination_that_is_cancelled_in_any_phase_is_clean_and_the_source_runs_on() {
    for &(phase, name) in phases::DESTINATION {
        let then = at_the_destination(phase);
        if !matches!(then, Then::First | Then::Simulated)
            && let Some((sent, received)) = cancelled(false, name, then)
        {
            assert_eq!(received, "cancelled: SIGTERM", "{name}");
            let starts = "the destination ended the migration: cancelled: SIGTERM; ";
            assert!(sent.starts_with(starts), "{name}: {sent}");
        }
    }
}

/// A moment of a migration in which a call into a device or an owner is under way.
#[derive(Clone, Copy, Debug)]
enum When {
    /// A device at the source is asked this.
    Here(At),
    /// A device at the destination is asked this.
    There(At),
    Owner(&'static str),
    /// The source shows this phase.
    Shows(Phase),
}

/// Moments of each kind, until the devices are the destination's.
fn moments() -> Vec<When> {
    use State::{PreCopy, PreCopyP2p, Resuming, Running, Stop, StopCopy};
    vec![
        When::Shows(Phase::Greeting),
        When::There(At::Arc(Stop, Resuming)),
        When::Here(At::LogStart),
        When::Here(At::Arc(Running, PreCopy)),
        When::Here(At::Precopy),
        When::Here(At::Read(PreCopy)),
        When::Shows(Phase::Round(1)),
        When::Here(At::LogReport),
        When::There(At::Write),
        When::Owner("pause"),
        When::Here(At::Arc(PreCopy, PreCopyP2p)),
        When::Here(At::Arc(PreCopyP2p, StopCopy)),
        When::Here(At::Read(StopCopy)),
        When::Shows(Phase::Switchover),
        When::There(At::Arc(Resuming, Stop)),
        When::Owner("inspect"),
    ]
}

fn at(rig: &mut Rig, when: When, cancel: Cancel) {
    let act = move || cancel.cancel("SIGTERM");
    match when {
        When::Here(at) => rig.here.units[1].control.when(at, 0, act),
        When::There(at) => rig.there.units[1].control.when(at, 0, act),
        When::Owner("pause") => rig.here.program.when("pause", act),
        When::Owner(request) => rig.there.program.when(request, act),
        When::Shows(phase) => {
            let mut act = Some(act);
            rig.here.observer = Some(Box::new(move |progress| {
                if progress.phase == phase
                    && let Some(act) = act.take()
                {
                    act();
                }
            }));
        }
    }
}

#[test]
fn a_source_that_is_cancelled_during_a_call_runs_on_and_the_destination_is_clean() {
    for when in moments() {
        let what = format!("{when:?}");
        let mut rig = rig();
        let cancel = rig.here.cancel.clone();
        at(&mut rig, when, cancel);
        let started = Instant::now();
        let mut ended = rig.migrate();
        assert!(started.elapsed() < SOON, "{what}: {:?}", started.elapsed());
        if matches!(when, When::Shows(Phase::Switchover)) && ended.sent.is_ok() {
            // Shown too late to be called off: then nothing is.
            ended.assert_sane(&what);
            continue;
        }
        let (sent, received) = ended.refused(&what);
        assert!(sent.starts_with("cancelled: SIGTERM; "), "{what}: {sent}");
        assert_eq!(received, "the source ended the migration: cancelled: SIGTERM", "{what}");
        assert_eq!(ended.rig.here.cancel.reason().as_deref(), Some("SIGTERM"));
    }
}

#[test]
fn a_destination_that_is_cancelled_during_a_call_is_clean_and_the_source_runs_on() {
    for when in moments() {
        let what = format!("{when:?}");
        let mut rig = rig();
        let cancel = rig.there.cancel.clone();
        at(&mut rig, when, cancel);
        let started = Instant::now();
        let mut ended = rig.migrate();
        assert!(started.elapsed() < SOON, "{what}: {:?}", started.elapsed());
        if matches!(when, When::Shows(Phase::Switchover)) && ended.sent.is_ok() {
            ended.assert_sane(&what);
            continue;
        }
        let (sent, received) = ended.refused(&what);
        assert_eq!(received, "cancelled: SIGTERM", "{what}");
        assert!(
            sent.starts_with("the destination ended the migration: cancelled: SIGTERM; "),
            "{what}: {sent}"
        );
    }
}

#[test]
fn devices_that_have_been_handed_over_stay_where_they_are_whoever_cancels() {
    let starts = [At::Arc(State::Stop, State::RunningP2p), At::Arc(State::RunningP2p, State::Running)];
    for (at, cancels_here) in starts.into_iter().flat_map(|at| [(at, true), (at, false)]) {
        let what = format!("{at:?} {cancels_here}");
        let rig = rig();
        let cancel = if cancels_here { rig.here.cancel.clone() } else { rig.there.cancel.clone() };
        rig.there.units[0].control.when(at, 0, move || cancel.cancel("too late"));
        let mut ended = rig.migrate();
        ended.assert_sane(&what);
        assert!(ended.sent.is_ok() && ended.received.is_ok(), "{what}");
    }
}

#[test]
fn a_migration_that_was_cancelled_before_it_began_touches_nothing() {
    for at_source in [true, false] {
        let rig = rig();
        if at_source { &rig.here } else { &rig.there }.cancel.cancel("not today");
        let mut ended = rig.migrate();
        let (sent, received) = ended.refused("cancelled before");
        assert!(sent.contains("cancelled: not today") && received.contains("cancelled: not today"));
        assert!(matches!(ended.sent.unwrap_err().outcome, Outcome::Untouched));
        assert!(ended.rig.here.history.list().is_empty() && ended.rig.there.history.list().is_empty());
    }
}

/// Cancels after a while, on a thread of its own.
fn soon(cancel: &Cancel) {
    let cancel = cancel.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        cancel.cancel("enough");
    });
}

#[test]
fn a_source_that_waits_for_a_peer_is_cancelled_at_once() {
    // Nothing is said; nothing is read; nothing is answered after so many answers.
    try_all(0..3, |answers| {
        let shape = Shape { initial: 64 << 20, ..Shape::default() };
        let mut rig = Rig::new(&shape);
        let (mut peer, link) = Peer::new();
        let peer = thread::spawn(move || {
            if answers > 0 {
                peer.hear_until(kind::HELLO).unwrap();
                peer.say(&accept());
            }
            if answers > 1 {
                peer.hear_until(kind::TABLE).unwrap();
                peer.frame(kind::FITS, b"{}");
            }
            peer
        });
        soon(&rig.here.cancel);
        let started = Instant::now();
        let error = rig.send_to(link).unwrap_err();
        assert!(started.elapsed() < SOON, "{answers}: {:?}", started.elapsed());
        assert!(matches!(error.cause, Error::Cancelled { .. }), "{answers}: {error}");
        rig.assert_source_runs("cancelled while it waited");
        drop(peer.join().unwrap());
    });
}

#[test]
fn a_destination_that_waits_for_a_peer_is_cancelled_at_once() {
    try_all(0..3, |messages| {
        let mut rig = Rig::new(&Shape::default()).with_memory(&[(0, 0x4000)]);
        let (mut peer, link) = Peer::new();
        let peer = thread::spawn(move || {
            let said = [hello(), Control::Table(table(0x4000)).into()];
            peer.tell(&said[..messages]);
            let reason = peer.hear_until(kind::FAILED);
            (reason, peer)
        });
        soon(&rig.there.cancel);
        let started = Instant::now();
        let error = rig.receive_from(link).unwrap_err();
        assert!(started.elapsed() < SOON, "{messages}: {:?}", started.elapsed());
        assert!(matches!(error, Error::Cancelled { .. }), "{messages}: {error}");
        rig.assert_destination_is_fresh("cancelled while it waited");
        let (reason, _peer) = peer.join().unwrap();
        assert_eq!(reason.unwrap(), br#"{"reason":"cancelled: enough"}"#, "{messages}");
    });
}

/// Memory at a destination that is cancelled in the first write to the second lane's share, which is slow.
struct Slow {
    memory: GuestMemoryMmap,
    cancel: Cancel,
    writes: AtomicUsize,
    is_cancelled: AtomicBool,
}

impl Ram for Slow {
    fn regions(&self) -> Vec<RamRegion> {
        Ram::regions(&self.memory)
    }
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
        Ram::read(&self.memory, address, data)
    }
    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if address / STRIPE % 2 == 1 && !self.is_cancelled.swap(true, Ordering::SeqCst) {
            self.cancel.cancel("in a write");
            // Longer than anything else that is left to do.
            thread::sleep(Duration::from_secs(3));
        }
        let result = Ram::write(&self.memory, address, data);
        self.writes.fetch_sub(1, Ordering::SeqCst);
        result
    }
    fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
        self.memory.clear(address, length)
    }
}

#[test]
fn nothing_is_written_to_memory_any_more_once_a_cancelled_destination_has_returned() {
    let device =
        |name: &str| Box::new(Local::new("serial".parse::<Model>().unwrap().open(name).unwrap())) as _;
    let memory = || GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 * STRIPE as usize)]).unwrap();
    let here = memory();
    here.write_slice(&vec![7; 2 * STRIPE as usize], GuestAddress(0)).unwrap();
    let cancel = Cancel::new();
    let there = Arc::new(Slow {
        memory: memory(),
        cancel: cancel.clone(),
        writes: AtomicUsize::new(0),
        is_cancelled: AtomicBool::new(false),
    });
    let mut listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    let until = || Until::timeout(SOON);
    thread::scope(|scope| {
        let destination = Destination::new(vec![device("there")]).memory(there.clone()).cancel(&cancel);
        let ram = there.clone();
        let receiving = scope.spawn(move || {
            let accepted = destination.accept(&mut listener, until()).unwrap();
            let result = destination.receive_accepted(accepted).result;
            assert_eq!(ram.writes.load(Ordering::SeqCst), 0, "a lane still writes");
            result.unwrap_err()
        });
        let source = Source::new(vec![device("here")]).memory(Arc::new(here), NoCpuLog);
        let source =
            source.options(SourceOptions::default().channels(2)).connector(Connector::new(address.clone()));
        source.send(connect(&address, until()).unwrap()).result.unwrap_err();
        let error = receiving.join().unwrap();
        assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    });
}
