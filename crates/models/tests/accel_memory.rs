//! How much memory an engine with a large, nearly empty state takes while it moves. A test program of its
//! own, because what it looks at is the peak of the whole process.
// Also the functions beside the tests are tests.
#![allow(clippy::unwrap_used)]

use std::fs::File;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{DeviceFile, Next, State};
use whimbrel_memory::FileOffset;
use whimbrel_models::accel::guest::{GuestDriver, Rings};
use whimbrel_models::accel::{self, Accel, AccelConfig, Descriptor};
use whimbrel_uapi::type1::DmaMapFlags;

const MIB: u64 = 1 << 20;

fn open(state_bytes: u64) -> DeviceFile {
    let config = AccelConfig::default().state_bytes(state_bytes);
    let device = DeviceFile::try_new("engine", |bus| Accel::new(config, bus)).unwrap();
    let memory = File::from(memfd_create(c"rings", MemfdFlags::empty()).unwrap());
    memory.set_len(0x2000).unwrap();
    let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    device.bus().dma().map(0, 0x2000, rights, FileOffset::new(memory, 0)).unwrap();
    device
}

/// Makes the state zero everywhere, by a stream of it that is next to nothing.
fn empty(device: &DeviceFile, stream: &[u8]) {
    let data = device.set_mig_state(State::Resuming).unwrap().unwrap();
    assert_eq!(data.write(stream), Ok(stream.len()));
    device.set_mig_state(State::Running).unwrap();
}

/// Writes 64 KiB of own state at each of these offsets.
fn scatter(device: &DeviceFile, offsets: &[u64]) {
    let mut driver = GuestDriver::start(device.clone(), Rings::new(0, 0x1000, 64)).unwrap();
    for offset in offsets {
        driver.put(&Descriptor::scramble(0, *offset, 64 << 10, *offset)).unwrap();
    }
    driver.ring().unwrap();
    while device.advance(std::time::Duration::ZERO) == Next::Now {}
    for offset in offsets {
        let done = driver.take_completion().unwrap().expect("a completion");
        assert_eq!(done.status, accel::STATUS_DONE, "at {offset:#x}");
    }
}

/// The most memory this process has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Moves a sparse state through PRE_COPY and back out, and says how many bytes the stream had.
fn round_trip(state_bytes: u64, nothing: &[u8]) -> u64 {
    let offsets: Vec<u64> = (0..16).map(|n| state_bytes / 16 * n).chain([state_bytes - (64 << 10)]).collect();
    let (source, destination) = (open(state_bytes), open(state_bytes));
    empty(&source, nothing);
    scatter(&source, &offsets);
    let saving = source.set_mig_state(State::PreCopy).unwrap().unwrap();
    let resuming = destination.set_mig_state(State::Resuming).unwrap().unwrap();
    let mut buffer = vec![0; MIB as usize];
    let mut bytes = 0;
    let mut pump = || {
        while let Ok(count @ 1..) = saving.read(&mut buffer) {
            assert_eq!(resuming.write(&buffer[..count]), Ok(count));
            bytes += count as u64;
        }
    };
    pump();
    source.set_mig_state(State::StopCopy).unwrap();
    pump();
    destination.set_mig_state(State::Stop).unwrap();
    for offset in offsets {
        let mut stretches = [vec![0; 64 << 10], vec![1; 64 << 10]];
        for (device, stretch) in [&source, &destination].into_iter().zip(&mut stretches) {
            device.read_region(accel::STATE_REGION_INDEX, offset, stretch).unwrap();
        }
        assert!(stretches[0] == stretches[1], "at {offset:#x}");
        assert!(stretches[0].iter().any(|byte| *byte != 0));
    }
    bytes
}

#[test]
fn a_state_of_64_gib_that_was_never_written_takes_no_memory_while_it_is_read() {
    let device = open(64 << 30);
    let data = device.set_mig_state(State::StopCopy).unwrap().unwrap();
    let mut buffer = vec![0; MIB as usize];
    for _ in 0..128 {
        assert_eq!(data.read(&mut buffer), Ok(buffer.len()));
    }
    assert!(peak() < 64 * MIB, "{} bytes at the peak", peak());
}

#[test]
fn a_sparse_state_of_1_gib_takes_memory_only_for_what_it_holds() {
    let bytes = round_trip(1 << 30, include_bytes!("models/accel/streams/empty-1GiB.bin"));
    assert!(bytes < 4 * MIB, "{bytes} bytes of stream");
    assert!(peak() < 64 * MIB, "{} bytes at the peak", peak());
}

#[test]
fn a_sparse_state_of_64_gib_takes_memory_only_for_what_it_holds() {
    let bytes = round_trip(64 << 30, include_bytes!("models/accel/streams/empty-64GiB.bin"));
    assert!(bytes < 4 * MIB, "{bytes} bytes of stream");
    assert!(peak() < 64 * MIB, "{} bytes at the peak", peak());
}
