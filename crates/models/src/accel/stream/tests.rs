//! Hand-made streams: well-formed records that no engine writes, each rejected at its first invalid byte.
//!
//! Valid streams are tested in `tests/`.

use crc_fast::Digest;
use whimbrel_protocol::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::super::own_state::{Blocks, OwnState};
use super::super::queue::{Descriptor, OPERATION_CHECKSUM, OPERATION_FILL, SLICE_BYTES};
use super::*;

/// Eight blocks of 256 bytes.
const STATE: u64 = 2048;

fn record(kind: u32, count: u32, index: u64) -> Vec<u8> {
    RecordHead { kind, count, index }.as_bytes().to_vec()
}

fn head() -> Vec<u8> {
    Head::of(Blocks::of(STATE)).as_bytes().to_vec()
}

fn block(index: u64) -> Vec<u8> {
    [record(KIND_BLOCK, 256, index), vec![index as u8; 256]].concat()
}

fn zeros(index: u64, count: u32) -> Vec<u8> {
    record(KIND_ZEROS, count, index)
}

fn closing(machine: Machine) -> Vec<u8> {
    [record(KIND_FINAL, size_of::<Final>() as u32, 0), machine.to_record().as_bytes().to_vec()].concat()
}

/// Appends a valid end record.
fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    ended_with_total(parts, 0)
}

/// Appends an end record whose total is too large by `excess`, with a matching checksum.
fn ended_with_total(parts: &[Vec<u8>], excess: u64) -> Vec<u8> {
    let mut stream = parts.concat();
    stream.extend(record(KIND_END, size_of::<End>() as u32, 0));
    stream.extend((stream.len() as u64 + excess).as_bytes());
    let mut checksum = Digest::new(CHECKSUM);
    checksum.update(&stream);
    stream.extend(checksum.finalize().as_bytes());
    stream
}

/// Loads a stream byte by byte and returns the number of bytes accepted, and the result.
fn load(stream: &[u8]) -> (usize, Option<Machine>) {
    let mut state = OwnState::empty(STATE).unwrap();
    let mut loader = Loader::new(state.blocks());
    let taken = stream.iter().take_while(|byte| loader.write(&mut state, &[**byte]).is_ok()).count();
    (taken, loader.finish())
}

fn working() -> Machine {
    let registers = Registers {
        enabled: true,
        queue_size: 4,
        queue_base: 0x1000,
        completion_base: 0x2000,
        head: 7,
        tail: 9,
        completed: 7,
        errors: 1,
        interrupt_enable: 1,
        interrupt_status: 3,
        digest: 99,
    };
    let descriptor = Descriptor {
        operation: OPERATION_CHECKSUM,
        length: 2 * SLICE_BYTES,
        source: 0x4000,
        tag: 3,
        ..Descriptor::default()
    };
    Machine { registers, job: Job::resume(descriptor, SLICE_BYTES, 0x1234, STATE), changes: 5 }
}

#[test]
fn a_machine_reads_as_it_is_written() {
    for machine in [Machine::default(), working(), Machine { job: None, ..working() }] {
        assert_eq!(Machine::from_record(&machine.to_record(), STATE), Some(machine));
    }
}

#[test]
fn a_stream_made_by_hand_is_loaded() {
    let stream = ended(&[head(), block(0), zeros(1, 6), block(7), block(3), block(3), closing(working())]);
    assert_eq!(load(&stream), (stream.len(), Some(working())));
}

#[test]
fn records_that_cannot_come_where_they_do_are_refused_at_once() {
    type Case = (&'static str, Vec<Vec<u8>>, Vec<u8>);
    const FINAL: u32 = size_of::<Final>() as u32;
    let machine = || closing(Machine::default());
    let cases: [Case; 17] = [
        ("no kind", vec![head()], record(0, 256, 0)),
        ("an unknown kind", vec![head()], record(5, 256, 0)),
        ("a block out of turn", vec![head()], record(KIND_BLOCK, 256, 1)),
        ("zeros out of turn", vec![head(), block(0)], zeros(0, 1)),
        ("no zeros", vec![head()], zeros(0, 0)),
        ("zeros past the end", vec![head(), block(0)], zeros(1, 8)),
        ("zeros beyond all", vec![head()], zeros(0, u32::MAX)),
        ("a short block", vec![head()], record(KIND_BLOCK, 255, 0)),
        ("a long block", vec![head()], record(KIND_BLOCK, u32::MAX, 0)),
        ("a missing block", vec![head(), zeros(0, 8)], record(KIND_BLOCK, 256, 8)),
        ("a block far away", vec![head(), zeros(0, 8)], record(KIND_BLOCK, 256, u64::MAX)),
        ("zeros in the second pass", vec![head(), zeros(0, 8)], zeros(0, 1)),
        ("a final before all blocks", vec![head(), zeros(0, 7)], record(KIND_FINAL, FINAL, 0)),
        ("a final of another length", vec![head(), zeros(0, 8)], record(KIND_FINAL, FINAL - 1, 0)),
        ("a second final", vec![head(), zeros(0, 8), machine()], record(KIND_FINAL, FINAL, 0)),
        ("a block behind the final", vec![head(), zeros(0, 8), machine()], record(KIND_BLOCK, 256, 0)),
        ("an end without a final", vec![head(), zeros(0, 8)], record(KIND_END, 16, 0)),
    ];
    for (name, before, wrong) in cases {
        let before = before.concat();
        let stream = [&before[..], &wrong].concat();
        assert_eq!(load(&stream), (before.len() + RECORD_HEAD_BYTES - 1, None), "{name}");
    }
}

#[test]
fn a_final_record_that_no_engine_has_is_refused() {
    type Spoil = fn(&mut Final);
    let cases: [(&str, Spoil); 18] = [
        ("unknown flags", |record| record.flags |= 4),
        ("reserved bytes", |record| record.reserved = 1),
        ("a ring that is no power of two", |record| record.queue_size = 5),
        ("a ring that is not aligned", |record| record.queue_base = 0x1008),
        ("a ring past the end", |record| record.completion_base = u64::MAX - 31),
        ("more submitted than the ring holds", |record| record.tail = record.head + 5),
        ("a tail behind the head", |record| record.tail = record.head - 1),
        ("an interrupt that does not exist", |record| record.interrupt_status = 4),
        ("an enabled interrupt that does not exist", |record| record.interrupt_enable = 8),
        ("indices of a queue that is off", |record| record.flags = 0),
        ("a job without a descriptor in the ring", |record| record.tail = record.head),
        ("a job although there is none", |record| record.flags = FLAG_ENABLED),
        ("a job that cannot be done", |record| record.job.length = 0),
        ("a job of no operation", |record| record.job.operation = 9),
        ("a job past its end", |record| record.job_done = 2 * SLICE_BYTES),
        ("a job between slices", |record| record.job_done -= 1),
        ("a checksum of nothing", |record| record.job_done = 0),
        ("a checksum of a fill", |record| {
            record.job.operation = OPERATION_FILL;
            record.job.source = 0;
        }),
    ];
    for (name, spoil) in cases {
        let mut record = working().to_record();
        spoil(&mut record);
        assert_eq!(Machine::from_record(&record, STATE), None, "{name}");
    }
}

#[test]
fn an_end_that_is_wrong_is_refused() {
    let good = ended(&[head(), zeros(0, 8), closing(Machine::default())]);
    assert_eq!(load(&good), (good.len(), Some(Machine::default())));
    for from_the_end in [1, 8, 9, 16] {
        let mut stream = good.clone();
        let at = stream.len() - from_the_end;
        stream[at] ^= 1;
        assert_eq!(load(&stream), (good.len() - 1, None), "{from_the_end} bytes before the end");
    }
    let lies = ended_with_total(&[head(), zeros(0, 8), closing(Machine::default())], 8);
    assert_eq!(load(&lies), (good.len() - 1, None), "a checksum that is right does not help");
}

#[test]
fn after_a_refused_record_the_right_one_comes_too_late() {
    let mut state = OwnState::empty(STATE).unwrap();
    let mut loader = Loader::new(state.blocks());
    loader.write(&mut state, &head()).unwrap();
    assert_eq!(loader.write(&mut state, &zeros(1, 7)), Err(Errno::EINVAL));
    assert_eq!(loader.write(&mut state, &zeros(0, 8)), Err(Errno::EINVAL));
    assert_eq!(loader.finish(), None);
}

#[test]
fn a_loader_takes_no_memory_for_what_a_stream_claims() {
    // The largest of everything, in a head of a device that is small: refused in its head.
    let mut claimed = Head::new_zeroed();
    claimed.magic = MAGIC;
    claimed.version = VERSION;
    claimed.state_bytes = u64::MAX;
    claimed.block_bytes = u32::MAX;
    let (taken, loaded) = load(claimed.as_bytes());
    assert!(taken < size_of::<Head>() && loaded.is_none());
}
