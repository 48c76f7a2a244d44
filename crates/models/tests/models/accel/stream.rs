//! The engine's stream: what it counts, how it can be cut, and what of it is refused.

use std::time::Duration;

use proptest::prelude::*;
use whimbrel_device::{DataFile, DeviceFile, Errno, State};
use whimbrel_models::accel::{Descriptor, SLICE_BYTES};
use whimbrel_protocol::precopy::PrecopyBytes;

use super::guest::{DATA, Guest, Memory, config, load, own_state, read_all, registers, resuming, save};

/// 64 blocks of 256 bytes.
const STATE: u64 = 16 << 10;
const BLOCK: u64 = 256;
/// A record's head, which every block has before it.
const RECORD: u64 = 16;
/// The stream's head.
const HEAD: u64 = 32;

/// A device whose blocks 4 to 7 and 20 hold something, and few others.
fn device(memory: &Memory) -> Guest {
    let mut guest = Guest::start(memory, memory.device(config(STATE)), 16);
    guest.execute(&Descriptor::scramble(1, 4 * BLOCK, 4 * BLOCK, 77));
    guest.execute(&Descriptor::scramble(2, 20 * BLOCK, BLOCK, 78));
    guest
}

fn counts(data: &DataFile) -> PrecopyBytes {
    data.precopy_info().unwrap().bytes
}

#[test]
fn initial_bytes_are_those_of_the_first_pass_and_fall_byte_by_byte() {
    let memory = Memory::new();
    let guest = device(&memory);
    let data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let all = counts(&data);
    assert_eq!(all.dirty, 0);
    assert_eq!(all.initial, HEAD + 64 * (BLOCK + RECORD));
    for read in 1..=all.initial {
        assert_eq!(data.read(&mut [0]), Ok(1));
        assert_eq!(counts(&data), PrecopyBytes { initial: all.initial - read, dirty: 0 });
    }
    assert_eq!(data.read(&mut [0]), Err(Errno::ENOMSG));
}

#[test]
fn dirty_bytes_are_those_of_blocks_that_changed_after_they_were_sent() {
    let memory = Memory::new();
    // Jobs that fail leave their marks in the state too, so the blocks are counted from outside.
    let device = memory.device(config(STATE).state_rate(BLOCK));
    device.advance(Duration::ZERO);
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    read_all(&data, 1000);
    assert_eq!(counts(&data), PrecopyBytes::default());
    let before = own_state(&device);
    for second in 1..=5 {
        device.advance(Duration::from_secs(second));
    }
    let after = own_state(&device);
    let changed =
        before.chunks(BLOCK as usize).zip(after.chunks(BLOCK as usize)).filter(|(a, b)| a != b).count();
    assert!((1..=5).contains(&changed));
    let dirty = changed as u64 * (BLOCK + RECORD);
    assert_eq!(counts(&data), PrecopyBytes { initial: 0, dirty });
    assert_eq!(read_all(&data, 7).len() as u64, dirty);
    assert_eq!(counts(&data), PrecopyBytes::default());
}

#[test]
fn a_block_that_changes_before_it_is_sent_is_sent_once() {
    let memory = Memory::new();
    let mut guest = device(&memory);
    let data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let before = counts(&data);
    guest.execute(&Descriptor::scramble(3, 5 * BLOCK, BLOCK, 99));
    let after = counts(&data);
    assert_eq!(after.initial, before.initial);
    // The job's mark may lie in a block that was not in use, and so is not in the first pass.
    assert!(after.dirty <= BLOCK + RECORD);
    let stream = read_all(&data, 4096);
    let fresh = own_state(&guest.device)[5 * BLOCK as usize..6 * BLOCK as usize].to_vec();
    let times = stream.windows(fresh.len()).filter(|window| **window == fresh).count();
    assert_eq!(times, 1);
}

#[test]
fn a_block_that_changes_while_it_is_read_is_sent_whole_as_it_was_and_again_as_it_is() {
    let memory = Memory::new();
    let mut guest = device(&memory);
    let block = |guest: &Guest| own_state(&guest.device)[4 * BLOCK as usize..5 * BLOCK as usize].to_vec();
    let old = block(&guest);
    let data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
    // Up to the middle of block 4, which the scramble has made unlike all else.
    let mut stream = Vec::new();
    while !stream.ends_with(&old[..100]) {
        let mut byte = [0];
        assert_eq!(data.read(&mut byte), Ok(1));
        stream.extend(byte);
    }
    guest.execute(&Descriptor::scramble(3, 4 * BLOCK, BLOCK, 99));
    stream.extend(read_all(&data, 10));
    let new = block(&guest);
    assert_ne!(old, new);
    let find = |wanted: &[u8]| stream.windows(wanted.len()).position(|window| window == wanted);
    let (old_at, new_at) = (find(&old).expect("the old block"), find(&new).expect("the new block"));
    assert!(old_at < new_at);
}

#[test]
fn a_block_that_changes_all_the_time_does_not_keep_others_waiting() {
    let memory = Memory::new();
    let mut guest = device(&memory);
    let data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
    read_all(&data, 4096);
    guest.execute(&Descriptor::scramble(3, 0, STATE, 1));
    let mut sent = Vec::new();
    for tag in 4..68 {
        let mut record = vec![0; (BLOCK + RECORD) as usize];
        assert_eq!(data.read(&mut record), Ok(record.len()));
        sent.push(u64::from_ne_bytes(record[8..16].try_into().unwrap()));
        guest.execute(&Descriptor::scramble(tag, 0, BLOCK, tag));
    }
    assert_eq!(sent, (0..64).collect::<Vec<u64>>());
}

#[test]
fn the_data_size_is_what_stop_copy_yields() {
    let memory = Memory::new();
    let mut guest = device(&memory);
    let whole = guest.device.mig_data_size().unwrap();
    let data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
    assert_eq!(guest.device.mig_data_size(), Ok(whole));
    data.read(&mut [0; 1000]).unwrap();
    assert_eq!(guest.device.mig_data_size(), Ok(whole - 1000));
    read_all(&data, 4096);
    guest.execute(&Descriptor::scramble(3, 0, STATE, 1));
    guest.device.set_mig_state(State::StopCopy).unwrap();
    let left = guest.device.mig_data_size().unwrap();
    assert!(left > 64 * (BLOCK + RECORD));
    assert_eq!(read_all(&data, 999).len() as u64, left);
    assert_eq!(guest.device.mig_data_size(), Ok(0));
    guest.device.set_mig_state(State::Stop).unwrap();
    let whole = guest.device.mig_data_size().unwrap();
    assert_eq!(save(&guest.device).len() as u64, whole);
}

#[test]
fn the_state_has_its_size_from_power_on_on() {
    let memory = Memory::new();
    for state_bytes in [1 << 10, 5000, 4 << 20, 4 << 30, 64 << 30] {
        let size = memory.device(config(state_bytes)).mig_data_size().unwrap();
        assert!(size > state_bytes && size < state_bytes + state_bytes / 2, "{state_bytes}: {size}");
    }
    let device = memory.device(config(4 << 20));
    let state = own_state(&device);
    assert!(state.chunks(8).all(|word| word != [0; 8]));
    let size = device.mig_data_size().unwrap();
    let stream = save(&device);
    assert_eq!(stream.len() as u64, size);
    let destination = memory.device(config(4 << 20));
    load(&destination, &stream, 1 << 20);
    assert!(own_state(&destination) == state);
}

/// Streams that earlier versions wrote of devices that had done nothing, all of whose blocks were zero.
const EMPTY: [(u64, &[u8]); 3] = [
    (1 << 10, include_bytes!("streams/empty-1KiB.bin")),
    (1 << 30, include_bytes!("streams/empty-1GiB.bin")),
    (64 << 30, include_bytes!("streams/empty-64GiB.bin")),
];

#[test]
fn a_stream_with_runs_of_zeros_loads_and_is_saved_as_it_was() {
    let memory = Memory::new();
    for (state_bytes, stream) in EMPTY {
        let device = memory.device(config(state_bytes));
        load(&device, stream, 100);
        let mut last = [1; 8];
        device.read_region(2, state_bytes - 8, &mut last).unwrap();
        assert_eq!(last, [0; 8]);
        assert_eq!(device.mig_data_size(), Ok(stream.len() as u64));
        assert_eq!(save(&device), stream, "{state_bytes}");
    }
}

#[test]
fn every_state_size_moves() {
    for state_bytes in [1024, 1032, 5000, 65536 + 8, (1 << 20) - 8] {
        let memory = Memory::new();
        let mut guest = Guest::start(&memory, memory.device(config(state_bytes)), 4);
        guest.execute(&Descriptor::scramble(1, state_bytes / 16 * 8, state_bytes / 2 / 8 * 8, 4));
        guest.execute(&Descriptor::scramble(2, state_bytes - 8, 8, 4));
        let destination = memory.device(config(state_bytes));
        let size = guest.device.mig_data_size().unwrap();
        let stream = save(&guest.device);
        assert_eq!(stream.len() as u64, size, "{state_bytes}");
        load(&destination, &stream, 1000);
        assert!(own_state(&destination) == own_state(&guest.device), "{state_bytes}");
    }
}

/// What a device holds, to compare with.
fn contents(device: &DeviceFile) -> (Vec<u8>, [u8; 0x100]) {
    (own_state(device), registers(device))
}

/// A small stream with a job in the middle, and what it holds.
fn small_stream() -> (Vec<u8>, (Vec<u8>, [u8; 0x100])) {
    let memory = Memory::new();
    let mut guest = Guest::start(&memory, memory.device(config(1024)), 4);
    guest.execute(&Descriptor::scramble(1, 256, 8, 3));
    guest.submit(&Descriptor::fill(2, DATA, 3 * SLICE_BYTES, 1));
    guest.device.advance(Duration::ZERO);
    let stream = save(&guest.device);
    (stream, contents(&guest.device))
}

/// The stream that an earlier version wrote of that device.
const IN_A_JOB: &[u8] = include_bytes!("streams/job-1KiB.bin");

#[test]
fn a_stream_of_a_device_in_a_job_loads_and_is_saved_as_it_was() {
    let memory = Memory::new();
    let device = memory.device(config(1024));
    load(&device, IN_A_JOB, 100);
    assert_eq!(save(&device), IN_A_JOB);
}

#[test]
fn a_stream_cut_short_anywhere_is_refused_until_the_rest_comes() {
    let (stream, contents_of_it) = small_stream();
    let memory = Memory::new();
    for length in 0..stream.len() {
        let device = memory.device(config(1024));
        let data = resuming(&device);
        assert_eq!(data.write(&stream[..length]), Ok(length));
        assert_eq!(device.set_mig_state(State::Stop).unwrap_err(), Errno::EINVAL, "{length} bytes");
        assert_eq!(device.mig_state(), Ok(State::Resuming));
        assert_eq!(data.write(&stream[length..]), Ok(stream.len() - length));
        device.set_mig_state(State::Stop).unwrap();
        assert!(contents(&device) == contents_of_it);
    }
}

#[test]
fn a_stream_with_any_bit_flipped_is_refused() {
    let (stream, _) = small_stream();
    let memory = Memory::new();
    for at in 0..stream.len() * 8 {
        let mut spoiled = stream.clone();
        spoiled[at / 8] ^= 1 << (at % 8);
        let device = memory.device(config(1024));
        let data = resuming(&device);
        // A length that has shrunk may leave bytes past an end that is wrong already; one that has grown
        // swallows it.
        let _ = data.write(&spoiled);
        assert_eq!(device.set_mig_state(State::Stop).unwrap_err(), Errno::EINVAL, "bit {at}");
    }
}

#[test]
fn a_refused_stream_poisons_the_load_until_a_reset() {
    let (mut stream, _) = small_stream();
    let middle = stream.len() / 2;
    stream[0] ^= 1;
    let memory = Memory::new();
    let device = memory.device(config(1024));
    let data = resuming(&device);
    assert_eq!(data.write(&stream[..1]), Err(Errno::EINVAL), "at the first byte that is wrong");
    stream[0] ^= 1;
    assert_eq!(data.write(&stream), Err(Errno::EINVAL), "also the right stream comes too late");
    for _ in 0..2 {
        assert_eq!(device.set_mig_state(State::Running).unwrap_err(), Errno::EINVAL);
        assert_eq!(device.mig_state(), Ok(State::Resuming));
    }
    device.reset().unwrap();
    assert_eq!(data.write(&stream), Err(Errno::ENODEV));
    load(&device, &stream, middle);
}

#[test]
fn a_load_that_fails_leaves_nothing_behind() {
    let (stream, _) = small_stream();
    let memory = Memory::new();
    let device = memory.device(config(1024));
    resuming(&device).write(&stream[..stream.len() - 1]).unwrap();
    device.reset().unwrap();
    assert!(contents(&device) == contents(&memory.device(config(1024))));
}

#[test]
fn the_state_of_a_device_of_another_size_is_refused_in_its_head() {
    let memory = Memory::new();
    for (from, to) in [(1024, 1032), (1 << 20, 2 << 20), (64 << 30, 1 << 10)] {
        let mut stream = [0; 64];
        let saving = memory.device(config(from)).set_mig_state(State::StopCopy).unwrap().unwrap();
        assert_eq!(saving.read(&mut stream), Ok(stream.len()));
        let data = resuming(&memory.device(config(to)));
        let refused = stream.iter().position(|byte| data.write(&[*byte]).is_err());
        assert!(refused.is_some_and(|at| at < 32), "{from} into {to}: {refused:?}");
    }
}

#[test]
fn bytes_past_the_end_are_refused_and_the_load_still_succeeds() {
    let (stream, contents_of_it) = small_stream();
    let memory = Memory::new();
    let device = memory.device(config(1024));
    let data = resuming(&device);
    assert_eq!(data.write(&[&stream[..], b"more"].concat()), Ok(stream.len()), "what belongs to it is taken");
    assert_eq!(data.write(b"more"), Err(Errno::ENOMEM));
    device.set_mig_state(State::Stop).unwrap();
    assert!(contents(&device) == contents_of_it);
}

/// What happens in a pre-copy phase.
#[derive(Clone, Copy, Debug)]
enum Event {
    Read(usize),
    Scramble {
        offset: u64,
        length: u64,
        seed: u64,
    },
    /// The state changes by itself for so many milliseconds.
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1usize..600).prop_map(Event::Read),
        (0..STATE / 8, 1u64..200, any::<u64>()).prop_map(|(word, words, seed)| {
            let offset = word * 8;
            Event::Scramble { offset, length: (words * 8).min(STATE - offset), seed }
        }),
        (1u64..40).prop_map(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn however_it_is_read_while_it_changes_it_arrives_as_it_was_when_it_stopped(
        events in proptest::collection::vec(event(), 0..60),
        read_cut in 1usize..2000,
        write_cut in 1usize..2000,
    ) {
        let memory = Memory::new();
        let config = config(STATE).state_rate(64 << 10);
        let mut guest = Guest::start(&memory, memory.device(config), 4);
        guest.execute(&Descriptor::scramble(1, 0, STATE / 2, 1));
        let data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
        let mut stream = Vec::new();
        let mut now = Duration::ZERO;
        let mut last_initial = counts(&data).initial;
        for (tag, event) in (2..).zip(events) {
            match event {
                Event::Read(count) => {
                    let before = counts(&data);
                    let mut part = vec![0; count];
                    let read = match data.read(&mut part) {
                        Ok(read) => read,
                        Err(errno) => {
                            prop_assert_eq!(errno, Errno::ENOMSG);
                            0
                        }
                    };
                    prop_assert_eq!(read as u64, before.total().min(count as u64));
                    let initial = before.initial.saturating_sub(read as u64);
                    prop_assert_eq!(counts(&data).initial, initial);
                    stream.extend_from_slice(&part[..read]);
                }
                Event::Scramble { offset, length, seed } => {
                    guest.execute(&Descriptor::scramble(tag, offset, length, seed));
                }
                Event::Pass(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    guest.device.advance(now);
                }
            }
            prop_assert!(counts(&data).initial <= last_initial, "initial bytes never rise");
            last_initial = counts(&data).initial;
        }
        guest.device.set_mig_state(State::StopCopy).unwrap();
        let left = guest.device.mig_data_size().unwrap();
        let rest = read_all(&data, read_cut);
        prop_assert_eq!(rest.len() as u64, left);
        stream.extend(rest);
        let destination = memory.device(config);
        load(&destination, &stream, write_cut);
        prop_assert!(contents(&destination) == contents(&guest.device));
    }

    #[test]
    fn no_bytes_but_a_stream_are_taken_for_one(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        keep in 0usize..400,
    ) {
        let (stream, _) = small_stream();
        let mut mixed = stream[..keep.min(stream.len() - 1)].to_vec();
        mixed.extend(&bytes);
        prop_assume!(mixed != stream);
        let device = Memory::new().device(config(1024));
        let data = resuming(&device);
        let _ = data.write(&mixed);
        prop_assert_eq!(device.set_mig_state(State::Stop).unwrap_err(), Errno::EINVAL);
    }
}
