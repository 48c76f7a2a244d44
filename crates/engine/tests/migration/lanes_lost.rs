//! Migrations over several connections of which one is lost in pre-copy: all are replaced, and nothing is lost with them.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use whimbrel_device::Worker;
use whimbrel_engine::channel::{Address, Listener, Tls};
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::join::{Join, Purpose, Resumed, Secret};
use whimbrel_engine::proto::lanes::STRIPE;
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Accept, Feature, Offer};

use crate::live::{Cpu, REGIONS, assert_same_memory};
use crate::support::certificates::trusting;
use crate::support::engine::{Error, Outcome, Received, SendError};
use crate::support::links::{Net, WITHIN, passed, resuming};
use crate::support::peer::{ID, Peer, table};
use crate::support::wire::kind;
use crate::support::{Cut, Ended, Rig, Shape, try_all};

/// The number of JOINED.
const JOINED: u16 = 65;
/// The first frame of a lane ends before this byte.
const BEHIND_JOIN: usize = 250;

/// Three devices with some state before the stop, and memory of which each lane has a part.
fn rig(channels: u32) -> Rig {
    let shape = Shape { size: 3000, initial: 200_000, ..Shape::default() };
    let rig = Rig::set(3, &shape).with_memory(&[(0, 8 * STRIPE as usize)]);
    let memory = &rig.memory.as_ref().unwrap().0;
    let noise: Vec<u8> = (0..128 << 10).map(|index: usize| (index % 251) as u8 + 1).collect();
    for stripe in 0..8 {
        memory.write_slice(&noise, GuestAddress(stripe * STRIPE)).unwrap();
    }
    let mut rig = resuming(rig, WITHIN);
    rig.options = rig.options.channels(channels);
    rig
}

/// The links of a migration over so many connections, of which one is cut: 0 is the control connection.
fn cut(channels: u32, lane: u32, cut: Cut) -> Vec<Cut> {
    (0..channels).map(|number| if number == lane { cut } else { Cut::Never }).collect()
}

fn assert_outlived(mut ended: Ended, channels: u32, reconnections: u32, what: &str) {
    ended.assert_sane(what);
    let report = ended.sent.as_ref().unwrap_or_else(|error| panic!("{what}: {error}"));
    let received = ended.received.as_ref().unwrap();
    assert!(report.reconnections >= reconnections, "{what}: {report:?}");
    assert!(received.reconnections >= reconnections, "{what}: {received:?}");
    assert_eq!(report.memory_bytes, received.memory_bytes, "{what}");
    assert_eq!(report.device_bytes, received.device_bytes, "{what}");
    assert_eq!((report.lanes.len(), received.lane_bytes.len()), (channels as usize, channels as usize));
    // What was lost has arrived on no lane, or counts there.
    let arrived: u64 = received.lane_bytes.iter().sum();
    assert!(arrived >= received.memory_bytes + received.device_bytes, "{what}: {received:?}");
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    ended.rig.assert_destination_has_it(what);
}

/// Migrates with one connection cut after some bytes, over TCP.
fn outlive(tls: Option<&[Tls; 2]>, channels: u32, lane: u32, bytes: usize) {
    let net = Net::tcp(&cut(channels, lane, Cut::FromSource(bytes)));
    let mut net = match tls {
        Some(files) => net.tls(files.clone()),
        None => net,
    };
    let made = net.links.made.clone();
    let ended = rig(channels).migrate_over_links(&mut net.listener, net.links, |source| source);
    let what = format!("{channels} connections, lane {lane} cut after {bytes} bytes, TLS: {}", tls.is_some());
    assert_outlived(ended, channels, 1, &what);
    assert_eq!(made.lock().len(), 2 * channels as usize, "{what}");
}

/// The connections, the lane that is cut, and the bytes that pass before.
type Case = (u32, u32, usize);

#[test]
fn a_migration_outlives_a_lane_that_is_cut_after_any_of_some_bytes() {
    let mut cases: Vec<Case> = Vec::new();
    for channels in [2, 4] {
        // The greeting passes on the first connection.
        cases.extend([5_000, 50_000, 150_000].map(|bytes| (channels, 0, bytes)));
        let on_lanes = [BEHIND_JOIN, 3_000, 50_000, 150_000];
        cases.extend(on_lanes.map(|bytes| (channels, 1, bytes)));
        cases.extend(on_lanes.map(|bytes| (channels, channels - 1, bytes)));
    }
    try_all(cases, |(channels, lane, bytes)| outlive(None, channels, lane, bytes));
}

#[test]
fn a_migration_with_tls_outlives_a_lane_that_is_cut_after_any_of_some_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let files = trusting(folder.path());
    // Behind the handshakes.
    let cases: [Case; 6] =
        [(2, 0, 20_000), (2, 1, 20_000), (2, 1, 150_000), (4, 0, 50_000), (4, 3, 20_000), (4, 1, 150_000)];
    try_all(cases, |(channels, lane, bytes)| outlive(Some(&files), channels, lane, bytes));
}

#[test]
fn a_lane_that_falls_silent_is_lost_after_the_timeout() {
    let mut rig = rig(2);
    rig.options = rig.options.timeout(Duration::from_secs(2));
    let (ended, links) = Net::new(&cut(2, 1, Cut::SilentFromSource(100_000))).migrate(rig);
    assert!(links.len() >= 4, "{}", links.len());
    assert_outlived(ended, 2, 1, "a silent lane");
}

#[test]
fn a_lane_whose_first_frame_is_lost_is_opened_again_without_the_others() {
    let (ended, links) = Net::new(&cut(3, 2, Cut::FromSource(60))).migrate(rig(3));
    assert_eq!(links.len(), 4);
    assert_outlived(ended, 3, 0, "JOIN is lost");
}

#[test]
fn a_lane_whose_answer_is_lost_has_joined_and_all_are_opened_anew() {
    let (ended, _) = Net::new(&cut(3, 2, Cut::FromDestination(20))).migrate(rig(3));
    assert_outlived(ended, 3, 1, "JOINED is lost");
}

#[test]
fn a_device_at_work_moves_over_lanes_that_are_cut_twice_in_a_row_and_while_they_come_back() {
    let shape = Shape { dma_pages: 512, size: 3000, initial: 3 << 20, ..Shape::default() };
    let mut rig = resuming(Rig::set(2, &shape).with_memory(&REGIONS), WITHIN);
    rig.options = rig.options.max_rounds(50).channels(2);
    let half: Vec<u8> = (0..3 << 20).map(|index: usize| (index % 251) as u8 + 1).collect();
    rig.memory.as_ref().unwrap().0.write_slice(&half, GuestAddress(0)).unwrap();
    let worker = Worker::start(rig.here.file()).unwrap();
    let cpu = Cpu::new(&rig.here.program);
    let memory = rig.memory.as_ref().unwrap().0.clone();
    let cuts = [
        // In the first round.
        Cut::Never,
        Cut::FromSource(1_500_000),
        // As JOIN is sent, and as RESUMED is.
        Cut::FromSource(30),
        Cut::FromDestination(30),
        // While lanes are opened: JOINED is lost, so that the lane has joined.
        Cut::Never,
        Cut::FromDestination(20),
        Cut::Never,
        // In what is sent again, on one and on the other.
        Cut::Never,
        Cut::FromSource(400_000),
        Cut::FromSource(500_000),
        Cut::Never,
    ];
    let mut net = Net::new(&cuts);
    let made = net.links.made.clone();
    let (ended, written) = cpu.works_during(&memory, || {
        rig.migrate_over_links(&mut net.listener, net.links, |source| source.guest(cpu.clone()))
    });
    drop(worker);
    let links = passed(&made);
    let (report, received, mut rig) = (ended.sent.unwrap(), ended.received.unwrap(), ended.rig);
    assert!(links.len() >= cuts.len(), "{} of {}", links.len(), cuts.len());
    assert!(report.reconnections >= 3 && received.reconnections >= 3, "{report:?}");
    assert!(written > 0);
    assert_same_memory(rig.memory.as_ref().unwrap());
    rig.assert_source_stands("after the migration");
    rig.assert_destination_has_it("after the migration");
    assert_eq!((received.memory_bytes, received.device_bytes), (report.memory_bytes, report.device_bytes));
    assert_eq!(received.rounds, report.rounds);
}

#[test]
fn lanes_that_are_lost_with_much_state_in_flight_leave_the_receivers_memory_as_it_was() {
    let shape = Shape { initial: 30 << 20, ..Shape::default() };
    let mut rig = resuming(Rig::set(2, &shape), WITHIN);
    rig.options = rig.options.channels(2);
    // Six buffers: more lanes are lost than that, each in the middle of a frame.
    rig.there_options = rig.there_options.receive_memory(10 << 20);
    let losses = 8;
    let cuts = vec![Cut::FromSource((5 << 20) / 2); 2 * losses];
    let (ended, links) = Net::new(&cuts).migrate(rig);
    assert!(links.len() > 2 * losses, "{}", links.len());
    let (report, received, mut rig) = (ended.sent.unwrap(), ended.received.unwrap(), ended.rig);
    assert!(report.reconnections as usize >= losses && report.device_bytes > 60 << 20, "{report:?}");
    assert_eq!(report.device_bytes, received.device_bytes);
    let wire: u64 = report.lanes.iter().map(|lane| lane.wire_bytes).sum();
    assert!(wire > report.device_bytes && wire == report.wire_bytes, "what was lost crossed them, too");
    // All but the greetings, rounds and marks.
    let rest = wire - report.device_wire_bytes - report.memory_wire_bytes;
    assert!(report.memory_wire_bytes == 0 && rest < 64 << 10, "{rest} bytes besides: {report:?}");
    rig.assert_destination_has_it("after the migration");
}

#[test]
fn lanes_that_do_not_come_back_in_time_leave_the_devices_at_the_source_and_both_say_so() {
    let mut net = Net::new(&cut(2, 1, Cut::FromSource(50_000)));
    net.links.between = between_after(1, || Err("no route".into()));
    let rig = resuming(rig(2), Duration::from_millis(700));
    let (mut ended, _) = net.migrate(rig);
    let (sent, received) = ended.refused("no way back");
    assert!(sent.contains("could not be reached again within 700 ms (no route)"), "{sent}");
    assert!(received.contains("did not come back on another connection within 700 ms"), "{received}");
    let is_told = matches!(
        ended.sent,
        Err(SendError { cause: Error::NotResumed { .. }, outcome: Outcome::RunsOn, .. })
    );
    assert!(is_told, "{sent}");
}

#[test]
fn a_control_connection_that_comes_back_without_its_lanes_is_not_enough() {
    let mut net = Net::new(&cut(2, 1, Cut::FromSource(50_000)));
    // The first lane, and then each control connection but no lane.
    let mut comes = false;
    net.links.between = between_after(1, move || {
        comes = !comes;
        if comes { Ok(()) } else { Err("no route".into()) }
    });
    let rig = resuming(rig(2), Duration::from_millis(1500));
    let began = Instant::now();
    let (mut ended, links) = net.migrate(rig);
    let (sent, _) = ended.refused("no lanes");
    assert!(began.elapsed() >= Duration::from_millis(1500));
    assert!(links.len() > 3, "it is tried again: {}", links.len());
    assert!(sent.contains("within 1500 ms") && sent.contains("connection 1 of the migration"), "{sent}");
}

/// Calls `act` before each link but so many of the further ones.
fn between_after<E>(
    passes: usize,
    mut act: impl FnMut() -> Result<(), E> + Send + 'static,
) -> Box<dyn FnMut() -> Result<(), E> + Send> {
    let mut left = passes;
    Box::new(move || {
        if left == 0 {
            return act();
        }
        left -= 1;
        Ok(())
    })
}

/// A source by hand, and its lane.
struct ByHand {
    control: Peer,
    lane: Peer,
    secret: Secret,
    path: std::path::PathBuf,
}

impl ByHand {
    /// Opens a connection, and returns it with the first answer.
    fn join(&self, secret: Secret, purpose: Purpose) -> (Peer, Option<(u16, Vec<u8>)>) {
        let mut peer = Peer::from(UnixStream::connect(&self.path).unwrap());
        peer.say(&Message::Control(Control::Join(Join::new(ID, secret, purpose))));
        let answer = peer.hear();
        (peer, answer)
    }

    fn is_refused(&self, secret: Secret, purpose: Purpose) -> bool {
        let (_, answer) = self.join(secret, purpose);
        answer == Some((kind::FAILED, br#"{"reason":"no such migration"}"#.to_vec()))
    }

    fn lane(&mut self, resumption: u32) {
        let (lane, answer) = self.join(self.secret, Purpose::Lane { lane: 1, resumption });
        assert_eq!(answer.map(|(kind, _)| kind), Some(JOINED));
        self.lane = lane;
    }

    fn resume(&mut self, number: u32) -> Resumed {
        let (control, answer) = self.join(self.secret, Purpose::Resumption(number));
        let (kind, payload) = answer.unwrap();
        assert_eq!(kind, kind::RESUMED);
        self.control = control;
        serde_json::from_slice(&payload).unwrap()
    }
}

/// Lets a source by hand migrate over so many connections to a destination that waits for lost ones.
fn receive(channels: u32, source: impl FnOnce(&mut ByHand) + Send) -> Result<Received, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door");
    let mut listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
    let mut rig = Rig::new(&Shape { size: 4, ..Shape::default() }).with_memory(&[(0, 2 * STRIPE as usize)]);
    rig.there_options = rig.there_options.reconnect(Duration::from_secs(10));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut control = Peer::from(UnixStream::connect(&path).unwrap());
            let features = Feature::ALL.into_iter().collect();
            let offer = Offer::new(ID, &features, &features).with_channels(channels).with_reconnect(WITHIN);
            control.say(&Message::Control(Control::Hello(offer)));
            let accept = control.hear_until(kind::ACCEPT).unwrap();
            let accept: Accept = serde_json::from_slice(&accept).unwrap();
            assert_eq!((accept.channels, accept.reconnect_ms), (Some(channels), Some(10_000)));
            control.say(&Message::Control(Control::Table(table(2 * STRIPE))));
            control.hear_until(kind::FITS).unwrap();
            let lane = Peer::from(UnixStream::pair().unwrap().0);
            let mut hand = ByHand { control, lane, secret: accept.secret.unwrap(), path };
            source(&mut hand);
            hand.control.finish();
        });
        rig.listen(&mut listener)
    })
}

/// The state of the test's device: four bytes, 1 to 4.
const IMAGE: [u8; 10] = [0xcc, 4, 0, 0, 0, 1, 2, 3, 4, 66];

fn say(peer: &mut Peer, control: Control) {
    peer.say(&Message::Control(control));
}

#[test]
fn a_late_lane_of_an_earlier_attempt_does_not_join_and_the_source_still_does() {
    let received = receive(2, |hand| {
        hand.lane(0);
        hand.lane.say(&Message::Memory { address: STRIPE, data: b"memory" });
        say(&mut hand.lane, Control::Mark { number: 1 });
        say(&mut hand.control, Control::Round { number: 1, initial: true });
        hand.control.hear_until(kind::ROUND_DONE).unwrap();
        // The second round is not over on the lane.
        hand.control.say(&Message::DeviceState { device: 0, ends: false, data: &IMAGE[..4] });
        say(&mut hand.control, Control::Ping { id: 1 });
        hand.control.hear_until(kind::PONG).unwrap();
        say(&mut hand.control, Control::Round { number: 2, initial: true });
        hand.lane.say(&Message::Memory { address: STRIPE, data: b"wrong!" });
        let resumed = hand.resume(2);
        assert_eq!(resumed, Resumed { round: 1, devices: vec![4] });
        for resumption in [0, 1, 3] {
            assert!(hand.is_refused(hand.secret, Purpose::Lane { lane: 1, resumption }), "{resumption}");
        }
        assert!(hand.is_refused(Secret::new([1; 32]), Purpose::Lane { lane: 1, resumption: 2 }));
        hand.lane(2);
        assert!(hand.is_refused(hand.secret, Purpose::Lane { lane: 1, resumption: 2 }), "it has joined");
        hand.lane.say(&Message::Memory { address: STRIPE, data: b"memory" });
        say(&mut hand.lane, Control::Mark { number: 1 });
        say(&mut hand.control, Control::Round { number: 2, initial: true });
        hand.control.hear_until(kind::ROUND_DONE).unwrap();
        say(&mut hand.control, Control::Stopping);
        hand.control.say(&Message::DeviceState { device: 0, ends: false, data: &IMAGE[4..] });
        say(&mut hand.lane, Control::Mark { number: 2 });
        say(&mut hand.control, Control::DeviceEnd { device: 0, bytes: 10 });
        say(&mut hand.control, Control::End { memory_bytes: 12 });
        hand.control.hear_until(kind::READY).unwrap();
        say(&mut hand.control, Control::Handover);
        hand.control.hear_until(kind::RUNNING).unwrap();
    });
    let received = received.unwrap();
    assert_eq!((received.memory_bytes, received.device_bytes, received.reconnections), (12, 10, 1));
}

#[test]
fn a_lane_that_ends_is_a_lost_connection_and_the_others_are_closed() {
    let received = receive(3, |hand| {
        hand.lane(0);
        hand.lane = Peer::from(UnixStream::pair().unwrap().0);
        assert_eq!(hand.control.hear(), None, "it is closed, and the migration is not over");
        // Neither that one nor the other joins while one is lost.
        for lane in [1, 2] {
            assert!(hand.is_refused(hand.secret, Purpose::lane(lane)), "{lane}");
        }
        let resumed = hand.resume(1);
        assert_eq!(resumed, Resumed { round: 0, devices: vec![0] });
        let reason = whimbrel_engine::proto::control::Reason { reason: "no more".into() };
        say(&mut hand.control, Control::Abort(reason));
    });
    assert!(received.unwrap_err().to_string().contains("no more"));
}
