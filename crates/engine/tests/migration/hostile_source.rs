//! Sources that send anything at all.

use std::thread;

use proptest::prelude::*;
use whimbrel_engine::proto::control::{Control, Ready, Reason, Running, Table};
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::{Ram, RamRegion};

use crate::support::engine::{Error, Received};
use crate::support::peer::{Peer, hello, table};
use crate::support::wire::{crc32c, flagged, frame, preamble};
use crate::support::{Rig, Shape};

const MEMORY: usize = 0x4000;

fn rig() -> Rig {
    Rig::new(&Shape { size: 4, ..Shape::default() }).with_memory(&[(0, MEMORY)])
}

/// Lets a source by hand do something to a destination, and then end the stream. Checks that what the destination says
/// of its device is true.
fn receive(rig: &mut Rig, source: impl FnOnce(&mut Peer) + Send) -> Result<Received, Error> {
    let (mut peer, link) = Peer::new();
    let received = thread::scope(|scope| {
        scope.spawn(move || {
            source(&mut peer);
            peer.finish();
        });
        rig.receive_from(link)
    });
    match &received {
        Ok(_) => assert_eq!(rig.there.state(), whimbrel_user::State::Running),
        Err(error) => rig.assert_destination_is_fresh(&error.to_string()),
    }
    received
}

fn control(control: Control) -> Message<'static> {
    Message::Control(control)
}

fn round(number: u32) -> Message<'static> {
    control(Control::Round { number, initial: true })
}

fn device_end(device: u32, bytes: u64) -> Message<'static> {
    control(Control::DeviceEnd { device, bytes })
}

fn end(memory_bytes: u64) -> Message<'static> {
    control(Control::End { memory_bytes })
}

fn handover() -> Message<'static> {
    control(Control::Handover)
}

fn fitting() -> Message<'static> {
    control(Control::Table(table(MEMORY as u64)))
}

/// A state that the test's device takes: four bytes, 1 to 4.
fn image() -> [u8; 10] {
    let sum = [1u8, 2, 3, 4].iter().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
    [0xcc, 4, 0, 0, 0, 1, 2, 3, 4, sum]
}

#[test]
fn the_shortest_dialogue_is_a_migration() {
    let image = image();
    let mut rig = rig();
    let received = receive(&mut rig, |peer| {
        peer.tell(&[
            hello(),
            fitting(),
            Message::Memory { address: 0, data: b"memory" },
            Message::Padding { data: b"nothing" },
            round(1),
            control(Control::Ping { id: 77 }),
            Message::DeviceState { device: 0, ends: false, data: &image },
            device_end(0, 10),
            end(6),
            handover(),
        ]);
    });
    assert!(received.unwrap().confirmed);
    assert_eq!(rig.there.control().state(), [1, 2, 3, 4]);
}

#[test]
fn every_message_out_of_place_is_refused_and_leaves_the_device_fresh() {
    let image = image();
    let state = || Message::DeviceState { device: 0, ends: false, data: &image };
    let all = || device_end(0, 10);
    let reason = || Reason { reason: String::new() };
    // Each after HELLO and TABLE.
    let cases: Vec<(&str, Vec<Message<'_>>)> = vec![
        ("a second greeting", vec![hello()]),
        ("a second table", vec![fitting()]),
        ("round 0", vec![round(0)]),
        ("round 2 first", vec![round(2)]),
        ("round 1 twice", vec![round(1), round(1)]),
        ("another device", vec![Message::DeviceState { device: 1, ends: false, data: &image }]),
        ("the setup of another device", vec![Message::Setup { device: 1, data: b"x" }]),
        ("a blob that was not listed", vec![Message::Blob { name: "x", version: 0, last: true, data: b"x" }]),
        ("the end of another device", vec![device_end(1, 0)]),
        ("a wrong total", vec![state(), device_end(0, 9)]),
        ("an end before the device's", vec![end(0)]),
        ("state after its end", vec![state(), all(), state()]),
        ("two ends of state", vec![state(), all(), all()]),
        ("a round after the state's end", vec![state(), all(), round(1)]),
        ("a wrong total of memory", vec![state(), all(), end(1)]),
        ("memory after the end", vec![state(), all(), end(0), Message::Memory { address: 0, data: b"x" }]),
        ("a handover before the end", vec![handover()]),
        ("an answer", vec![control(Control::Ready(Ready::default()))]),
        ("RUNNING", vec![control(Control::Running(Running::default()))]),
        ("FAILED", vec![control(Control::Failed(reason()))]),
        ("the end again where HANDOVER belongs", vec![state(), all(), end(0), end(0)]),
    ];
    for (what, messages) in cases {
        let mut rig = rig();
        let error = receive(&mut rig, |peer| peer.tell(&[&[hello(), fitting()], &messages[..]].concat()))
            .expect_err(what);
        // The stream also ends too early: that must not be what was noticed.
        assert!(matches!(error, Error::Protocol(_)), "{what}: {error}");
    }
}

#[test]
fn nothing_but_a_greeting_and_a_table_is_taken_before_the_answer_to_them() {
    let cases: Vec<(&str, Vec<Message<'_>>)> = vec![
        ("state first", vec![Message::DeviceState { device: 0, ends: false, data: b"x" }]),
        ("a table first", vec![fitting()]),
        ("an answer first", vec![crate::support::peer::accept()]),
        ("memory after the greeting", vec![hello(), Message::Memory { address: 0, data: b"x" }]),
        ("zeros after the greeting", vec![hello(), Message::MemoryZero { address: 0, length: 1 }]),
        ("padding after the greeting", vec![hello(), Message::Padding { data: b"x" }]),
        ("a round after the greeting", vec![hello(), round(1)]),
        ("a handover after the greeting", vec![hello(), handover()]),
    ];
    for (what, messages) in cases {
        let mut rig = rig();
        let error = receive(&mut rig, |peer| peer.tell(&messages)).expect_err(what);
        assert!(matches!(error, Error::Protocol(_)), "{what}: {error}");
        assert!(rig.there.control().requests().is_empty(), "{what}: the device was asked");
    }
}

#[test]
fn a_source_that_waits_for_no_answer_is_refused_and_told() {
    let image = image();
    let mut rig = rig();
    let reason = std::sync::Mutex::new(None);
    let error = receive(&mut rig, |peer| {
        for message in [
            hello(),
            fitting(),
            Message::DeviceState { device: 0, ends: false, data: &image },
            device_end(0, 10),
            end(0),
            handover(),
        ] {
            peer.say(&message);
        }
        *reason.lock().unwrap() = peer.hear_until(crate::support::wire::kind::FAILED);
    })
    .unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    assert!(reason.into_inner().unwrap().is_some(), "the source was not told: {error}");
}

#[test]
fn a_source_that_asks_again_and_again_and_reads_no_answer_is_refused_at_once() {
    let mut rig = rig();
    let error = receive(&mut rig, |peer| {
        peer.tell(&[hello(), fitting()]);
        // Far more than the answers fit into the socket's buffer.
        let _ = (0..1_000_000).all(|id| peer.say(&control(Control::Ping { id })));
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("unexpected PING from the source"), "{error}");
}

#[test]
fn a_state_that_the_driver_refuses_is_refused_with_the_drivers_errno() {
    for state in [&b"no state of this device"[..], &[0xaa]] {
        let bytes = state.len() as u64;
        let mut rig = rig();
        let error = receive(&mut rig, |peer| {
            peer.tell(&[
                hello(),
                fitting(),
                Message::DeviceState { device: 0, ends: false, data: state },
                device_end(0, bytes),
                end(0),
                handover(),
            ]);
        });
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("there: ") && error.contains("to STOP: EINVAL"), "{error}");
    }
}

#[test]
fn memory_outside_of_the_machine_is_refused_and_nothing_of_it_written() {
    let size = MEMORY as u64;
    let data = [7; 16];
    for address in [size, size - 8, u64::MAX, u64::MAX - 8, 1 << 63] {
        let mut rig = rig();
        let error = receive(&mut rig, |peer| {
            peer.tell(&[hello(), fitting(), Message::Memory { address, data: &data }]);
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("are not memory of this"), "{address:#x}: {error}");
        let mut tail = [0; 8];
        Ram::read(&rig.memory.as_ref().unwrap().1, size - 8, &mut tail).unwrap();
        assert_eq!(tail, [0; 8], "{address:#x}: a part was written");
    }
    for (address, length) in [(0, size + 1), (0, u64::MAX), (size, 1), (u64::MAX, u64::MAX), (4096, size)] {
        let mut rig = rig();
        let error = receive(&mut rig, |peer| {
            peer.tell(&[hello(), fitting(), Message::MemoryZero { address, length }]);
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("are not memory of this"), "{address:#x} {length:#x}: {error}");
    }
}

#[test]
fn a_source_that_does_not_fit_is_refused_before_the_device_is_touched() {
    let with = |change: fn(&mut Table)| {
        let mut table = table(MEMORY as u64);
        change(&mut table);
        table
    };
    let cases = [
        ("more regions", with(|table| table.devices[0].num_regions = 3)),
        ("more interrupts", with(|table| table.devices[0].num_irqs = u32::MAX)),
        ("another kind", with(|table| table.devices[0].flags = 2)),
        ("no device", with(|table| table.devices.clear())),
        ("two devices", with(|table| table.devices.push(table.devices[0].clone()))),
        ("no memory", with(|table| table.memory.clear())),
        ("more memory", with(|table| table.memory.push(RamRegion::new(u64::MAX, u64::MAX)))),
        ("memory elsewhere", with(|table| table.memory[0].start = 4096)),
    ];
    for (what, table) in cases {
        let mut rig = rig();
        let error =
            receive(&mut rig, |peer| peer.tell(&[hello(), control(Control::Table(table))])).unwrap_err();
        assert!(matches!(error, Error::Unfit(_)), "{what}: {error}");
        assert!(rig.there.control().requests().is_empty(), "{what}: {:?}", rig.there.control().requests());
    }
}

#[test]
fn an_abort_is_told_with_the_sources_reason() {
    let abort = control(Control::Abort(Reason { reason: "changed my mind\u{7}".into() }));
    let before = [vec![], vec![hello()], vec![hello(), fitting()], vec![hello(), fitting(), round(1)]];
    for before in before {
        let mut rig = rig();
        let error = receive(&mut rig, |peer| peer.tell(&[before, vec![abort.clone()]].concat())).unwrap_err();
        assert_eq!(error.to_string(), "the source ended the migration: changed my mind ");
    }
}

#[test]
fn a_length_past_the_bound_is_refused_by_its_header_alone() {
    let bounds =
        [(5u16, (1u32 << 20) + 513), (7, u32::MAX), (1, (64 << 10) + 1), (3, (1 << 20) + 1), (21, u32::MAX)];
    for (kind, length) in bounds {
        // Only the header comes: a receiver that waited for the payload would say that the stream ends early.
        let mut header = frame(kind, 0, &[])[..20].to_vec();
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header.extend(crc32c(&header).to_le_bytes());
        let bytes = [preamble(2, 0), header].concat();
        let error = receive(&mut rig(), |peer| _ = peer.raw(&bytes)).unwrap_err().to_string();
        assert!(error.contains(&format!("with {length} bytes exceeds the maximum")), "{error}");
    }
}

#[test]
fn a_frame_of_a_later_release_is_skipped_where_it_says_so_and_refused_otherwise() {
    for (flags, payload, refused) in [
        (1u16, 300, None),
        (1, 64 << 10, None),
        (0, 300, Some("unknown frame kind 4711")),
        (2, 300, Some("unknown frame kind 4711")),
        (1, (64 << 10) + 1, Some("exceeds the maximum")),
    ] {
        let mut rig = rig();
        let unknown = flagged(4711, flags, 0, &vec![7; payload]);
        let (head, _) = hello().payload();
        let bytes = [preamble(2, 0), unknown, frame(1, 1, &head)].concat();
        let mut answered = false;
        let error = receive(&mut rig, |peer| {
            peer.raw(&bytes);
            answered = peer.hear_until(crate::support::wire::kind::ACCEPT).is_some();
        });
        let error = error.unwrap_err().to_string();
        assert_eq!(answered, refused.is_none(), "{flags} {payload}: {error}");
        if let Some(why) = refused {
            assert!(error.contains(why), "{flags} {payload}: {error}");
        }
    }
}

#[test]
fn a_source_of_another_version_is_refused_by_name() {
    for (major, why) in
        [(1, "stream version 1.1 is not supported"), (3, "stream version 3.1 is not supported")]
    {
        let bytes = [preamble(major, 1), frame(1, 0, b"{}")].concat();
        let error = receive(&mut rig(), |peer| _ = peer.raw(&bytes)).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("use the release that wrote it"), "{error}");
    }
}

fn any_message() -> impl Strategy<Value = Message<'static>> {
    // Borrowed data needs an owner that outlives the message; a test may leak a little.
    let data = proptest::collection::vec(any::<u8>(), 1..300).prop_map(|data| &*data.leak());
    let image = Just(&*image().to_vec().leak());
    let address = prop_oneof![0..MEMORY as u64, any::<u64>()];
    let count = prop_oneof![3 => Just(10u64), 1 => 0..40u64, 1 => any::<u64>()];
    let number = prop_oneof![0..4u32, any::<u32>()];
    let text = any::<String>().prop_map(|reason| Reason { reason });
    prop_oneof![
        1 => Just(hello()),
        1 => Just(fitting()),
        1 => Just(crate::support::peer::accept()),
        3 => (address.clone(), data.clone()).prop_map(|(address, data)| Message::Memory { address, data }),
        2 => (address, any::<u64>()).prop_map(|(address, length)| Message::MemoryZero { address, length: length.max(1) }),
        1 => data.clone().prop_map(|data| Message::Setup { device: 0, data }),
        1 => data.clone().prop_map(|data| Message::Blob { name: "cpu", version: 1, last: true, data }),
        2 => data.prop_map(|data| Message::DeviceState { device: 0, ends: false, data }),
        4 => image.prop_map(|data| Message::DeviceState { device: 0, ends: false, data }),
        3 => (0..2u32, count.clone()).prop_map(|(device, bytes)| device_end(device, bytes)),
        3 => number.clone().prop_map(round),
        1 => number.clone().prop_map(|id| control(Control::Ping { id })),
        1 => number.prop_map(|number| control(Control::RoundDone { number })),
        3 => prop_oneof![Just(0), count].prop_map(end),
        3 => Just(handover()),
        1 => Just(control(Control::Running(Running::default()))),
        1 => Just(Message::Padding { data: b"nothing" }),
        1 => text.clone().prop_map(|reason| control(Control::Failed(reason))),
        1 => text.prop_map(|reason| control(Control::Abort(reason))),
    ]
}

fn check(source: impl FnOnce(&mut Peer) + Send) {
    let mut rig = rig();
    if receive(&mut rig, source).is_ok() {
        // Only a whole state, judged by the driver, can have led here.
        assert_eq!(rig.there.control().state(), [1, 2, 3, 4]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_are_taken_by_nobody(bytes: Vec<u8>, after_preamble: bool) {
        let start = if after_preamble { preamble(2, 0) } else { Vec::new() };
        check(|peer| _ = peer.raw(&[start, bytes].concat()));
    }

    #[test]
    fn well_formed_frames_in_any_order_leave_a_whole_state_or_none(
        messages in proptest::collection::vec(any_message(), 0..12),
        greeted in prop::bool::weighted(0.9),
        waits in prop::bool::weighted(0.9),
    ) {
        check(|peer| {
            if greeted {
                peer.tell(&[hello(), fitting()]);
            }
            if waits {
                peer.tell(&messages);
            } else {
                for message in &messages {
                    peer.say(message);
                }
            }
        });
    }

    #[test]
    fn frames_with_any_payload_are_taken_apart_without_harm(
        frames in proptest::collection::vec((0u16..25, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        tabled: bool,
    ) {
        check(|peer| {
            peer.tell(&[hello()]);
            if tabled {
                peer.tell(&[fitting()]);
            }
            for (kind, payload) in &frames {
                peer.frame(*kind, payload);
            }
        });
    }
}
