//! A device that works moves from one server to another, with the memory that it writes.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, NoCpuLog, Source, SourceOptions};
use whimbrel_models::accel::Descriptor;
use whimbrel_models::accel::guest::{GuestDriver, Progress, Rings};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Migratable, State};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::guest::Seat;
use super::messages::options;
use super::support::Served;

const SIZE: u64 = 16 << 20;
const RINGS: Rings = Rings::new(0, 0x8000, JOBS as u32);
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
        device.dma_map().unwrap().map_dma(0, rights, DmaRegion::from(region.get_mmap())).unwrap();
    }
}

/// A job that fills a piece of the memory behind [`DATA`]: together they fill all of it.
fn job(number: u64) -> Descriptor {
    let pattern = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Descriptor::fill(number, DATA + number * LENGTH, LENGTH, pattern)
}

fn seat<'a>(client: &'a mut Client, memory: &GuestMemoryMmap) -> Seat<'a> {
    Seat { client, memory: memory.iter().next().unwrap().get_mmap(), base: 0 }
}

/// Gives the engine all the jobs, and rings the doorbell.
fn start(client: &mut Client, memory: &GuestMemoryMmap) -> Progress {
    let mut driver = GuestDriver::start(seat(client, memory), RINGS).unwrap();
    for number in 0..JOBS {
        driver.put(&job(number)).unwrap();
    }
    driver.ring().unwrap();
    driver.progress()
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
    let progress = start(source.client(), &here_memory);

    let (left, right) = UnixStream::pair().unwrap();
    let options = SourceOptions::default().downtime_limit(Duration::from_mins(1));
    // Another handle to each client: the engine has it as long as the migration takes.
    let there = Destination::new(vec![Box::new(destination.client().clone())]);
    let there = there.memory(Arc::new(there_memory.clone()));
    let receiver = std::thread::spawn(|| there.receive(Stream::from(right)));
    let report = Source::new(vec![Box::new(source.client().clone())])
        .memory(Arc::new(here_memory.clone()), NoCpuLog)
        .options(options)
        .send(Stream::from(left))
        .result
        .unwrap();
    receiver.join().unwrap().result.unwrap();
    assert!(report.device_bytes > 0 && report.memory_bytes >= SIZE, "{report:?}");
    assert_eq!(source.client().state().unwrap(), State::Stop);
    assert_eq!(destination.client().state().unwrap(), State::Running);

    // Wherever the jobs were done, all of them are done in the memory that has moved.
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut driver = GuestDriver::resume(seat(destination.client(), &there_memory), RINGS, progress);
    for number in 0..JOBS {
        let done = loop {
            if let Some(done) = driver.take_completion().unwrap() {
                break done;
            }
            assert!(Instant::now() < deadline, "job {number} was not done");
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(driver.verify(&job(number), &done).unwrap(), "job {number}");
    }
    assert_eq!(destination.client().unmap_dma(0, SIZE).unwrap(), SIZE);
}
