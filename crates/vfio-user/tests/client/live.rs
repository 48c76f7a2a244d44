//! A device that works moves from one server to another, with the memory that it writes.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_engine::{Destination, Link, NoCpuLog, Source, SourceOptions};
use whimbrel_models::accel;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaRegion, State};
use whimbrel_vfio_user::ClientOptions;

use crate::messages::options;
use crate::support::Served;

const SIZE: u64 = 16 << 20;
const COMPLETIONS: u64 = 0x8000;
const DATA: u64 = 1 << 20;
const JOBS: u64 = 128;
const LENGTH: u64 = 64 << 10;

fn memory(has_file: bool) -> GuestMemoryMmap {
    if !has_file {
        return GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE as usize)]).unwrap();
    }
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(SIZE).unwrap();
    let range = (GuestAddress(0), SIZE as usize, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

fn map(device: &mut dyn Device, memory: &GuestMemoryMmap) {
    for region in memory.iter() {
        let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
        device.map_dma(0, rights, DmaRegion::new(region.get_mmap())).unwrap();
    }
}

fn pattern(job: u64) -> u64 {
    (job + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Gives the engine jobs that fill all of the memory behind [`DATA`], piece by piece, and rings the doorbell.
fn start(device: &mut dyn Device, memory: &GuestMemoryMmap) {
    device.write_region(0, accel::REGISTER_QUEUE_SIZE, &(JOBS as u32).to_le_bytes()).unwrap();
    device.write_region(0, accel::REGISTER_QUEUE_BASE, &0_u64.to_le_bytes()).unwrap();
    device.write_region(0, accel::REGISTER_COMPLETION_BASE, &COMPLETIONS.to_le_bytes()).unwrap();
    device.write_region(0, accel::REGISTER_CONTROL, &accel::CONTROL_ENABLE.to_le_bytes()).unwrap();
    for job in 0..JOBS {
        let work = accel::Descriptor {
            operation: accel::OPERATION_FILL,
            tag: job,
            destination: DATA + job * LENGTH,
            length: LENGTH,
            pattern: pattern(job),
            ..accel::Descriptor::default()
        };
        memory.write_slice(zerocopy::IntoBytes::as_bytes(&work), GuestAddress(job * 64)).unwrap();
    }
    device.write_region(0, accel::REGISTER_TAIL, &(JOBS as u32).to_le_bytes()).unwrap();
}

#[test]
fn a_working_device_and_its_memory_move_from_one_server_to_another() {
    moves(&ClientOptions::default(), &ClientOptions::default(), true);
}

#[test]
fn a_working_device_moves_although_the_servers_must_ask_for_each_access_to_memory() {
    for has_twin in [true, false] {
        moves(&options(has_twin), &options(has_twin), false);
    }
}

/// Moves a device between servers with which so much was agreed on.
pub(crate) fn moves(from: &ClientOptions, to: &ClientOptions, has_file: bool) {
    let mut source = Served::with("accel?state=1MiB&rate=4MiB", from);
    let mut destination = Served::with("accel?state=1MiB", to);
    let (here_memory, there_memory) = (memory(has_file), memory(has_file));
    map(source.client(), &here_memory);
    map(destination.client(), &there_memory);
    start(source.client(), &here_memory);

    let (left, right) = UnixStream::pair().unwrap();
    let options = SourceOptions { downtime_limit: Duration::from_mins(1), ..SourceOptions::default() };
    let report = std::thread::scope(|scope| {
        let (there, memory) = (destination.client(), &there_memory);
        let receiver = scope.spawn(|| Destination::new(there).memory(memory).receive(Link::from(right)));
        let report = Source::new(source.client())
            .memory(&here_memory, NoCpuLog)
            .options(options)
            .send(Link::from(left))
            .unwrap();
        receiver.join().unwrap().unwrap();
        report
    });
    assert!(report.device_bytes > 0 && report.memory_bytes >= SIZE, "{report:?}");
    assert_eq!(source.client().state().unwrap(), State::Stop);
    assert_eq!(destination.client().state().unwrap(), State::Running);

    // Wherever the jobs were done, all of them are done in the memory that has moved.
    let patience = Instant::now() + Duration::from_mins(1);
    for job in 0..JOBS {
        let at = GuestAddress(DATA + job * LENGTH + LENGTH - 8);
        let last = || there_memory.read_obj::<u64>(at).unwrap();
        while last() != pattern(job) {
            assert!(Instant::now() < patience, "job {job} was not done");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut filled = vec![0; LENGTH as usize];
        there_memory.read_slice(&mut filled, GuestAddress(DATA + job * LENGTH)).unwrap();
        let expected = pattern(job).to_le_bytes();
        assert!(filled.chunks(8).all(|word| word == expected), "job {job}");
    }
    assert_eq!(destination.client().unmap_dma(0, SIZE).unwrap(), SIZE);
}
