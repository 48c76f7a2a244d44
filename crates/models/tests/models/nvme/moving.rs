//! Random I/O beside a shadow, while the device migrates back and forth.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use whimbrel_device::State;
use whimbrel_models::nvme::guest::{Command, FUA, ranges};

use super::device::{Data, Device, at_work};
use super::host::{BLOCK, Bench, DATA, Host, IMAGE, Memory, load, pattern, read_all};

/// Blocks that one slot uses; no two slots have one in common, so that the order of commands does not matter.
const SLOT_BLOCKS: u64 = 64;
const SLOTS: u64 = 24;
/// Bytes of memory of one slot.
const SLOT_BYTES: u64 = 0x1_0000;

/// A command in flight, and what is to be found after it.
#[derive(Debug)]
enum Flying {
    Read { at: u64, bytes: u64, expected: Vec<u8> },
    Change,
}

struct Traffic {
    rng: Rng,
    shadow: Vec<u8>,
    /// By command identifier: slot and command.
    flying: BTreeMap<u16, (u64, Flying)>,
    completed: usize,
}

impl Traffic {
    fn new(seed: u64) -> Traffic {
        let shadow = vec![0; IMAGE as usize];
        Traffic { rng: Rng::with_seed(seed), shadow, flying: BTreeMap::new(), completed: 0 }
    }

    /// Submits a command on a slot that has none in flight.
    fn submit(&mut self, host: &mut Host) {
        let slot = self.rng.u64(0..SLOTS);
        if self.flying.values().any(|(busy, _)| *busy == slot) {
            return;
        }
        let first = self.rng.u64(0..SLOT_BLOCKS - 1);
        let blocks = self.rng.u64(1..=SLOT_BLOCKS - first);
        let start = slot * SLOT_BLOCKS + first;
        let (at, bytes) = (DATA + slot * SLOT_BYTES + self.rng.u64(0..512) * 4, blocks * BLOCK);
        let span = (start * BLOCK) as usize..((start + blocks) * BLOCK) as usize;
        let (command, flying, bytes) = match self.rng.u32(0..8) {
            0..3 => {
                let data = pattern(self.rng.u64(..), bytes);
                host.memory.write(at, &data);
                self.shadow[span].copy_from_slice(&data);
                let bits = if self.rng.bool() { FUA } else { 0 };
                (Command::write(start, blocks as u32).with(bits), Flying::Change, bytes)
            }
            3..6 => {
                host.memory.write(at, &vec![0xee; bytes as usize]);
                let expected = self.shadow[span].to_vec();
                (Command::read(start, blocks as u32), Flying::Read { at, bytes, expected }, bytes)
            }
            6 => {
                self.shadow[span].fill(0);
                host.memory.write(at, &ranges(&[(start, blocks as u32)]));
                (Command::deallocate(1), Flying::Change, 16)
            }
            _ => {
                self.shadow[span].fill(0);
                (Command::write_zeroes(start, blocks as u32), Flying::Change, 0)
            }
        };
        let identifier = host.driver.submit(1, command, at, bytes).unwrap();
        assert!(self.flying.insert(identifier, (slot, flying)).is_none());
    }

    /// Takes all completions that have arrived. The driver refuses any that comes twice.
    fn reap(&mut self, host: &mut Host) {
        while let Some(end) = host.driver.take_completion(1).unwrap() {
            assert!(end.is_success(), "{end:?}");
            let (_, flying) = self.flying.remove(&end.identifier).unwrap();
            self.completed += 1;
            if let Flying::Read { at, bytes, expected } = flying {
                assert!(host.memory.read(at, bytes) == expected, "{at:#x}: {bytes} bytes");
            }
        }
    }
}

/// Requests a state until the injected faults of the way are used up.
fn insist(device: &Device, state: State) -> Option<Data> {
    (0..20).find_map(|_| device.set_mig_state(state).ok()).expect("faults end")
}

/// Brings the state of one device to the other, perhaps by way of pre-copy, a failure or a cancellation. Returns whether the
/// device has moved.
fn migrate(rng: &mut Rng, source: &Device, destination: &Device) -> bool {
    let mut stream = Vec::new();
    let precopy = rng.bool().then(|| source.set_mig_state(State::PreCopy).unwrap().unwrap());
    if let Some(data) = &precopy {
        stream.extend(read_all(data));
        match rng.u32(0..6) {
            0 => {
                source.set_mig_state(State::Running).unwrap();
                return false;
            }
            1 => drop(source.set_mig_state(State::PreCopyP2p).unwrap()),
            _ => {}
        }
    }
    let stopped = insist(source, State::StopCopy);
    stream.extend(read_all(&precopy.or(stopped).unwrap()));
    insist(destination, State::Stop);
    load(destination, &stream);
    if rng.u32(0..5) == 0 {
        // Cancelled at the last moment: the destination never runs.
        insist(source, State::Running);
        assert!(destination.set_mig_state(State::Running).is_err(), "the source has its image");
        destination.reset().unwrap();
        return false;
    }
    insist(destination, State::Running);
    assert!(source.set_mig_state(State::Running).is_err(), "the destination has its image");
    source.reset().unwrap();
    true
}

const FAULTS: &str = "arc PRE_COPY_P2P->STOP_COPY: EBUSY 5 times; arc RUNNING_P2P->STOP: EIO 5 times; \
                      arc STOP->RUNNING_P2P: EBUSY once";

#[test]
fn random_io_survives_a_hundred_migrations() {
    for (seed, memory) in [(1, Memory::new()), (2, Memory::remote())] {
        let bench = Bench::with(memory);
        let mut devices = [bench.device(), bench.device_of(bench.config(), FAULTS)];
        let mut host = bench.host_on(devices[0].clone(), 32);
        let mut traffic = Traffic::new(seed);
        let mut moves = 0;
        while moves < 100 {
            for _ in 0..traffic.rng.u32(1..12) {
                traffic.submit(&mut host);
            }
            for _ in 0..traffic.rng.u32(0..40) {
                host.device().advance(Duration::ZERO);
                if traffic.rng.bool() {
                    std::thread::yield_now();
                }
            }
            traffic.reap(&mut host);
            if migrate(&mut traffic.rng, &devices[0], &devices[1]) {
                moves += 1;
                devices.swap(0, 1);
                host.move_to(devices[0].clone());
            }
        }
        while !traffic.flying.is_empty() {
            host.device().advance(Duration::ZERO);
            traffic.reap(&mut host);
        }
        assert!(traffic.completed > 200, "{}", traffic.completed);
        assert!(bench.image() == traffic.shadow, "nothing is lost, and nothing is written twice");
    }
}

#[test]
fn a_device_with_a_worker_works_by_itself_and_migrates_under_load() {
    let bench = Bench::new();
    let mut working = [bench.device(), bench.device()].map(at_work);
    let mut host = bench.host_on(working[0].device().clone(), 32);
    let mut traffic = Traffic::new(3);
    for _ in 0..20 {
        let until = traffic.completed + 40;
        while traffic.completed < until {
            traffic.submit(&mut host);
            traffic.reap(&mut host);
        }
        if migrate(&mut traffic.rng, working[0].device(), working[1].device()) {
            working.swap(0, 1);
            host.move_to(working[0].device().clone());
        }
    }
    while !traffic.flying.is_empty() {
        traffic.reap(&mut host);
    }
    assert!(bench.image() == traffic.shadow);
}
