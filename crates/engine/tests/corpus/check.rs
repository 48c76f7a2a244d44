//! Both sides of a check, each with an other side that says whatever it likes: the rules of `proto::check` behind a
//! [`Receiver`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_engine::BlobName;
use whimbrel_engine::RamRegion;
use whimbrel_engine::channel::{Received, Receiver, Until};
use whimbrel_engine::proto::check::{
    Answering, Ask, Asked, Asking, Code, End, Finding, Heard, MAX_BYTES, MAX_QUESTIONS,
};
use whimbrel_engine::proto::control::{Control, Table};
use whimbrel_engine::proto::frame::{CHUNK, Kind, MAX_CONTROL};
use whimbrel_engine::proto::greeting::{Answers, Terms};
use whimbrel_engine::proto::identity::DeviceIdentity;
use whimbrel_engine::proto::message::{MAX_MISMATCHES, Message};
use whimbrel_engine::proto::negotiate::Feature;
use whimbrel_engine::proto::table;

use super::stream::{Bytes, sealed};

/// The most that a source pads.
const MAX_PADDING: u64 = 32 << 20;

/// Lets the other side of a check send this stream, and one with the same frames whose checksums are right.
pub(crate) fn run(bytes: &[u8]) {
    for stream in [bytes.to_vec(), sealed(bytes)] {
        ask(stream.clone(), |_| {});
        answer(stream, |_| {});
    }
}

/// The devices of one side.
pub(crate) fn table_of(name: &str) -> Table {
    let device = |number, migration_flags| DeviceIdentity {
        name: format!("{name} {number}"),
        migration_flags,
        ..DeviceIdentity::default()
    };
    Table {
        devices: vec![device(0, 7), device(1, 1)],
        memory: vec![RamRegion::new(0, 0x4000)],
        blobs: vec![BlobName { name: "cpu".into(), version: 2 }],
    }
}

/// The next message of a stream.
enum Said {
    Control(Control),
    Padding,
    Data(&'static str),
}

fn next(receiver: &mut Receiver) -> Option<Said> {
    match receiver.next(Until::timeout(Duration::from_mins(1))) {
        Ok(Received::Message(Message::Control(control))) => Some(Said::Control(control)),
        Ok(Received::Message(Message::Padding { .. })) => Some(Said::Padding),
        Ok(Received::Message(other)) => Some(Said::Data(other.kind().name())),
        Ok(Received::Memory(_)) => Some(Said::Data(Kind::Memory.name())),
        Err(_) => None,
    }
}

fn heard(said: &Said) -> Heard<'_> {
    match said {
        Said::Control(control) => Heard::Control(control),
        Said::Padding => Heard::Padding,
        Said::Data(name) => Heard::Other(name),
    }
}

/// Asks a destination that answers with this stream; `said` sees what is said to it. Checks what holds whatever it answers.
pub(crate) fn ask(stream: Vec<u8>, mut said: impl FnMut(&Control)) -> Asked {
    let mut receiver = Receiver::new(Arc::new(Bytes::new(stream)));
    let mut asking = Asking::new(7, &BTreeSet::from(Feature::ALL), table_of("here"));
    let (mut now, mut padding, mut steps) = (Duration::ZERO, 0, 0);
    while !asking.is_over() {
        steps += 1;
        assert!(steps < 1000, "it does not end: {asking:?}");
        now += Duration::from_millis(1);
        match asking.next(now) {
            Some(Ask::Say(control)) => said(&control),
            Some(Ask::Pad(bytes)) => {
                // On a link that is as slow as a round is long.
                now += Duration::from_millis(bytes / 64);
                padding += bytes;
                assert!(padding <= MAX_PADDING, "{padding} bytes of padding");
            }
            None if asking.is_over() => {}
            None => match next(&mut receiver) {
                Some(answer) => asking.hear(heard(&answer), now),
                None => asking.failed(Finding::new(Code::ConnectionLost, "it has ended")),
            },
        }
    }
    let asked = asking.asked();
    assert!(asked.setup.is_some() || !asked.found.is_empty(), "nothing is known, and nothing is wrong");
    assert!(asked.found.len() <= MAX_MISMATCHES + 2, "{} findings", asked.found.len());
    for finding in &asked.found {
        assert!(finding.text.chars().count() <= 1001, "a finding of {} bytes", finding.text.len());
        assert!(!finding.text.chars().any(char::is_control), "{:?}", finding.text);
    }
    if let Some(link) = asked.link {
        let speed = link.throughput_bytes_per_s.unwrap_or_default();
        assert!(asked.setup.is_some() && link.padding_bytes <= padding, "{link:?}");
        assert!(link.round_trip_ms <= link.longest_round_trip_ms && speed.is_finite() && speed >= 0.0);
    }
    asked
}

/// Answers a peer that sends this stream; `said` sees the answers. Checks what holds whatever it sends. Returns the end of its
/// check, if it has begun one.
pub(crate) fn answer(stream: Vec<u8>, mut said: impl FnMut(&Control)) -> Option<End> {
    let size = stream.len() as u64;
    let mut receiver = Receiver::new(Arc::new(Bytes::new(stream)));
    let answers = Answers { table: table_of("there"), setup: Duration::from_millis(3) };
    let terms = Terms { checks: Some(answers), ..Terms::default() };
    let Some(Said::Control(Control::Hello(offer))) = next(&mut receiver) else { return None };
    let features = terms.choose(&offer).ok()?;
    let accept = terms.accept(&offer, &features, None);
    let answers = terms.answers_for(&offer)?;
    assert!(accept.channels.is_none_or(|channels| channels == 1) && accept.reconnect_ms.is_none());
    said(&Control::Accept(accept));
    let Some(Said::Control(Control::Table(theirs))) = next(&mut receiver) else { return None };
    table::check(&theirs).ok()?;
    let (mut answering, checked) = Answering::begin(&theirs, answers, Duration::ZERO);
    assert_eq!(checked.setup_us, 3000);
    let message = Message::Control(Control::Checked(checked.clone()));
    let (payload, _) = message.payload();
    assert!(payload.len() <= MAX_CONTROL as usize, "an answer of {} bytes", payload.len());
    assert!(Message::parse(Kind::Checked, &payload).is_ok());
    said(&Control::Checked(checked));
    let (greeted, mut now, mut questions) = (receiver.bytes(), Duration::ZERO, 0);
    loop {
        now += Duration::from_micros(10);
        let since = receiver.bytes() - greeted;
        assert!(since <= size);
        if let Err(end) = answering.look(since, now) {
            return Some(end);
        }
        assert!(
            since <= MAX_BYTES + CHUNK as u64 && questions <= MAX_QUESTIONS,
            "{since} bytes, {questions}"
        );
        let Some(message) = next(&mut receiver) else { return Some(End::Left) };
        match answering.hear(heard(&message)) {
            Ok(Some(answer)) => {
                questions += 1;
                said(&answer);
            }
            Ok(None) => {}
            Err(end) => return Some(end),
        }
    }
}
