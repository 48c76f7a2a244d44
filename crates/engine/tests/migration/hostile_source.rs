//! Sources that send anything at all.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use whimbrel_engine::stream::{DeviceSummary, Hello, Message, Ready, Reason, Running, Writer};
use whimbrel_engine::{Destination, Error, RamRegion, Received, archive};
use whimbrel_user::State;

use crate::support::wire::{frame, preamble};
use crate::support::{Rig, Shape};

const MEMORY: usize = 0x4000;

fn rig() -> Rig {
    Rig::new(&Shape { size: 4, ..Shape::default() }).with_memory(&[(0, MEMORY)])
}

/// Feeds bytes to a destination, then ends the stream. Checks that what it says of its device is true.
fn receive(rig: &mut Rig, bytes: &[u8]) -> Result<Received, Error> {
    let (mut left, right) = UnixStream::pair().unwrap();
    let received = std::thread::scope(|scope| {
        scope.spawn(move || {
            // The destination may have had enough before all is written.
            let _ = left.write_all(bytes);
            let _ = left.shutdown(Shutdown::Write);
            let _ = std::io::copy(&mut left, &mut std::io::sink());
        });
        Destination::new(&mut *rig.there)
            .memory(&rig.memory.as_ref().unwrap().1)
            .guest(rig.there_program.clone())
            .timeout(Duration::from_secs(20))
            .receive(right.into())
    });
    match &received {
        Ok(_) => assert_eq!(rig.there.state().unwrap(), State::Running),
        Err(error) => {
            rig.assert_destination_is_fresh(&error.to_string());
            assert!(!rig.there_program.calls.list().contains(&"run"), "{error}");
        }
    }
    received
}

fn hello() -> Message<'static> {
    let device = DeviceSummary {
        name: "x".into(),
        flags: 1,
        num_regions: 2,
        num_irqs: 0,
        migration_flags: 1,
        region: None,
        transactions: false,
    };
    Message::Hello(Hello { device, memory: vec![RamRegion::new(0, MEMORY as u64)] })
}

fn stream(messages: &[Message<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    for message in messages {
        writer.send(message).unwrap();
    }
    writer.flush().unwrap();
    bytes
}

/// A state that the test's device takes: four bytes, 1 to 4.
fn image() -> [u8; 10] {
    let sum = [1u8, 2, 3, 4].iter().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
    [0xcc, 4, 0, 0, 0, 1, 2, 3, 4, sum]
}

#[test]
fn a_whole_dialogue_that_nobody_waits_for_an_answer_in_is_still_a_migration() {
    let image = image();
    let bytes = stream(&[
        hello(),
        Message::Memory { address: 0, data: b"memory" },
        Message::Padding { data: b"nothing" },
        Message::Round { number: 1 },
        Message::DeviceState { device: 0, ends: false, data: &image },
        Message::DeviceEnd { device: 0, bytes: 10 },
        Message::End { memory_bytes: 6 },
        Message::Handover,
    ]);
    let mut rig = rig();
    receive(&mut rig, &bytes).unwrap();
    assert_eq!(rig.there_control.state(), [1, 2, 3, 4]);
}

#[test]
fn every_message_out_of_place_is_refused_and_leaves_the_device_fresh() {
    let image = image();
    let state = Message::DeviceState { device: 0, ends: false, data: &image };
    let end = Message::DeviceEnd { device: 0, bytes: 10 };
    let cases: Vec<(&str, Vec<Message<'_>>)> = vec![
        ("no greeting", vec![state.clone()]),
        ("an answer as a greeting", vec![Message::Accept]),
        ("two greetings", vec![hello(), hello()]),
        ("round 0", vec![hello(), Message::Round { number: 0 }]),
        ("round 2 first", vec![hello(), Message::Round { number: 2 }]),
        ("round 1 twice", vec![hello(), Message::Round { number: 1 }, Message::Round { number: 1 }]),
        ("another device", vec![hello(), Message::DeviceState { device: 1, ends: false, data: &image }]),
        ("the end of another device", vec![hello(), Message::DeviceEnd { device: 1, bytes: 0 }]),
        ("a wrong total", vec![hello(), state.clone(), Message::DeviceEnd { device: 0, bytes: 9 }]),
        ("an end before the device's", vec![hello(), Message::End { memory_bytes: 0 }]),
        ("state after its end", vec![hello(), state.clone(), end.clone(), state.clone()]),
        ("two ends of state", vec![hello(), state.clone(), end.clone(), end.clone()]),
        (
            "a round after the state's end",
            vec![hello(), state.clone(), end.clone(), Message::Round { number: 1 }],
        ),
        (
            "a wrong total of memory",
            vec![hello(), state.clone(), end.clone(), Message::End { memory_bytes: 1 }],
        ),
        ("a handover before the end", vec![hello(), Message::Handover]),
        ("an answer", vec![hello(), Message::Ready(Ready::default())]),
        ("RUNNING", vec![hello(), Message::Running(Running {})]),
        ("FAILED", vec![hello(), Message::Failed(Reason { reason: String::new() })]),
        (
            "the end again where HANDOVER belongs",
            vec![hello(), state, end, Message::End { memory_bytes: 0 }, Message::End { memory_bytes: 0 }],
        ),
    ];
    for (what, messages) in cases {
        let mut rig = rig();
        let error = receive(&mut rig, &stream(&messages)).expect_err(what);
        // The stream also ends too early: that must not be what was noticed.
        assert!(matches!(error, Error::Protocol(_)), "{what}: {error}");
    }
}

#[test]
fn a_state_that_the_driver_refuses_is_refused_with_the_drivers_errno() {
    for state in [&b"no state of this device"[..], &[0xaa]] {
        let bytes = state.len() as u64;
        let mut rig = rig();
        let messages = [
            hello(),
            Message::DeviceState { device: 0, ends: false, data: state },
            Message::DeviceEnd { device: 0, bytes },
            Message::End { memory_bytes: 0 },
            Message::Handover,
        ];
        let error = receive(&mut rig, &stream(&messages)).unwrap_err().to_string();
        assert!(error.starts_with("there: ") && error.contains("to STOP: EINVAL"), "{error}");
    }
}

#[test]
fn memory_outside_of_the_machine_is_refused_and_nothing_of_it_written() {
    let size = MEMORY as u64;
    let data = [7; 16];
    for address in [size, size - 8, u64::MAX, u64::MAX - 8, 1 << 63] {
        let mut rig = rig();
        let error =
            receive(&mut rig, &stream(&[hello(), Message::Memory { address, data: &data }])).unwrap_err();
        assert!(error.to_string().contains("are not memory of this machine"), "{address:#x}: {error}");
        let mut tail = [0; 8];
        let memory = &rig.memory.as_ref().unwrap().1;
        whimbrel_engine::Ram::read(memory, size - 8, &mut tail).unwrap();
        assert_eq!(tail, [0; 8], "{address:#x}: a part was written");
    }
    for (address, length) in [(0, size + 1), (0, u64::MAX), (size, 1), (u64::MAX, u64::MAX), (4096, size)] {
        let mut rig = rig();
        let error =
            receive(&mut rig, &stream(&[hello(), Message::MemoryZero { address, length }])).unwrap_err();
        assert!(
            error.to_string().contains("are not memory of this machine"),
            "{address:#x} {length:#x}: {error}"
        );
    }
}

#[test]
fn a_source_that_does_not_fit_is_refused_before_the_device_is_touched() {
    let Message::Hello(fits) = hello() else { unreachable!("hello() is a greeting") };
    let with = |change: fn(&mut Hello)| {
        let mut hello = fits.clone();
        change(&mut hello);
        hello
    };
    let cases = [
        ("more regions", with(|hello| hello.device.num_regions = 3)),
        ("more interrupts", with(|hello| hello.device.num_irqs = u32::MAX)),
        ("another kind", with(|hello| hello.device.flags = 2)),
        ("no memory", with(|hello| hello.memory.clear())),
        ("more memory", with(|hello| hello.memory.push(RamRegion::new(u64::MAX, u64::MAX)))),
        ("memory elsewhere", with(|hello| hello.memory[0].start = 4096)),
    ];
    for (what, hello) in cases {
        let mut rig = rig();
        let error = receive(&mut rig, &stream(&[Message::Hello(hello)])).unwrap_err();
        assert!(matches!(error, Error::Mismatch(_)), "{what}: {error}");
        assert!(rig.there_control.requests().is_empty(), "{what}: {:?}", rig.there_control.requests());
    }
}

#[test]
fn an_abort_is_told_with_the_sources_reason() {
    let abort = Message::Abort(Reason { reason: "changed my mind\u{7}".into() });
    for before in [vec![hello()], vec![hello(), Message::Round { number: 1 }]] {
        let mut rig = rig();
        let error = receive(&mut rig, &stream(&[before, vec![abort.clone()]].concat())).unwrap_err();
        assert_eq!(error.to_string(), "the source ended the migration: changed my mind ");
    }
}

#[test]
fn a_length_past_the_bound_is_refused_by_its_header_alone() {
    for (kind, length) in [(3u16, (1u32 << 20) + 65), (5, u32::MAX), (1, (64 << 10) + 1), (11, u32::MAX)] {
        // Only the header comes: a receiver that waited for the payload would say that the stream ends early.
        let mut bytes = preamble(1, 0);
        let mut header = frame(kind, 0, &[])[..20].to_vec();
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header.extend(crate::support::wire::crc32c(&header).to_le_bytes());
        bytes.extend(header);
        let error = receive(&mut rig(), &bytes).unwrap_err().to_string();
        assert!(error.contains(&format!("frame of {length} bytes")), "{error}");
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
        1 => Just(Message::Accept),
        3 => (address.clone(), data.clone()).prop_map(|(address, data)| Message::Memory { address, data }),
        2 => (address, any::<u64>()).prop_map(|(address, length)| Message::MemoryZero { address, length: length.max(1) }),
        2 => data.prop_map(|data| Message::DeviceState { device: 0, ends: false, data }),
        4 => image.prop_map(|data| Message::DeviceState { device: 0, ends: false, data }),
        3 => (0..2u32, count.clone()).prop_map(|(device, bytes)| Message::DeviceEnd { device, bytes }),
        3 => number.clone().prop_map(|number| Message::Round { number }),
        1 => number.prop_map(|number| Message::RoundDone { number }),
        3 => prop_oneof![Just(0), count].prop_map(|memory_bytes| Message::End { memory_bytes }),
        1 => any::<u64>().prop_map(|inspection_us| Message::Ready(Ready { inspection_us })),
        3 => Just(Message::Handover),
        1 => Just(Message::Running(Running {})),
        1 => Just(Message::Padding { data: b"nothing" }),
        1 => text.clone().prop_map(Message::Failed),
        1 => text.prop_map(Message::Abort),
    ]
}

fn check_everything_that_reads(bytes: &[u8]) {
    let mut rig = rig();
    if receive(&mut rig, bytes).is_ok() {
        // Only a whole state, judged by the driver, can have led here.
        assert_eq!(rig.there_control.state(), [1, 2, 3, 4]);
    }
    for form in [archive::Form::Stream, archive::Form::Raw] {
        let mut rig = self::rig();
        match archive::restore(&mut *rig.there, bytes, form) {
            Ok(_) => assert_eq!(rig.there_control.state(), [1, 2, 3, 4]),
            Err(error) => rig.assert_destination_is_fresh(&error.to_string()),
        }
    }
    let contents = archive::inspect(bytes);
    assert_eq!(contents.complete, contents.problem.is_none());
    assert!(contents.file_bytes <= bytes.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_are_taken_by_nobody(bytes: Vec<u8>, after_preamble: bool) {
        let start = if after_preamble { preamble(1, 0) } else { Vec::new() };
        check_everything_that_reads(&[start, bytes].concat());
    }

    #[test]
    fn well_formed_frames_in_any_order_leave_a_whole_state_or_none(
        messages in proptest::collection::vec(any_message(), 0..12),
        greeted in prop::bool::weighted(0.9),
    ) {
        let greeting = if greeted { vec![hello()] } else { Vec::new() };
        check_everything_that_reads(&stream(&[greeting, messages].concat()));
    }

    #[test]
    fn frames_with_any_payload_are_taken_apart_without_harm(
        frames in proptest::collection::vec((0u16..20, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
    ) {
        let mut bytes = stream(&[hello()]);
        for (sequence, (kind, payload)) in (1..).zip(&frames) {
            bytes.extend(frame(*kind, sequence, payload));
        }
        check_everything_that_reads(&bytes);
    }
}
