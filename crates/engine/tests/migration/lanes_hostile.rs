//! Sources that send anything at all on several connections.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use whimbrel_engine::channel::{Address, Listener};
use whimbrel_engine::proto::control::{Control, Table};
use whimbrel_engine::proto::join::{Join, Purpose, Secret};
use whimbrel_engine::proto::lanes::STRIPE;
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Accept, Feature, Offer};

use crate::support::engine::{Error, Received};
use crate::support::peer::{ID, Peer, table};
use crate::support::wire::kind;
use crate::support::{Rig, Shape};

/// A source by hand: its control connection, and two lanes that have joined.
struct Lanes {
    control: Peer,
    one: Peer,
    two: Peer,
    secret: Secret,
    address: std::path::PathBuf,
}

impl Lanes {
    fn peer(&self) -> Peer {
        Peer::from(UnixStream::connect(&self.address).unwrap())
    }

    /// Opens a further connection, and returns it with the kind of the answer.
    fn join(&self, lane: u32) -> (Peer, Option<u16>) {
        let mut peer = self.peer();
        peer.say(&Message::Control(Control::Join(Join::new(ID, self.secret, Purpose::lane(lane)))));
        let answer = peer.hear().map(|(kind, _)| kind);
        (peer, answer)
    }
}

const MEMORY: u64 = 4 * STRIPE;
/// The state of the test's device: four bytes, 1 to 4.
const IMAGE: [u8; 10] = [0xcc, 4, 0, 0, 0, 1, 2, 3, 4, 66];
/// The number of JOINED.
const JOINED: u16 = 65;

/// Lets a source by hand send something to a destination, and then end all its connections. Checks that what the destination
/// says of its device is true.
fn receive(source: impl FnOnce(&mut Lanes) + Send) -> Result<Received, Error> {
    receive_within(Duration::from_secs(30), source)
}

/// As [`receive`], by a destination that waits for a frame no longer than this.
fn receive_within(timeout: Duration, source: impl FnOnce(&mut Lanes) + Send) -> Result<Received, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door");
    let mut listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
    let mut rig = Rig::new(&Shape { size: 4, ..Shape::default() }).with_memory(&[(0, MEMORY as usize)]);
    rig.there_options = rig.there_options.timeout(timeout);
    let received = thread::scope(|scope| {
        scope.spawn(move || {
            let mut control = Peer::from(UnixStream::connect(&path).unwrap());
            let features = Feature::ALL.into_iter().collect();
            let offer = Offer::new(ID, &features, &features).with_channels(3);
            control.say(&Message::Control(Control::Hello(offer)));
            let accept = control.hear_until(kind::ACCEPT).unwrap();
            let accept: Accept = serde_json::from_slice(&accept).unwrap();
            assert_eq!(accept.channels, Some(3));
            control.say(&Message::Control(Control::Table(Table { ..table(MEMORY) })));
            control.hear_until(kind::FITS).unwrap();
            let (one, two) = (Peer::from(unconnected()), Peer::from(unconnected()));
            let secret = accept.secret.unwrap();
            let mut lanes = Lanes { control, one, two, secret, address: path };
            source(&mut lanes);
            let Lanes { control, one, two, .. } = lanes;
            control.finish();
            drop((one, two));
        });
        rig.listen(&mut listener)
    });
    match &received {
        Ok(_) => assert_eq!(rig.there.state(), whimbrel_user::State::Running),
        Err(error) => rig.assert_destination_is_fresh(&error.to_string()),
    }
    received
}

fn unconnected() -> UnixStream {
    UnixStream::pair().unwrap().0
}

/// Opens both lanes.
fn open(lanes: &mut Lanes) {
    for lane in [1, 2] {
        let (peer, answer) = lanes.join(lane);
        assert_eq!(answer, Some(JOINED));
        *(if lane == 1 { &mut lanes.one } else { &mut lanes.two }) = peer;
    }
}

fn control(control: Control) -> Message<'static> {
    Message::Control(control)
}

fn round(number: u32) -> Message<'static> {
    control(Control::Round { number, initial: true })
}

fn mark(number: u32) -> Message<'static> {
    control(Control::Mark { number })
}

fn memory(address: u64) -> Message<'static> {
    Message::Memory { address, data: b"memory" }
}

fn device_end() -> Message<'static> {
    control(Control::DeviceEnd { device: 0, bytes: 10 })
}

fn state() -> Message<'static> {
    Message::DeviceState { device: 0, ends: false, data: &IMAGE }
}

/// The destination may have gone already.
fn ignore(_: bool) {}

#[test]
fn the_shortest_dialogue_with_lanes_is_a_migration() {
    let received = receive(|lanes| {
        open(lanes);
        lanes.one.say(&memory(STRIPE));
        lanes.one.say(&mark(1));
        lanes.control.say(&round(1));
        lanes.two.say(&memory(2 * STRIPE));
        lanes.two.say(&mark(1));
        lanes.control.hear_until(kind::ROUND_DONE).unwrap();
        lanes.control.say(&state());
        lanes.control.say(&memory(0));
        for message in [device_end(), control(Control::End { memory_bytes: 18 })] {
            lanes.control.say(&message);
        }
        lanes.two.say(&mark(2));
        lanes.one.say(&mark(2));
        lanes.control.hear_until(kind::READY).unwrap();
        lanes.control.say(&control(Control::Handover));
        lanes.control.hear_until(kind::RUNNING).unwrap();
    });
    let received = received.unwrap();
    assert_eq!((received.memory_bytes, received.lane_bytes), (18, vec![16, 6, 6]));
}

#[test]
fn whatever_is_out_of_place_on_a_lane_is_refused_and_leaves_the_device_fresh() {
    /// What a source does that has opened both lanes.
    type Does = fn(&mut Lanes);
    let cases: [(&str, Does); 13] = [
        ("6 bytes of memory at 0x0 on lane 1", |lanes| ignore(lanes.one.say(&memory(0)))),
        ("6 bytes of memory at 0x400000 on lane 1", |lanes| ignore(lanes.one.say(&memory(2 * STRIPE)))),
        ("memory at 0x1ffffe on lane 0", |lanes| ignore(lanes.control.say(&memory(STRIPE - 2)))),
        ("DEVICE_STATE of device 0 on lane 2", |lanes| ignore(lanes.two.say(&state()))),
        ("SETUP of device 0 on lane 1", |lanes| {
            lanes.one.say(&Message::Setup { device: 0, data: b"x" });
        }),
        ("ROUND on lane 1", |lanes| ignore(lanes.one.say(&round(1)))),
        ("HELLO on lane 1", |lanes| {
            let offer = Offer::new(ID, &[].into(), &[].into());
            lanes.one.say(&control(Control::Hello(offer)));
        }),
        ("mark 2 on lane 1, which has reached mark 0", |lanes| ignore(lanes.one.say(&mark(2)))),
        ("MARK on lane 0", |lanes| ignore(lanes.control.say(&mark(1)))),
        ("MEMORY before the lanes have reached the mark of ROUND", |lanes| {
            lanes.control.say(&round(1));
            lanes.control.say(&memory(0));
        }),
        ("END before the DEVICE_END", |lanes| {
            lanes.control.say(&control(Control::End { memory_bytes: 0 }));
            lanes.one.say(&mark(1));
            lanes.two.say(&mark(1));
        }),
        ("MEMORY on lane 1 after its last mark", |lanes| {
            lanes.one.say(&mark(1));
            lanes.two.say(&mark(1));
            lanes.control.say(&state());
            lanes.control.say(&device_end());
            lanes.one.say(&memory(STRIPE));
        }),
        ("after its last mark", |lanes| {
            lanes.control.say(&state());
            lanes.control.say(&device_end());
            lanes.control.say(&control(Control::End { memory_bytes: 0 }));
            for _ in 0..2 {
                lanes.one.say(&mark(1));
                lanes.two.say(&mark(1));
            }
        }),
    ];
    for (why, does) in cases {
        let mut told = None;
        let error = receive(|lanes| {
            open(lanes);
            does(lanes);
            told = lanes.control.hear_until(kind::FAILED);
        })
        .expect_err(why);
        assert!(error.to_string().contains(why), "{why}: {error}");
        let told = told.unwrap_or_else(|| panic!("{why}: it is told"));
        assert!(String::from_utf8_lossy(&told).contains(why), "{why}");
    }
}

#[test]
fn a_lane_that_does_not_come_or_reach_its_mark_is_not_waited_for_longer_than_for_any_frame() {
    /// What a source does, and then waits.
    type Does = fn(&mut Lanes);
    let cases: [(&str, Does); 4] = [
        ("never joins", |lanes| ignore(lanes.control.say(&round(1)))),
        ("one never joins", |lanes| {
            (lanes.one, _) = lanes.join(1);
            lanes.one.say(&mark(1));
            lanes.control.say(&round(1));
        }),
        ("has no mark", |lanes| {
            open(lanes);
            lanes.one.say(&mark(1));
            lanes.control.say(&round(1));
        }),
        ("ends without marks", |lanes| {
            open(lanes);
            lanes.control.say(&state());
            lanes.control.say(&device_end());
            lanes.control.say(&control(Control::End { memory_bytes: 0 }));
        }),
    ];
    for (what, does) in cases {
        let error = receive_within(Duration::from_secs(1), |lanes| {
            does(lanes);
            assert!(lanes.control.hear_until(kind::FAILED).is_some(), "{what}: it is told");
        })
        .expect_err(what);
        assert!(matches!(error, Error::Silent { .. }), "{what}: {error}");
    }
}

#[test]
fn a_source_is_heard_when_it_aborts_while_a_lane_lags() {
    let error = receive(|lanes| {
        open(lanes);
        lanes.control.say(&round(1));
        let reason = whimbrel_engine::proto::control::Reason { reason: "no more".into() };
        lanes.control.say(&control(Control::Abort(reason)));
    })
    .unwrap_err();
    assert!(error.to_string().contains("no more"), "{error}");
}

#[test]
fn a_lane_that_ends_before_its_last_mark_ends_the_migration() {
    let error = receive(|lanes| {
        open(lanes);
        lanes.one = Peer::from(unconnected());
        // Until the destination has closed the connection.
        while lanes.control.hear().is_some() {}
    })
    .unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
}

#[test]
fn no_connection_but_those_expected_joins() {
    let received = receive(|lanes| {
        open(lanes);
        for lane in [0, 1, 2, 3, u32::MAX] {
            assert_eq!(lanes.join(lane).1, Some(kind::FAILED), "{lane}");
        }
        let mut stranger = lanes.peer();
        let join = Join::new(ID, Secret::new([1; 32]), Purpose::lane(1));
        stranger.say(&control(Control::Join(join)));
        assert_eq!(stranger.hear().unwrap().0, kind::FAILED);
        let mut other = lanes.peer();
        other.say(&crate::support::peer::hello());
        assert_eq!(other.hear().unwrap().0, kind::FAILED);
    });
    assert!(matches!(received, Err(Error::Lost { .. })), "{received:?}");
}
