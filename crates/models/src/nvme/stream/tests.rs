//! States through the stream, whole and damaged.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::admin::{ErrorEntry, Event};
use super::super::command::Status;
use super::super::queue::{CompletionQueue, SubmissionQueue};
use super::super::registers::Registers;
use super::*;

fn limits() -> Limits {
    Limits { serial: *b"TEST                ", queues: 4, blocks: 2048, is_read_only: false }
}

/// A controller with everything that a state can have.
fn machine() -> Machine {
    let mut controller = Controller::new(limits());
    controller.registers = Registers {
        configuration: 0x0046_0001,
        ready: true,
        masked: 1,
        admin_attributes: 0x001f_001f,
        submission_base: 0x1000,
        completion_base: 0x2000,
        ..Registers::default()
    };
    let queue = |cq| SubmissionQueue::new(0x1000, 32, cq).unwrap();
    controller.submissions = [(0, queue(0)), (2, SubmissionQueue { head: 3, tail: 9, ..queue(3) })].into();
    let queue = |vector| CompletionQueue::new(0x2000, 32, vector).unwrap();
    controller.completions =
        [(0, queue(Some(0))), (3, CompletionQueue { head: 5, tail: 2, phase: false, ..queue(Some(4)) })]
            .into();
    controller.features.keep_alive = 5000;
    controller.features.not_coalesced = 1 << 4;
    controller.features.write_cache = false;
    controller.features.timestamp.is_set = true;
    controller.features.timestamp.milliseconds = 1_234_567;
    controller.events.requests = VecDeque::from([7, 9]);
    controller.events.pending = VecDeque::from([Event::INVALID_DOORBELL]);
    controller.events.masked = 1;
    controller.health.reads = 17;
    controller.errors.add(ErrorEntry {
        count: 0,
        queue: 2,
        command_id: 6,
        status: Status::LBA_OUT_OF_RANGE.bits(),
        block: 99,
        namespace: 1,
    });
    let entry = SubmissionEntry { opcode: 1, command_id: 11, prp1: 0x9000, ..SubmissionEntry::default() };
    let completion =
        Completion { sq: 2, cq: 3, sq_head: 3, command_id: 10, status: Status::SUCCESS, result: 0 };
    Machine {
        controller,
        commands: vec![(2, entry), (0, SubmissionEntry { command_id: 3, ..entry })],
        completions: vec![completion],
    }
}

fn whole(machine: &Machine) -> Vec<u8> {
    let mut stream = opening(&machine.controller.limits);
    close(&mut stream, machine);
    stream
}

#[test]
fn a_state_loads_in_pieces_of_any_size() {
    let machine = machine();
    let stream = whole(&machine);
    for piece in [1, 7, 64, stream.len()] {
        let mut loader = Loader::new(Limits { serial: [b'x'; 20], ..limits() });
        for part in stream.chunks(piece) {
            assert_eq!(loader.write(part), Ok(part.len()));
        }
        assert_eq!(loader.finish(), Some(&machine), "with the identity of the source");
        assert_eq!(loader.write(&[0]), Err(whimbrel_device::Errno::ENOMEM));
    }
}

#[test]
fn a_state_for_another_device_is_rejected_with_its_opening() {
    let stream = whole(&machine());
    let others = [
        Limits { queues: 5, ..limits() },
        Limits { blocks: 2049, ..limits() },
        Limits { is_read_only: true, ..limits() },
    ];
    for limits in others {
        let mut loader = Loader::new(limits);
        assert!(loader.write(&stream[..OPENING_BYTES]).is_err());
        assert!(loader.write(&[]).is_err(), "for good");
    }
}

#[test]
fn a_stream_that_is_cut_does_not_load() {
    let stream = whole(&machine());
    for end in 0..stream.len() {
        let mut loader = Loader::new(limits());
        assert_eq!(loader.write(&stream[..end]), Ok(end));
        assert_eq!(loader.finish(), None, "{end}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let stream = whole(&machine());
    // The serial number is text, and another one is that of another device.
    for at in (0..stream.len()).filter(|at| !(16..36).contains(at)) {
        for bit in 0..8 {
            let mut damaged = stream.clone();
            damaged[at] ^= 1 << bit;
            let mut loader = Loader::new(limits());
            let _ = loader.write(&damaged);
            assert_eq!(loader.finish(), None, "byte {at}, bit {bit}");
        }
    }
}

type Spoil = fn(&mut Machine);

#[test]
fn states_that_no_controller_can_have_are_rejected() {
    let cases: [(&str, Spoil); 16] = [
        ("ready and not enabled", |m| m.controller.registers.configuration = 0),
        ("ready and failed", |m| m.controller.registers.failed = true),
        ("a base in mid-page", |m| m.controller.registers.submission_base += 8),
        ("ready without queues", |m| m.controller.submissions.clear()),
        ("no admin queue", |m| _ = m.controller.completions.remove(&0)),
        ("a queue without completions", |m| _ = m.controller.completions.remove(&3)),
        ("too many queues", |m| {
            let queue = m.controller.submissions[&2];
            m.controller.submissions.insert(5, queue);
        }),
        ("a head past the end", |m| m.controller.submissions.get_mut(&2).unwrap().head = 32),
        ("a queue past the end of memory", |m| {
            m.controller.completions.get_mut(&3).unwrap().base = u64::MAX - 0xff;
        }),
        ("a queue that is too large", |m| m.controller.submissions.get_mut(&2).unwrap().entries = 1025),
        ("I/O on the admin completions", |m| {
            m.controller.submissions.get_mut(&2).unwrap().completion_queue = 0;
        }),
        ("an absent vector", |m| m.controller.completions.get_mut(&3).unwrap().vector = Some(5)),
        ("a command of no queue", |m| m.commands[0].0 = 1),
        ("a completion for no queue", |m| m.completions[0].cq = 1),
        ("more completions than there is room for", |m| {
            m.completions = vec![m.completions[0]; 4];
            m.controller.completions.get_mut(&3).unwrap().tail = 1;
        }),
        ("no queues allowed", |m| m.controller.features.submission_queues = 0),
    ];
    for (name, spoil) in cases {
        let mut machine = machine();
        spoil(&mut machine);
        let mut loader = Loader::new(limits());
        let written = loader.write(&whole(&machine));
        assert!(written.is_err() && loader.finish().is_none(), "{name}");
    }
}

#[test]
fn the_largest_state_has_its_size() {
    let machine = machine();
    let stream = v1::encode(&machine);
    assert!(stream.len() < v1::MAX_BYTES && v1::MAX_BYTES < 20 << 10, "{}", v1::MAX_BYTES);
}

proptest! {
    /// Whatever arrives, the loader neither panics nor takes memory without a bound.
    #[test]
    fn hostile_streams_are_rejected(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        is_signed in any::<bool>(),
    ) {
        let mut stream = whole(&machine());
        for (at, value) in changes {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        if is_signed {
            let end = stream.len() - 8;
            let sum = checksum(CrcAlgorithm::Crc64Nvme, &stream[..end]).to_ne_bytes();
            stream[end..].copy_from_slice(&sum);
        }
        let mut loader = Loader::new(limits());
        if loader.write(&stream).is_ok() && let Some(machine) = loader.finish() {
            let mut again = Loader::new(limits());
            again.write(&whole(machine)).unwrap();
            prop_assert_eq!(again.finish(), Some(machine), "a state that loads can be saved");
        }
    }
}
