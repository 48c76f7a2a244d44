//! Destinations that do not keep to the protocol, or give up.

use std::thread;
use std::time::{Duration, Instant};

use whimbrel_engine::proto::control::{Control, Fits, Ready, Reason, Running};
use whimbrel_engine::proto::message::Message;

use crate::support::engine::{Error, Outcome};
use crate::support::peer::{Peer, accept};
use crate::support::wire::{kind, preamble};
use crate::support::{Rig, Shape};

fn control(control: Control) -> Message<'static> {
    Message::Control(control)
}

/// Plays along until the source has asked this, then does `deviation`, and hears until the source has had enough.
fn deviate(mut peer: Peer, at: Point, deviation: &Deviation) {
    while let Some((asked, payload)) = peer.hear() {
        let Some(point) = POINTS.into_iter().find(|point| point.question() == asked) else { continue };
        if point == at {
            deviation.of(&mut peer);
            while peer.hear().is_some() {}
            return;
        }
        let number = payload.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)).unwrap_or_default();
        peer.say(&point.answer(number));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    Greeting,
    Table,
    Round,
    Ping,
    End,
    Handover,
}

const POINTS: [Point; 6] =
    [Point::Greeting, Point::Table, Point::Round, Point::Ping, Point::End, Point::Handover];

impl Point {
    fn question(self) -> u16 {
        match self {
            Point::Greeting => kind::HELLO,
            Point::Table => kind::TABLE,
            Point::Round => kind::ROUND,
            Point::Ping => kind::PING,
            Point::End => kind::END,
            Point::Handover => kind::HANDOVER,
        }
    }

    fn answer(self, number: u32) -> Message<'static> {
        match self {
            Point::Greeting => accept(),
            Point::Table => control(Control::Fits(Fits::default())),
            Point::Round => control(Control::RoundDone { number }),
            Point::Ping => control(Control::Pong { id: number }),
            Point::End => control(Control::Ready(Ready { loading_us: u64::MAX, inspection_us: u64::MAX })),
            Point::Handover => control(Control::Running(Running { start_us: u64::MAX })),
        }
    }
}

#[derive(Clone, Debug)]
enum Deviation {
    Say(Message<'static>),
    SayTwice(Message<'static>),
    Garbage,
    /// One byte after the other, so that there is always a sign of life.
    Drip,
    Silence,
}

impl Deviation {
    fn of(&self, peer: &mut Peer) {
        match self {
            Deviation::Say(message) => _ = peer.say(message),
            Deviation::SayTwice(message) => {
                peer.say(message);
                peer.say(message);
            }
            Deviation::Garbage => _ = peer.raw(&[0x5a; 100]),
            Deviation::Drip => {
                for byte in [0x5a; 24].into_iter().chain(preamble(2, 0)).chain([0; 100]) {
                    if !peer.raw(&[byte]) {
                        break;
                    }
                    thread::sleep(Duration::from_millis(40));
                }
            }
            Deviation::Silence => {}
        }
    }
}

/// Sends to such a peer; gives the error and checks where the device is.
fn send(at: Point, deviation: Deviation, timeout: Duration) -> Error {
    let what = format!("{deviation:?} at {at:?}");
    let mut rig = Rig::new(&Shape::default())
        .with_memory(&[(0, 0x4000)])
        .with_timeouts(timeout, Duration::from_secs(10));
    if timeout < PATIENT {
        rig.options = rig.options.budget(Duration::from_secs(2));
    }
    let (peer, link) = Peer::new();
    let is_failed = matches!(deviation, Deviation::Say(Message::Control(Control::Failed(_))));
    let peer = thread::spawn(move || deviate(peer, at, &deviation));
    let error = rig.send_to(link).expect_err(&what);
    peer.join().unwrap();
    match error.outcome {
        Outcome::Unknown => {
            assert!(at == Point::Handover && !is_failed, "{what}: {error}");
            rig.assert_source_stands(&what);
        }
        Outcome::RunsOn | Outcome::Untouched => {
            let is_early = matches!(at, Point::Greeting | Point::Table);
            assert_eq!(matches!(error.outcome, Outcome::Untouched), is_early, "{what}: {error}");
            assert!(at != Point::Handover || is_failed, "{what}: {error}");
            rig.assert_source_runs(&what);
        }
        Outcome::RunsOnAfterReset { .. } | Outcome::Stranded(_) => panic!("{what}: {error}"),
    }
    error.cause
}

const PATIENT: Duration = Duration::from_secs(20);

#[test]
fn an_answer_to_another_question_ends_the_migration() {
    for point in POINTS {
        let others = POINTS.into_iter().filter(|other| *other != point).map(|other| other.answer(1));
        // RUNNING settles the outcome wherever it comes: a destination that lies about it has its own test.
        let running = Point::Handover.answer(0);
        for answer in others.chain([control(Control::Handover)]).filter(|answer| *answer != running) {
            let what = format!("{answer:?} at {point:?}");
            let error = send(point, Deviation::Say(answer), PATIENT);
            assert!(
                matches!(&error, Error::Protocol(why) if why.contains("from the destination")),
                "{what}: {error}"
            );
        }
    }
}

#[test]
fn a_destination_that_says_it_runs_devices_it_was_not_given_is_not_believed() {
    for point in [Point::Greeting, Point::Table, Point::Round, Point::Ping, Point::End] {
        let error = send(point, Deviation::Say(Point::Handover.answer(0)), PATIENT);
        assert!(matches!(error, Error::Protocol(_)), "{point:?}: {error}");
    }
}

#[test]
fn a_round_or_a_ping_confirmed_by_another_number_ends_the_migration() {
    for number in [0, 2, u32::MAX] {
        let error = send(Point::Round, Deviation::Say(Point::Round.answer(number)), PATIENT);
        assert!(error.to_string().contains("unexpected ROUND_DONE from the destination"), "{error}");
        let error = send(Point::Ping, Deviation::Say(Point::Ping.answer(number)), PATIENT);
        assert!(error.to_string().contains("unexpected PONG from the destination"), "{error}");
    }
}

#[test]
fn an_answer_given_twice_ends_the_migration_and_no_second_handover_follows() {
    for point in POINTS.into_iter().take(5) {
        let (peer, link) = Peer::new();
        let mut rig = Rig::new(&Shape::default());
        let doubled = Deviation::SayTwice(point.answer(1));
        let peer = thread::spawn(move || deviate(peer, point, &doubled));
        let error = rig.send_to(link).expect_err("an answer too many");
        peer.join().unwrap();
        assert!(matches!(error.cause, Error::Protocol(_)), "{point:?}: {error}");
        match (point, &error.outcome) {
            // The handover may have been sent before the second READY was read.
            (Point::End, Outcome::Unknown) => rig.assert_source_stands("doubled READY"),
            (_, Outcome::RunsOn | Outcome::Untouched) => rig.assert_source_runs("doubled answer"),
            (_, outcome) => panic!("{point:?}: {outcome:?}"),
        }
    }
}

#[test]
fn garbage_at_any_point_ends_the_migration() {
    for point in POINTS {
        let error = send(point, Deviation::Garbage, PATIENT);
        assert!(matches!(error, Error::Malformed(_)), "{point:?}: {error}");
    }
}

#[test]
fn silence_at_any_point_ends_the_migration_once_the_time_is_up() {
    for point in POINTS {
        let started = Instant::now();
        let error = send(point, Deviation::Silence, Duration::from_millis(200)).to_string();
        let expected = "timed out: no data to or from the destination for 200 ms";
        assert!(error.starts_with(expected), "{point:?}: {error}");
        assert!(started.elapsed() < Duration::from_secs(5), "{point:?}");
    }
}

#[test]
fn an_answer_that_comes_byte_by_byte_does_not_hold_the_source_past_its_time() {
    for point in POINTS {
        let started = Instant::now();
        send(point, Deviation::Drip, Duration::from_millis(200));
        // All its bytes would take more than five seconds.
        assert!(started.elapsed() < Duration::from_secs(4), "{point:?}: it went on while bytes came");
    }
}

#[test]
fn a_reason_given_at_any_point_reaches_the_source() {
    for point in POINTS {
        let reason = control(Control::Failed(Reason { reason: "the rack is on fire".into() }));
        let error = send(point, Deviation::Say(reason), PATIENT).to_string();
        assert_eq!(error, "the destination ended the migration: the rack is on fire", "{point:?}");
    }
}

/// A destination that gives up while a lot is being sent, and does not take the rest.
#[test]
fn a_reason_given_in_the_middle_of_a_round_is_heard_before_the_round_ends() {
    for reads_on in [true, false] {
        let shape = Shape { initial: 64 << 20, ..Shape::default() };
        let mut rig = Rig::new(&shape);
        let (mut peer, link) = Peer::new();
        let peer = thread::spawn(move || {
            peer.hear_until(kind::HELLO).unwrap();
            peer.say(&accept());
            peer.hear_until(kind::TABLE).unwrap();
            peer.say(&Point::Table.answer(0));
            peer.hear_until(kind::DEVICE_STATE).unwrap();
            peer.say(&control(Control::Failed(Reason { reason: "no room left".into() })));
            let mut rounds = 0;
            while reads_on && let Some((found, _)) = peer.hear() {
                rounds += usize::from(found == kind::ROUND);
            }
            rounds
        });
        let error = rig.send_to(link).unwrap_err();
        assert!(error.to_string().contains("the destination ended the migration: no room left"), "{error}");
        assert_eq!(peer.join().unwrap(), 0, "the round was carried to its end for nothing");
        rig.assert_source_runs("given up in the middle");
    }
}

#[test]
fn a_destination_that_takes_nothing_any_more_is_given_up_in_time() {
    let shape = Shape { initial: 16 << 20, ..Shape::default() };
    let timeout = Duration::from_secs(4);
    let mut rig = Rig::new(&shape).with_timeouts(timeout, timeout * 2);
    let (mut peer, link) = Peer::new();
    peer.say(&accept());
    let stopped = thread::spawn(move || {
        peer.hear_until(kind::TABLE).unwrap();
        peer.say(&Point::Table.answer(0));
        (Instant::now(), peer)
    });
    let error = rig.send_to(link).unwrap_err().to_string();
    let (since, peer) = stopped.join().unwrap();
    let took = since.elapsed();
    assert!(error.starts_with("timed out: no data to or from the destination for 4000 ms"), "{error}");
    // Not twice as long: a frame that waits is not waited for again.
    assert!(took < timeout * 2, "{took:?}: {error}");
    rig.assert_source_runs("nothing is taken");
    drop(peer);
}

#[test]
fn a_peer_that_is_no_whimbrel_is_called_so() {
    let (mut peer, link) = Peer::new();
    peer.raw(b"220 mail.example ESMTP ready\r\n");
    let error = Rig::new(&Shape::default()).send_to(link).unwrap_err().to_string();
    assert!(error.contains("not a whimbrel stream"), "{error}");
}

#[test]
fn a_destination_that_leaves_out_all_that_is_optional_takes_the_devices_over() {
    let mut rig = Rig::new(&Shape::default());
    let (mut peer, link) = Peer::new();
    let peer = thread::spawn(move || {
        while let Some((asked, number)) = peer.hear() {
            let (kind, answer) = match asked {
                kind::HELLO => (kind::ACCEPT, &br#"{"version": 2}"#[..]),
                kind::TABLE => (kind::FITS, &b"{}"[..]),
                kind::ROUND => (kind::ROUND_DONE, &number[..]),
                kind::END => (kind::READY, &b"{}"[..]),
                kind::HANDOVER => (kind::RUNNING, &b"{}"[..]),
                _ => continue,
            };
            peer.frame(kind, answer);
        }
    });
    let report = rig.send_to(link).unwrap();
    peer.join().unwrap();
    assert_eq!((report.loading_ms, report.inspection_ms, report.start_ms), (0.0, 0.0, 0.0), "{report:?}");
    rig.assert_source_stands("it has been taken over");
}

#[test]
fn absurd_figures_from_the_destination_do_not_enter_the_report() {
    let mut rig = Rig::new(&Shape::default());
    let (peer, link) = Peer::new();
    let last = Deviation::Say(Point::Handover.answer(0));
    // It says that it loaded, inspected and started for 2^64 - 1 microseconds each.
    let peer = thread::spawn(move || deviate(peer, Point::Handover, &last));
    let report = rig.send_to(link).unwrap();
    peer.join().unwrap();
    let parts = report.inspection_ms + report.loading_ms + report.start_ms;
    assert!(parts <= report.downtime_ms, "{report:?}");
    assert!(report.downtime_ms >= 0.0 && report.downtime_ms <= report.total_ms, "{report:?}");
}
