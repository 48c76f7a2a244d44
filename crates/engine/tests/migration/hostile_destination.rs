//! Destinations that do not keep to the protocol, or give up.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use whimbrel_engine::stream::{Message, Reader, Ready, Reason, Running, StreamError, Writer};
use whimbrel_engine::{Error, Link, Outcome};

use crate::support::{Rig, Shape};

/// A destination by hand.
struct Peer {
    reader: Reader<Link>,
    writer: Writer<Link>,
    raw: Link,
}

impl Peer {
    fn new(link: Link) -> Peer {
        link.set_timeout(Some(Duration::from_secs(20))).unwrap();
        let (reader, raw) = (Reader::new(link.try_clone().unwrap()), link.try_clone().unwrap());
        Peer { reader, writer: Writer::new(link), raw }
    }

    fn say(&mut self, message: &Message<'_>) {
        // The source may have gone already.
        let _ = self.writer.send(message).and_then(|()| self.writer.flush());
    }

    /// Plays along until the source has asked so many times, then does `deviation`.
    fn deviate(mut self, at: Point, deviation: &Deviation) {
        if self.reader.preamble().is_err() {
            return;
        }
        loop {
            let asked = match self.reader.next_message() {
                Ok(Message::Hello(_)) => Point::Greeting,
                Ok(Message::Round { number: 1 }) => Point::Round,
                Ok(Message::End { .. }) => Point::End,
                Ok(Message::Handover) => Point::Handover,
                Ok(_) => continue,
                Err(_) => return,
            };
            if asked == at {
                break self.do_it(deviation);
            }
            let play_along = match asked {
                Point::Greeting => Message::Accept,
                Point::Round => Message::RoundDone { number: 1 },
                Point::End => Message::Ready(Ready { inspection_us: u64::MAX }),
                Point::Handover => Message::Running(Running {}),
            };
            self.say(&play_along);
        }
        // Until the source has had enough.
        while self.reader.next_message().is_ok() {}
    }

    fn do_it(&mut self, deviation: &Deviation) {
        match deviation {
            Deviation::Say(message) => self.say(message),
            Deviation::SayTwice(message) => {
                self.say(message);
                self.say(message);
            }
            Deviation::Garbage => {
                let _ = self.raw.write_all(&[0x5a; 100]);
            }
            Deviation::Drip => {
                let mut frame = Vec::new();
                Writer::new(&mut frame).flush().unwrap();
                frame.extend([0; 100]);
                for byte in frame {
                    if self.raw.write_all(&[byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(40));
                }
            }
            Deviation::Silence => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    Greeting,
    Round,
    End,
    Handover,
}

const POINTS: [Point; 4] = [Point::Greeting, Point::Round, Point::End, Point::Handover];

#[derive(Debug)]
enum Deviation {
    Say(Message<'static>),
    SayTwice(Message<'static>),
    Garbage,
    /// One byte after the other, so that there is always a sign of life.
    Drip,
    Silence,
}

/// Sends to such a peer; gives the error and checks where the device is.
fn send(at: Point, deviation: Deviation, timeout: Duration) -> Error {
    let what = format!("{deviation:?} at {at:?}");
    let mut rig = Rig::new(&Shape::default()).with_memory(&[(0, 0x4000)]);
    rig.options.timeout = timeout;
    let (left, right) = UnixStream::pair().unwrap();
    let is_failed = matches!(deviation, Deviation::Say(Message::Failed(_)));
    let peer = thread::spawn(move || Peer::new(right.into()).deviate(at, &deviation));
    let error = rig.send_to(left.into()).expect_err(&what);
    peer.join().unwrap();
    match error.outcome {
        Outcome::Unknown => {
            assert!(at == Point::Handover && !is_failed, "{what}: {error}");
            rig.assert_source_stands(&what);
        }
        Outcome::RunsOn => {
            assert!(at != Point::Handover || is_failed, "{what}: {error}");
            rig.assert_source_runs(&what);
        }
        Outcome::Untouched | Outcome::Stranded(_) => panic!("{what}: {error}"),
    }
    error.cause
}

const PATIENT: Duration = Duration::from_secs(20);

fn every_answer() -> [Message<'static>; 5] {
    [
        Message::Accept,
        Message::RoundDone { number: 1 },
        Message::Ready(Ready { inspection_us: 0 }),
        Message::Running(Running {}),
        Message::Handover,
    ]
}

#[test]
fn an_answer_to_another_question_ends_the_migration() {
    for (point, right) in POINTS.into_iter().zip(every_answer()) {
        for answer in every_answer().into_iter().filter(|answer| *answer != right) {
            let what = format!("{answer:?} at {point:?}");
            let error = send(point, Deviation::Say(answer), PATIENT);
            assert!(
                matches!(&error, Error::Protocol(why) if why.contains("the destination")),
                "{what}: {error}"
            );
        }
    }
}

#[test]
fn a_round_confirmed_by_another_number_ends_the_migration() {
    for number in [0, 2, u32::MAX] {
        let error = send(Point::Round, Deviation::Say(Message::RoundDone { number }), PATIENT);
        assert!(error.to_string().contains(&format!("RoundDone({number})")), "{error}");
    }
}

#[test]
fn an_answer_given_twice_ends_the_migration_and_no_second_handover_follows() {
    for (point, answer) in POINTS.into_iter().zip(every_answer()).take(3) {
        let (left, right) = UnixStream::pair().unwrap();
        let mut rig = Rig::new(&Shape::default());
        rig.options.timeout = PATIENT;
        let doubled = Deviation::SayTwice(answer);
        let peer = thread::spawn(move || Peer::new(right.into()).deviate(point, &doubled));
        let error = rig.send_to(left.into()).expect_err("an answer too many");
        peer.join().unwrap();
        assert!(matches!(error.cause, Error::Protocol(_)), "{point:?}: {error}");
        match point {
            // READY twice: the first one was answered by the handover.
            Point::End => rig.assert_source_stands("doubled READY"),
            _ => rig.assert_source_runs("doubled answer"),
        }
    }
}

#[test]
fn garbage_at_any_point_ends_the_migration() {
    for point in POINTS {
        let error = send(point, Deviation::Garbage, PATIENT);
        assert!(matches!(error, Error::Stream(StreamError { .. })), "{point:?}: {error}");
    }
}

#[test]
fn silence_at_any_point_ends_the_migration_once_the_time_is_up() {
    for point in POINTS {
        let error = send(point, Deviation::Silence, Duration::from_millis(200)).to_string();
        assert_eq!(error, "the destination gave no sign of life for 200 ms", "{point:?}");
    }
}

#[test]
fn an_answer_that_comes_byte_by_byte_does_not_hold_the_source_past_its_time() {
    for point in POINTS {
        let started = std::time::Instant::now();
        send(point, Deviation::Drip, Duration::from_millis(200));
        // All its bytes would take more than four seconds.
        assert!(started.elapsed() < Duration::from_secs(4), "{point:?}: it went on while bytes came");
    }
}

#[test]
fn a_reason_given_at_any_point_reaches_the_source() {
    for point in POINTS {
        let reason = Reason { reason: "the rack is on fire".into() };
        let error = send(point, Deviation::Say(Message::Failed(reason)), PATIENT).to_string();
        assert_eq!(error, "the destination ended the migration: the rack is on fire", "{point:?}");
    }
}

/// A destination that gives up while a lot is being sent, and does not take the rest.
#[test]
fn a_reason_given_in_the_middle_of_a_round_is_heard_before_the_round_ends() {
    for reads_on in [true, false] {
        let shape = Shape { initial: 64 << 20, ..Shape::default() };
        let mut rig = Rig::new(&shape);
        let (left, right) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            let mut peer = Peer::new(right.into());
            peer.reader.preamble().unwrap();
            assert!(matches!(peer.reader.next_message(), Ok(Message::Hello(_))));
            peer.say(&Message::Accept);
            assert!(matches!(peer.reader.next_message(), Ok(Message::DeviceState { .. })));
            peer.say(&Message::Failed(Reason { reason: "no room left".into() }));
            let mut rounds = 0;
            while reads_on && let Ok(message) = peer.reader.next_message() {
                rounds += usize::from(matches!(message, Message::Round { .. }));
            }
            rounds
        });
        let error = rig.send_to(left.into()).unwrap_err();
        assert!(error.to_string().contains("the destination ended the migration: no room left"), "{error}");
        assert_eq!(peer.join().unwrap(), 0, "the round was carried to its end for nothing");
        rig.assert_source_runs("given up in the middle");
    }
}

#[test]
fn a_destination_that_takes_nothing_any_more_is_given_up() {
    let mut rig = Rig::new(&Shape { initial: 64 << 20, ..Shape::default() });
    rig.options.timeout = Duration::from_millis(200);
    let (left, right) = UnixStream::pair().unwrap();
    let mut peer = Peer::new(right.into());
    peer.say(&Message::Accept);
    let error = rig.send_to(left.into()).unwrap_err().to_string();
    assert!(error.starts_with("the destination gave no sign of life for 200 ms"), "{error}");
    rig.assert_source_runs("nothing is taken");
    drop(peer);
}

#[test]
fn a_peer_that_is_no_whimbrel_is_called_so() {
    let (left, mut right) = UnixStream::pair().unwrap();
    right.write_all(b"220 mail.example ESMTP ready\r\n").unwrap();
    let error = Rig::new(&Shape::default()).send_to(left.into()).unwrap_err().to_string();
    assert!(error.contains("this is not a whimbrel stream"), "{error}");
}

#[test]
fn absurd_figures_from_the_destination_do_not_enter_the_report() {
    let mut rig = Rig::new(&Shape::default());
    let (left, right) = UnixStream::pair().unwrap();
    let peer = thread::spawn(move || {
        // It says that it inspected for 2^64 - 1 microseconds.
        Peer::new(right.into()).deviate(Point::Handover, &Deviation::Say(Message::Running(Running {})));
    });
    let report = rig.send_to(left.into()).unwrap();
    drop(rig);
    peer.join().unwrap();
    assert!(report.inspection_ms <= report.total_ms, "{report:?}");
    assert!(report.downtime_ms >= 0.0 && report.downtime_ms <= report.total_ms, "{report:?}");
}
