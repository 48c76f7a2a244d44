//! I/O queues: created, deleted, full, and many at once.

use whimbrel_models::nvme::guest::{Command, GuestError};

use super::host::{BLOCK, Bench, DATA, pattern, settle};

/// A creation: opcode, dwords 10 and 11.
fn create(opcode: u8, shape: u32, settings: u32) -> Command {
    Command { prp1: DATA, ..Command::admin(opcode, [shape, settings, 0, 0, 0, 0]) }
}

#[test]
fn queues_that_cannot_be_are_refused_with_their_status() {
    let bench = Bench::new();
    let mut host = bench.host();
    let shape = |id: u32, entries: u32| (entries - 1) << 16 | id;
    let completion = |id, entries, settings| create(0x05, shape(id, entries), settings);
    let submission = |id, entries, settings| create(0x01, shape(id, entries), settings);
    let cases = [
        ("completion queue 0", completion(0, 8, 1), (1, 0x01)),
        ("completion queue 5 of 4", completion(5, 8, 1), (1, 0x01)),
        ("a completion queue that exists", completion(1, 8, 1), (1, 0x01)),
        ("one entry", completion(2, 1, 1), (1, 0x02)),
        ("1025 entries", completion(2, 1025, 1), (1, 0x02)),
        ("pages here and there", completion(2, 8, 0), (0, 0x02)),
        ("vector 5 of 5", completion(2, 8, 5 << 16 | 3), (1, 0x08)),
        ("an address in mid-page", Command { prp1: DATA + 64, ..completion(2, 8, 1) }, (0, 0x13)),
        ("past the end of memory", Command { prp1: u64::MAX - 0xfff, ..completion(2, 1024, 1) }, (0, 0x02)),
        ("submission queue 0", submission(0, 8, 1 << 16 | 1), (1, 0x01)),
        ("submission queue 5 of 4", submission(5, 8, 1 << 16 | 1), (1, 0x01)),
        ("a submission queue that exists", submission(1, 8, 1 << 16 | 1), (1, 0x01)),
        ("no completion queue yet", submission(2, 8, 2 << 16 | 1), (1, 0x00)),
        ("the admin completion queue", submission(2, 8, 1), (1, 0x01)),
        ("completion queue 5 of 4 of a submission queue", submission(2, 8, 5 << 16 | 1), (1, 0x01)),
        ("a submission queue of one entry", submission(2, 1, 1 << 16 | 1), (1, 0x02)),
        ("delete submission queue 0", create(0x00, 0, 0), (1, 0x01)),
        ("delete an absent submission queue", create(0x00, 2, 0), (1, 0x01)),
        ("delete completion queue 0", create(0x04, 0, 0), (1, 0x01)),
        ("delete an absent completion queue", create(0x04, 2, 0), (1, 0x01)),
        ("delete a completion queue in use", create(0x04, 1, 0), (1, 0x0c)),
    ];
    for (name, command, expected) in cases {
        let (kind, code, _) = host.admin(command);
        assert_eq!((kind, code), expected, "{name}");
    }
    host.write(0, &[1; 512]);
}

#[test]
fn queues_cannot_be_created_with_other_sizes_of_entries() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    for configuration in [0x0000_0001, 0x0045_0001, 0x0056_0001] {
        host.driver.write_u32(0x14, configuration).unwrap();
        assert_eq!(host.admin(create(0x05, 7 << 16 | 1, 1)), (1, 0x02, 0), "{configuration:#x}");
    }
    host.driver.write_u32(0x14, 0x0046_0001).unwrap();
    assert_eq!(host.admin(create(0x05, 7 << 16 | 1, 1)), (0, 0, 0));
}

#[test]
fn every_queue_works_and_can_be_deleted_and_created_again() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    for round in 0..3 {
        for queue in 1..=4 {
            host.driver.create_queue(queue, 4, Some(queue)).unwrap();
        }
        for queue in (1..=4).rev() {
            let start = u64::from(queue) * 8;
            let data = pattern(u64::from(queue) + round * 100, 4096);
            host.memory.write(DATA, &data);
            let end = host.driver.execute(queue, Command::write(start, 8), DATA, 4096).unwrap();
            assert!(end.is_success());
            let end = host.driver.execute(queue, Command::read(start, 8), DATA + 0x10000, 4096).unwrap();
            assert!(end.is_success());
            assert_eq!(host.memory.read(DATA + 0x10000, 4096), data);
        }
        for queue in [2, 1, 4, 3] {
            host.driver.delete_queue(queue).unwrap();
        }
    }
}

#[test]
fn a_completion_queue_without_room_keeps_commands_where_they_are() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    host.driver.create_queue(1, 4, None).unwrap();
    let mut completions = 0;
    // The host goes round the queue several times, and takes out one completion at a time.
    for command in 0..40 {
        loop {
            match host.driver.submit(1, Command::flush(), 0, 0) {
                Ok(_) => break,
                Err(GuestError::Full(1)) => {
                    assert!(host.driver.await_completion(1).unwrap().is_success());
                    completions += 1;
                }
                Err(error) => panic!("{command}: {error}"),
            }
        }
        settle(&host.device());
    }
    while host.driver.in_flight(1) > 0 {
        assert!(host.driver.await_completion(1).unwrap().is_success());
        completions += 1;
    }
    assert_eq!(completions, 40);
}

#[test]
fn two_submission_queues_share_a_completion_queue() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    host.driver.create_queue(1, 16, None).unwrap();
    // A second submission queue, whose commands complete in the first one's completion queue.
    let second = Command { prp1: DATA, ..create(0x01, 3 << 16 | 2, 1 << 16 | 1) };
    assert_eq!(host.admin(second), (0, 0, 0));
    let flush = Command { identifier: 77, ..Command::flush() };
    host.memory.write(DATA, &flush.to_bytes());
    host.driver.write_u32(0x1010, 1).unwrap();
    let error = host.driver.await_completion(1).unwrap_err();
    let GuestError::Unexpected(end) = error else { panic!("{error}") };
    assert_eq!((end.queue, end.identifier, end.head, end.is_success()), (2, 77, 1, true));
}

#[test]
fn deleting_a_submission_queue_ends_its_commands() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.memory.write(DATA, &pattern(1, 16 * BLOCK));
    let mut waiting: Vec<u16> = (0..16)
        .map(|block| host.driver.submit(1, Command::write(block, 1), DATA + block * BLOCK, BLOCK).unwrap())
        .collect();
    // They are fetched and begun.
    host.device().advance(std::time::Duration::ZERO);
    assert_eq!(host.admin(create(0x00, 1, 0)), (0, 0, 0));
    while let Some(end) = host.driver.take_completion(1).unwrap() {
        assert!(end.is_success() || (end.kind, end.code) == (0, 0x08), "{end:?}");
        waiting.retain(|identifier| *identifier != end.identifier);
    }
    assert!(waiting.is_empty(), "each of them has ended: {waiting:?}");
    assert_eq!(host.admin(create(0x04, 1, 0)), (0, 0, 0));
    host.driver.create_queue(1, 8, None).unwrap();
    host.write(0, &pattern(2, 4096));
    assert_eq!(host.read(0, 4096), pattern(2, 4096), "no earlier write has overtaken it");
}
