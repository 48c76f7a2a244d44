//! Takeovers whose state moves while the client works, and what ends that.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use whimbrel_device::{DeviceFile, Errno, State};
use whimbrel_models::{Model, accel};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::message::{Command, RegionAccess, Reply, Request};
use whimbrel_vfio_user::{Backend, Server, Takeover, TakeoverError};

use super::hand::*;
use super::support::*;
use super::takeover::{Line, feature, set_state, state};

/// Much more than fits into a socket: the old server waits in pre-copy for who takes it.
const STATE: u64 = 2 << 20;
/// How long anything may take that happens at once.
pub(super) const LONG: Duration = Duration::from_secs(20);
/// A register that keeps what is written to it.
const REGISTER: u64 = accel::REGISTER_INTERRUPT_ENABLE;

pub(super) fn model(faults: &str) -> Backend {
    let model: Model = format!("accel?state={STATE}").parse().unwrap();
    Backend::new(model.open_with_faults("accel", faults.parse().unwrap()).unwrap())
}

/// An old server in pre-copy, and a client whose device moves.
pub(super) struct Moving {
    pub(super) line: Line,
    pub(super) peer: Peer,
    pub(super) hand: Hand,
    pub(super) device: DeviceFile,
}

impl Moving {
    pub(super) fn new() -> Moving {
        Moving::of(Line::with(model("")))
    }

    /// The same in an event loop, whose turns are counted.
    fn dispatched() -> (Moving, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        (Moving::of(Line::dispatched(model(""), count.clone())), count)
    }

    /// The new server, which is played here, has taken the first bytes, and takes no more for now.
    pub(super) fn of(line: Line) -> Moving {
        let peer = client(&line);
        let mut hand = Hand::speaking(&[2], || UnixStream::connect(line.path()).unwrap());
        let offer = hand.hear().unwrap();
        assert_eq!((kind(&offer), offer.text["version"].as_u64()), ("offer", Some(2)));
        hand.say(&json!({"message": "accept"}));
        assert_eq!(kind(&hand.hear().unwrap()), "precopy");
        assert_eq!(kind(&hand.hear().unwrap()), "state");
        let device = line.device().clone();
        // The old server waits once the socket is full.
        let mut counts = [0, 1];
        while counts[0] != counts[1] {
            std::thread::sleep(Duration::from_millis(10));
            counts = [counts[1], rustix::io::ioctl_fionread(&hand.sender).unwrap()];
        }
        Moving { line, peer, hand, device }
    }

    /// That the client's device is as before, in RUNNING, and nothing is hidden.
    #[track_caller]
    fn goes_on(&mut self) {
        comes_to("it runs", || self.device.mig_state() == Ok(State::Running));
        assert_eq!(state(&mut self.peer), State::Running.number());
        assert_eq!(self.peer.read(BAR, REGISTER, 4).unwrap(), 3_u32.to_le_bytes());
        set_state(&mut self.peer, State::PreCopy).unwrap();
        assert_eq!(state(&mut self.peer), State::PreCopy.number(), "it is the client's own");
        set_state(&mut self.peer, State::Running).unwrap();
    }
}

/// Takes everything up to the end, and returns the bytes of state before and after the stop, and all else.
pub(super) fn take_all(hand: &mut Hand) -> (usize, usize, Vec<Said>) {
    let (mut moved, mut others) = ([0, 0], Vec::new());
    while others.last().is_none_or(|said| kind(said) != "end") {
        let said = hand.hear().unwrap_or_else(|| panic!("it has hung up after {others:?}"));
        match kind(&said) {
            "state" => moved[usize::from(!others.is_empty())] += said.data.len(),
            _ => others.push(said),
        }
    }
    (moved[0], moved[1], others)
}

/// Waits for something that is about to be so.
#[track_caller]
pub(super) fn comes_to(what: &str, is_so: impl Fn() -> bool) {
    let limit = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn set_up(backend: Backend) -> (Line, Peer) {
    let line = Line::with(backend);
    let peer = client(&line);
    (line, peer)
}

fn client(line: &Line) -> Peer {
    let mut peer = line.client();
    peer.write(BAR, REGISTER, &3_u32.to_le_bytes()).unwrap();
    peer
}

fn data_size(peer: &mut Peer) -> u64 {
    let data = feature(peer, Feature::MigDataSize, FeatureFlags::GET, &[0; 8]).unwrap();
    u64::from_ne_bytes(*data.first_chunk().unwrap())
}

pub(super) fn set(state: State) -> [u8; 8] {
    let mut data = [0; 8];
    data[..4].copy_from_slice(&state.number().to_ne_bytes());
    data
}

/// A request that makes a migration of the client's own begin.
pub(super) fn own_migration(data: &[u8]) -> Request<'_> {
    Request::DeviceFeature(whimbrel_vfio_user::message::DeviceFeature {
        argsz: 16,
        feature: Feature::MigDeviceState.number(),
        flags: FeatureFlags::SET,
        data,
    })
}

#[test]
fn the_client_works_and_sees_running_while_the_state_moves() {
    for mut moving in [Moving::new(), Moving::dispatched().0] {
        assert_eq!(moving.device.mig_state(), Ok(State::PreCopy));
        for round in 0..100_u32 {
            moving.peer.write(BAR, REGISTER, &(round & 3).to_le_bytes()).unwrap();
            assert_eq!(moving.peer.read(BAR, REGISTER, 4).unwrap(), (round & 3).to_le_bytes());
            assert_eq!(state(&mut moving.peer), State::Running.number());
        }
        assert!(data_size(&mut moving.peer) > STATE, "it is that of a device in RUNNING");
        assert_eq!(moving.device.mig_state(), Ok(State::PreCopy), "all of that was in pre-copy");
        let (before, after, others) = take_all(&mut moving.hand);
        assert!(before as u64 > STATE / 2, "{before} bytes while it ran");
        assert!(after < 1 << 16, "{after} bytes while it was stopped");
        assert_eq!(kind(&others[0]), "begin");
        moving.hand.say(&json!({"message": "failed", "why": "enough"}));
        moving.goes_on();
    }
}

#[test]
fn an_event_loop_does_not_turn_while_a_request_waits_for_a_takeover() {
    let (mut moving, turns) = Moving::dispatched();
    let reset = moving.peer.send(&Request::DeviceReset);
    let access = RegionAccess { offset: REGISTER, region: BAR, count: 4 };
    let read = moving.peer.send(&Request::RegionRead(access));
    std::thread::sleep(Duration::from_millis(50));
    let before = turns.load(Ordering::Relaxed);
    // What comes meanwhile is left in the socket.
    let last = moving.peer.send(&Request::RegionRead(access));
    std::thread::sleep(Duration::from_millis(100));
    let turned = turns.load(Ordering::Relaxed) - before;
    assert!(turned < 10, "{turned} turns in 100 ms");
    let (before, after, others) = take_all(&mut moving.hand);
    assert!(before < after, "{before} {after}");
    assert_eq!(others.iter().find(|said| kind(said) == "waiting").unwrap().text["id"], reset);
    moving.hand.say(&json!({"message": "failed", "why": "enough"}));
    moving.peer.answer(reset, Command::DeviceReset).unwrap();
    for id in [read, last] {
        let answer = moving.peer.answer(id, Command::RegionRead).unwrap();
        assert!(matches!(answer.reply(), Reply::RegionRead(_, [0, 0, 0, 0])), "{answer:?}");
    }
}

#[test]
fn a_device_and_its_client_move_with_all_that_was_done_in_pre_copy() {
    let (mut line, mut peer) = set_up(model(""));
    for round in 0..3_u32 {
        line.take_over_with(model("")).unwrap();
        assert_eq!(peer.read(BAR, REGISTER, 4).unwrap(), ((round + 3) & 3).to_le_bytes());
        peer.write(BAR, REGISTER, &(round & 3).to_le_bytes()).unwrap();
        peer.write(BAR, REGISTER, &((round + 4) & 3).to_le_bytes()).unwrap();
        assert_eq!(state(&mut peer), State::Running.number());
    }
}

#[test]
fn a_server_says_how_much_has_moved_while_the_device_worked() {
    let (mut line, _peer) = set_up(model(""));
    let new = model("");
    let next = Server::take_over(line.path(), new).unwrap();
    let served = line.thread.take().unwrap().join().unwrap().unwrap();
    let moved = served.moved.expect("it was taken over");
    assert!(served.taken_over && moved.precopy_bytes > STATE, "{moved:?}");
    assert!(moved.stopped_bytes > 0 && moved.stopped_bytes < 1 << 16, "{moved:?}");
    assert!(moved.pause > Duration::ZERO && moved.pause < LONG, "{moved:?}");
    drop(next);
}

#[test]
fn the_clients_own_migration_waits_for_the_takeover_which_goes_on_with_a_stop() {
    for (succeeds, in_loop) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut moving = if in_loop { Moving::dispatched().0 } else { Moving::new() };
        let asked = moving.peer.send(&own_migration(&set(State::PreCopy)));
        // What the client has sent after it stays behind it.
        let later = moving.peer.send(&Request::DeviceReset);
        // The old server, which waits in pre-copy, has time to see both.
        std::thread::sleep(Duration::from_millis(200));
        let (before, after, others) = take_all(&mut moving.hand);
        assert!(before < after, "pre-copy ends at once: {before} bytes before the stop, {after} after it");
        let waiting: Vec<_> = others.iter().filter(|said| kind(said) == "waiting").collect();
        assert_eq!(waiting[0].text["id"], asked, "{waiting:?}");
        moving.hand.say(&json!({"message": "ready"}));
        assert_eq!(kind(&moving.hand.hear().unwrap()), "handover");
        if succeeds {
            moving.hand.say(&json!({"message": "running"}));
            assert!(moving.line.ended_with_path().unwrap().taken_over);
            assert_eq!(moving.device.mig_state(), Ok(State::Stop), "it was not executed here");
        } else {
            moving.hand.say(&json!({"message": "failed", "why": "no"}));
            // Then it is executed here, as by a server that nobody has tried to replace.
            moving.peer.answer(asked, Command::DeviceFeature).unwrap();
            moving.peer.answer(later, Command::DeviceReset).unwrap();
            assert_eq!(state(&mut moving.peer), State::Running.number());
        }
    }
}

/// Lets a server take over through this test, which holds back what the old one says until `hold` has been done.
fn take_over_through(line: &Line, new: Backend, hold: impl FnOnce()) -> Result<Server, TakeoverError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("between");
    let listener = UnixListener::bind(&path).unwrap();
    let taking = {
        let path = path.clone();
        std::thread::spawn(move || Takeover::connect(path)?.finish(new))
    };
    let mut hold = Some(hold);
    stand_between(&line.path(), &listener, &path, |said| {
        if kind(said) == "state" {
            hold.take().into_iter().for_each(|hold| hold());
        }
    });
    taking.join().unwrap()
}

/// Runs the server that has taken over.
fn run(line: &mut Line, server: Server) {
    line.stopper = server.stopper();
    let old = line.thread.replace(std::thread::spawn(move || server.run())).unwrap();
    assert!(old.join().unwrap().unwrap().taken_over);
}

#[test]
fn the_new_server_executes_the_migration_and_the_reset_that_the_client_has_asked_for() {
    for own in [true, false] {
        let (mut line, mut peer) = set_up(model(""));
        let mut asked = 0;
        let server = take_over_through(&line, model(""), || {
            let data = set(State::PreCopy);
            asked = peer.send(&if own { own_migration(&data) } else { Request::DeviceReset });
        });
        run(&mut line, server.unwrap());
        let command = if own { Command::DeviceFeature } else { Command::DeviceReset };
        let answer = peer.answer(asked, command).unwrap();
        let (expected, register) = if own { (State::PreCopy, 3_u32) } else { (State::Running, 0) };
        assert_eq!(answer.fds.len(), usize::from(own), "a session has its socket");
        assert_eq!(state(&mut peer), expected.number());
        assert_eq!(peer.read(BAR, REGISTER, 4).unwrap(), register.to_le_bytes());
        if own {
            // The migration goes on as any other.
            set_state(&mut peer, State::StopCopy).unwrap();
            assert_eq!(peer.ask(&Request::MigDataRead { size: 64 }).unwrap().payload.len(), 8 + 64);
        }
    }
}

#[test]
fn a_reset_by_a_client_that_does_not_wait_is_executed_and_the_takeover_starts_over() {
    for mut moving in [Moving::new(), Moving::dispatched().0] {
        moving.peer.send(&Request::DeviceReset);
        drop(moving.peer);
        comes_to("its request is executed", || moving.device.mig_state() != Ok(State::PreCopy));
        let (before, after, others) = take_all(&mut moving.hand);
        assert_eq!(others[..2].iter().map(kind).collect::<Vec<_>>(), ["discard", "begin"]);
        assert!(after as u64 > STATE, "{before} and {after} bytes");
        assert_eq!(others.last().unwrap().text["state_bytes"], after as u64, "what is void does not count");
        moving.hand.say(&json!({"message": "failed", "why": "enough"}));
        comes_to("it is reset and runs", || {
            let mut register = [9; 4];
            moving.device.read_region(BAR, REGISTER, &mut register).unwrap();
            register == [0; 4] && moving.device.mig_state() == Ok(State::Running)
        });
    }
}

#[test]
fn a_device_that_fails_in_pre_copy_is_taken_over_with_a_stop() {
    for faults in [
        "arc RUNNING->PRE_COPY: EIO",
        "arc RUNNING->PRE_COPY: 0",
        "read after 1MiB: EIO once",
        "read after 0: EIO once",
        "read after 1MiB: ENODEV once",
        "precopy: EIO",
        "precopy: ENODEV",
        "precopy: initial 0 dirty 0",
        "precopy: initial 5 dirty 0",
        "temporary end: 0",
        "reinit after 1MiB",
        "reinit at end",
    ] {
        let (mut line, mut peer) = set_up(model(faults));
        line.take_over_with(model("")).unwrap_or_else(|error| panic!("{faults}: {error}"));
        assert_eq!(peer.read(BAR, REGISTER, 4).unwrap(), 3_u32.to_le_bytes(), "{faults}");
        assert_eq!(state(&mut peer), State::Running.number(), "{faults}");
    }
}

#[test]
fn a_device_that_fails_for_good_stays_and_its_client_sees_what_has_become_of_it() {
    for (faults, expected) in [
        ("arc *->STOP_COPY: EIO", State::Running),
        ("read after 1MiB: EIO", State::Running),
        ("read after 1MiB: ENODEV", State::Running),
        ("read after 0 in STOP_COPY: EIO", State::Running),
        ("arc RUNNING->PRE_COPY: EIO broken", State::Error),
        ("arc *->STOP_COPY: EIO broken", State::Error),
        ("read after 1MiB: EIO; arc PRE_COPY->RUNNING: EIO broken", State::Error),
    ] {
        let (mut line, mut peer) = set_up(model(faults));
        let error = line.take_over_with(model("")).unwrap_err();
        assert!(matches!(error, TakeoverError::Refused(_)), "{faults}: {error}");
        assert_eq!(state(&mut peer), expected.number(), "{faults}");
        assert_eq!(peer.read(BAR, REGISTER, 4).unwrap(), 3_u32.to_le_bytes(), "{faults}");
        peer.ask(&Request::DeviceReset).unwrap();
        assert_eq!(state(&mut peer), State::Running.number(), "{faults}");
    }
}

#[test]
fn a_device_that_somebody_else_resets_in_pre_copy_starts_over() {
    let mut moving = Moving::new();
    moving.device.reset().unwrap();
    let (_, _, others) = take_all(&mut moving.hand);
    assert_eq!(others[..2].iter().map(kind).collect::<Vec<_>>(), ["discard", "begin"]);
    moving.hand.say(&json!({"message": "failed", "why": "enough"}));
    assert_eq!(moving.peer.read(BAR, REGISTER, 4).unwrap(), [0; 4]);
    assert_eq!(state(&mut moving.peer), State::Running.number());
}

#[test]
fn a_device_without_pre_copy_and_one_that_sleeps_or_stands_are_stopped_at_once() {
    let stopped_at_once = |line: &Line| {
        let mut hand = Hand::speaking(&[2], || UnixStream::connect(line.path()).unwrap());
        hand.hear().unwrap();
        hand.say(&json!({"message": "accept"}));
        assert_eq!(kind(&hand.hear().unwrap()), "begin");
    };
    let other = |model: &str| Backend::new(model.parse::<Model>().unwrap().open("other").unwrap());
    for settings in ["accel?state=4KiB&features=stop-copy", "accel?state=64KiB&protocol=v1"] {
        stopped_at_once(&set_up(other(settings)).0);
    }
    let (line, mut peer) = set_up(other("accel?state=4KiB"));
    feature(&mut peer, Feature::LowPowerEntry, FeatureFlags::SET, &[]).unwrap();
    stopped_at_once(&line);
    let again = feature(&mut peer, Feature::LowPowerEntry, FeatureFlags::SET, &[]);
    assert_eq!(again, Err(Errno::EINVAL), "it is let sleep still");
    for stopped in [State::Stop, State::RunningP2p] {
        let (line, mut peer) = set_up(other("accel?state=4KiB"));
        set_state(&mut peer, stopped).unwrap();
        stopped_at_once(&line);
        assert_eq!(state(&mut peer), stopped.number());
    }
}

#[test]
fn a_new_server_that_dies_or_gives_up_in_pre_copy_leaves_the_device_where_it_was() {
    let mut moving = Moving::new();
    drop(std::mem::replace(&mut moving.hand, Hand::new(UnixStream::pair().unwrap().0)));
    moving.goes_on();
    for said in [
        json!({"message": "failed", "why": "no"}),
        json!({"message": "ready"}),
        json!({"message": "running"}),
        json!({"message": "accept"}),
        json!({"message": "request", "versions": [2]}),
        json!({"message": "state", "ends": false}),
        json!({"message": "nonsense"}),
        json!(7),
    ] {
        let mut moving = Moving::new();
        moving.hand.say(&said);
        let mut last = None;
        while let Some(said) = moving.hand.hear() {
            assert!(["state", "abort"].contains(&kind(&said)), "{said:?}");
            last = Some(said);
        }
        assert_eq!(kind(&last.expect("something")), "abort", "{said}");
        moving.goes_on();
    }
}

#[test]
fn a_stop_of_the_server_ends_pre_copy_at_once_and_the_device_runs() {
    let begun = Instant::now();
    let mut moving = Moving::new();
    // A request of the client that waits does not hold it up.
    moving.peer.send(&Request::DeviceReset);
    let Moving { line, mut hand, device, peer } = moving;
    assert!(!line.stopped().unwrap().taken_over);
    assert!(begun.elapsed() < LONG);
    assert_eq!(device.mig_state(), Ok(State::Running));
    while hand.hear().is_some() {}
    drop(peer);
}

#[test]
fn a_client_leaves_and_the_next_one_comes_while_the_state_moves() {
    let mut moving = Moving::new();
    drop(std::mem::replace(&mut moving.peer, Peer::new(UnixStream::pair().unwrap().0, None)));
    let limit = Instant::now() + LONG;
    let mut next = loop {
        let mut peer = Peer::new(UnixStream::connect(moving.line.path()).unwrap(), None);
        let proposal = whimbrel_vfio_user::message::Version::proposal(Backend::capabilities());
        match peer.ask(&Request::Version(proposal)) {
            Ok(_) => break peer,
            Err(errno) => assert_eq!(errno, Errno::EBUSY),
        }
        assert!(Instant::now() < limit, "no client is served");
    };
    assert_eq!(moving.device.mig_state(), Ok(State::PreCopy));
    assert_eq!(state(&mut next), State::Running.number());
    let (_, _, others) = take_all(&mut moving.hand);
    assert!(others.iter().any(|said| kind(said) == "client"), "it moves too");
    moving.hand.say(&json!({"message": "failed", "why": "enough"}));
    assert_eq!(next.read(BAR, REGISTER, 4).unwrap(), 3_u32.to_le_bytes());
}

/// Text and data of a message.
type Message<'a> = (serde_json::Value, &'a [u8]);

/// Plays an old server that offers `version`, and returns what the new one makes of it and of what is said then.
fn taken_from(version: u32, backend: &Backend, script: &[Message<'_>]) -> TakeoverError {
    use std::os::unix::fs::MetadataExt;
    let (line, _peer) = set_up(model(""));
    let mut real = Hand::connect(&line.path());
    let offer = real.hear().unwrap().text;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("old");
    let listener = UnixListener::bind(&path).unwrap();
    let metadata = path.metadata().unwrap();
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| Takeover::connect(&path)?.finish(backend.clone()).map(drop));
        let mut hand = Hand::new(listener.accept().unwrap().0);
        hand.hear().unwrap();
        let mut offer = offer.clone();
        offer["version"] = json!(version);
        offer["socket"] = json!([metadata.dev(), metadata.ino()]);
        hand.say(&offer);
        assert_eq!(kind(&hand.hear().unwrap()), "accept");
        for (text, data) in script {
            hand.say_with(text.to_string().as_bytes(), data, &[]);
        }
        let _ = rustix::net::shutdown(&hand.sender, rustix::net::Shutdown::Write);
        taking.join().unwrap().unwrap_err()
    })
}

#[test]
fn a_new_server_takes_no_message_out_of_its_order_and_is_as_after_a_reset() {
    let begin = || (json!({"message": "begin", "state": 2, "precopy_info_v2": false}), &[][..]);
    let say = |kind: &str| (json!({"message": kind}), &[][..]);
    let state = |data: &'static [u8]| (json!({"message": "state", "ends": false}), data);
    let end = || (json!({"message": "end", "state_bytes": 0}), &[][..]);
    let cases: [(u32, Vec<Message<'_>>, &str); 14] = [
        (1, vec![say("precopy")], "unexpected precopy"),
        (1, vec![say("discard")], "unexpected discard"),
        (1, vec![state(b"")], "unexpected state"),
        (2, vec![state(b"")], "unexpected state"),
        (2, vec![say("discard")], "unexpected discard"),
        (2, vec![end()], "unexpected end"),
        (2, vec![say("precopy"), say("precopy")], "unexpected precopy"),
        (2, vec![say("precopy"), end()], "unexpected end"),
        (2, vec![say("precopy"), say("configuration")], "unexpected configuration"),
        (2, vec![say("precopy"), say("discard"), state(b"")], "unexpected state"),
        (2, vec![begin(), say("precopy")], "unexpected precopy"),
        (2, vec![begin(), begin()], "unexpected begin"),
        (2, vec![say("precopy"), begin(), say("discard")], "unexpected discard"),
        // An old server that dies.
        (2, vec![say("precopy")], "closed the connection"),
    ];
    let backend = model("");
    for (version, script, why) in &cases {
        let error = taken_from(*version, &backend, script).to_string();
        assert!(error.contains(why), "{version} {script:?}: {error}");
        assert_eq!(backend.device().mig_state(), Ok(State::Running), "{script:?}");
    }
}

#[test]
fn state_without_end_is_refused_by_the_device() {
    let backend = model("");
    let piece = vec![0x5a; 1 << 20];
    let mut script = vec![(json!({"message": "precopy"}), &[][..])];
    script.extend((0..8).map(|_| (json!({"message": "state", "ends": false}), &piece[..])));
    let error = taken_from(2, &backend, &script);
    assert!(matches!(error, TakeoverError::Device(_)), "{error}");
    assert_eq!(backend.device().mig_state(), Ok(State::Running));
    // It can take over still.
    let (mut line, mut peer) = set_up(model(""));
    line.take_over_with(backend).unwrap();
    assert_eq!(peer.read(BAR, REGISTER, 4).unwrap(), 3_u32.to_le_bytes());
}

#[test]
fn a_takeover_of_the_first_version_moves_everything_after_the_stop() {
    let (line, mut peer) = set_up(model(""));
    let mut hand = Hand::speaking(&[1], || UnixStream::connect(line.path()).unwrap());
    let all = listen_to_all(&mut hand);
    assert_eq!(all[0].text["version"], 1);
    assert_eq!(kind(&all[1]), "begin");
    let bytes: usize = all.iter().filter(|said| kind(said) == "state").map(|said| said.data.len()).sum();
    assert!(bytes as u64 > STATE);
    drop(hand);
    assert_eq!(state(&mut peer), State::Running.number());
}
