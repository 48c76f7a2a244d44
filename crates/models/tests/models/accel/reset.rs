//! A reset in the middle of pre-copy that keeps the session: what arrives is the state after the reset.

use std::time::Duration;

use proptest::prelude::*;
use whimbrel_device::{DeviceFile, Errno, ResetRule, State};
use whimbrel_models::accel::{self, Descriptor};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use super::guest::{BASE, DATA, Guest, MEMORY, Memory, config, load, own_state, read_all, registers, save};

const STATE: u64 = 256 << 10;

/// A device whose resets keep pre-copy.
fn keeping(memory: &Memory) -> DeviceFile {
    let device = memory.device(config(STATE));
    device.set_reset_rule(ResetRule::KeepsPrecopy).unwrap();
    device
}

#[test]
fn a_reset_in_precopy_is_a_reset_like_any_other_to_the_guest() {
    for state in [State::PreCopy, State::PreCopyP2p] {
        let memory = Memory::new();
        let mut guest = Guest::start(&memory, keeping(&memory), 8);
        guest.execute(&Descriptor::scramble(1, 0, STATE, 1));
        guest.put(&Descriptor::fill(2, DATA, 4 * accel::SLICE_BYTES, 5));
        guest.ring();
        let _data = guest.device.set_mig_state(state).unwrap().unwrap();
        guest.device.reset().unwrap();
        assert_eq!(guest.device.mig_state(), Ok(state));
        let fresh = memory.device(config(STATE));
        assert!(registers(&guest.device) == registers(&fresh), "{state}");
        assert!(own_state(&guest.device) == own_state(&fresh), "{state}");
        guest.device.advance(Duration::ZERO);
        assert_eq!(guest.get64(accel::REGISTER_COMPLETED), 0, "{state}: its jobs are gone");
    }
}

#[test]
fn only_what_a_reset_has_changed_is_sent_again_and_the_report_counts_it() {
    let memory = Memory::new();
    let mut guest = Guest::start(&memory, keeping(&memory), 8);
    guest.execute(&Descriptor::scramble(1, 0, STATE / 4, 1));
    let data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let first = read_all(&data, 4096).len() as u64;
    guest.device.reset().unwrap();
    let report = data.precopy_info().unwrap();
    assert!(!report.reinit);
    assert_eq!(report.bytes.initial, 0);
    let dirty = report.bytes.dirty;
    assert!(dirty > STATE / 4 && dirty < STATE / 2 && dirty < first, "{dirty} of {first}");
    assert_eq!(read_all(&data, 4096).len() as u64, dirty);
    assert_eq!(data.precopy_info().unwrap().bytes.dirty, 0);
    // Once more, and nothing has changed.
    guest.device.reset().unwrap();
    assert_eq!(data.precopy_info().unwrap().bytes.dirty, 0);
}

#[test]
fn all_of_a_state_that_was_loaded_changes() {
    let memory = Memory::new();
    let mut source = Guest::start(&memory, memory.device(config(STATE)), 8);
    source.execute(&Descriptor::scramble(1, 0, STATE / 2, 1));
    let device = keeping(&memory);
    load(&device, &save(&source.device), 1 << 20);
    device.set_mig_state(State::Running).unwrap();
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let mut stream = read_all(&data, 5000);
    device.reset().unwrap();
    assert!(data.precopy_info().unwrap().bytes.dirty > STATE);
    stream.extend(read_all(&data, 5000));
    device.set_mig_state(State::StopCopy).unwrap();
    stream.extend(read_all(&data, 5000));
    let there = memory.device(config(STATE));
    load(&there, &stream, 1 << 20);
    assert!(own_state(&there) == own_state(&memory.device(config(STATE))));
}

#[test]
fn the_log_goes_on_over_a_reset_that_keeps_precopy() {
    let memory = Memory::new();
    let mut guest = Guest::start(&memory, keeping(&memory), 8);
    let mut ranges = LoggingRanges::new(4096, 1).unwrap();
    ranges.push(BASE, MEMORY).unwrap();
    guest.device.dma_logging_start(&ranges).unwrap();
    guest.execute(&Descriptor::fill(1, DATA, 8, 1));
    let _data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
    guest.device.reset().unwrap();
    let mut words = vec![0; (MEMORY / 4096 / 64) as usize];
    guest.device.dma_logging_report(&mut DirtyReport::new(BASE, MEMORY, 4096, &mut words).unwrap()).unwrap();
    let page = ((DATA - BASE) / 4096) as usize;
    assert_eq!(words[page / 64] >> (page % 64) & 1, 1, "a page that was written before the reset");
    // The guest sets its device up again, and what that writes is logged too.
    let mut guest = Guest::start(&memory, guest.device.clone(), 8);
    guest.execute(&Descriptor::fill(1, DATA, 8, 1));
    words.fill(0);
    guest.device.dma_logging_report(&mut DirtyReport::new(BASE, MEMORY, 4096, &mut words).unwrap()).unwrap();
    assert_eq!(words[page / 64] >> (page % 64) & 1, 1);
    guest.device.set_mig_state(State::Running).unwrap();
    guest.device.reset().unwrap();
    let mut report = DirtyReport::new(BASE, MEMORY, 4096, &mut words).unwrap();
    assert_eq!(
        guest.device.dma_logging_report(&mut report),
        Err(Errno::EINVAL),
        "RUNNING: the kernel's rule"
    );
}

/// The stream of a device whose own state is all zeros, of which it leaves out every block.
fn zeros() -> Vec<u8> {
    const BLOCK: u64 = 256;
    const FINAL: u32 = 152;
    let record = |kind: u32, count: u32| [kind.to_ne_bytes(), count.to_ne_bytes(), [0; 4], [0; 4]].concat();
    let mut stream = b"WHBACCEL".to_vec();
    stream.extend([1u64.to_ne_bytes(), STATE.to_ne_bytes(), BLOCK.to_ne_bytes()].concat());
    stream.extend(record(2, (STATE / BLOCK) as u32));
    stream.extend(record(3, FINAL));
    stream.extend([0; FINAL as usize]);
    stream.extend(record(4, 16));
    stream.extend((stream.len() as u64).to_ne_bytes());
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &stream);
    stream.extend(checksum.to_ne_bytes());
    stream
}

#[test]
fn zeros_that_a_stream_left_out_are_sent_once_a_reset_has_changed_them() {
    let memory = Memory::new();
    let device = keeping(&memory);
    load(&device, &zeros(), 1 << 20);
    assert_eq!(own_state(&device), vec![0; STATE as usize]);
    device.set_mig_state(State::Running).unwrap();
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let mut stream = read_all(&data, 4096);
    assert!(stream.len() < 100, "they are left out");
    device.reset().unwrap();
    device.set_mig_state(State::StopCopy).unwrap();
    stream.extend(read_all(&data, 4096));
    let (there, fresh) = (memory.device(config(STATE)), memory.device(config(STATE)));
    load(&there, &stream, 1 << 20);
    assert!(own_state(&there) == own_state(&fresh));
}

/// What happens between two reads of pre-copy.
#[derive(Clone, Debug)]
enum Happening {
    Reset,
    Scramble { offset: u64, words: u64, seed: u64 },
    Read(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => Just(Happening::Reset),
        2 => (0..STATE / 8, 1..STATE / 32, any::<u64>())
            .prop_map(|(offset, words, seed)| Happening::Scramble { offset: offset * 8, words, seed }),
        3 => (1usize..100_000).prop_map(Happening::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whenever_it_is_reset_the_destination_has_the_state_at_the_stop(
        loaded in any::<bool>(),
        happenings in proptest::collection::vec(happening(), 1..12),
    ) {
        let memory = Memory::new();
        let device = keeping(&memory);
        if loaded {
            load(&device, &zeros(), 1 << 20);
            device.set_mig_state(State::Running).unwrap();
        }
        let mut guest = Guest::start(&memory, device, 8);
        let data = guest.device.set_mig_state(State::PreCopy).unwrap().unwrap();
        let mut stream = Vec::new();
        for happening in happenings {
            match happening {
                Happening::Reset => {
                    guest.device.reset().unwrap();
                    guest = Guest::start(&memory, guest.device.clone(), 8);
                }
                Happening::Scramble { offset, words, seed } => {
                    let length = (words * 8).min(STATE - offset);
                    guest.execute(&Descriptor::scramble(1, offset, length, seed));
                }
                Happening::Read(most) => {
                    let mut buffer = vec![0; most];
                    let before = data.precopy_info().unwrap().bytes;
                    if let Ok(count) = data.read(&mut buffer) {
                        stream.extend_from_slice(&buffer[..count]);
                        let after = data.precopy_info().unwrap().bytes;
                        prop_assert_eq!(before.total() - after.total(), count as u64);
                    }
                }
            }
        }
        guest.device.set_mig_state(State::StopCopy).unwrap();
        prop_assert_eq!(guest.device.mig_data_size().unwrap(), {
            let rest = read_all(&data, 70_000);
            stream.extend_from_slice(&rest);
            rest.len() as u64
        });
        let there = memory.device(config(STATE));
        load(&there, &stream, 1 << 20);
        prop_assert!(own_state(&there) == own_state(&guest.device));
        prop_assert!(registers(&there) == registers(&guest.device));
    }
}
