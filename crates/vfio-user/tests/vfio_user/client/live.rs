//! A device that works moves from one server to another, with the memory that it writes.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, Guest, GuestError, NoCpuLog, NoGuest, Report, Source, SourceOptions};
use whimbrel_models::accel::guest::{GuestDriver, Progress, Rings};
use whimbrel_models::accel::{Descriptor, INTERRUPT_COMPLETION};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Migratable, State};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::guest::Seat;
use super::messages::options;
use super::setup::{MSI, set_up};
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

/// Waits until all jobs are done, and looks at what they have written.
fn assert_done(driver: &mut GuestDriver<Seat<'_>>) {
    let deadline = Instant::now() + Duration::from_mins(1);
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

/// The source's server does none of the work, so that all of it is done at the destination, where nobody touches the device.
#[test]
fn work_that_waits_at_the_source_ends_in_dma_and_an_interrupt_at_the_destination() {
    let model = "accel?state=4KiB&config=required";
    let (mut source, mut destination) = (Served::idle(model), Served::new(model));
    let (here, there) = (memory(true), memory(true));
    map(source.client(), &here);
    map(destination.client(), &there);
    let eventfds = [(); 2].map(|()| eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    for (client, eventfd) in [source.client(), destination.client()].into_iter().zip(&eventfds) {
        client.set_irq_triggers(MSI, 0, &[Some(eventfd.as_fd())]).unwrap();
    }
    set_up(source.client());
    let mut driver = GuestDriver::start(seat(source.client(), &here), RINGS).unwrap();
    driver.enable_interrupts(INTERRUPT_COMPLETION).unwrap();
    driver.submit(&job(0)).unwrap();
    let progress = driver.progress();

    migrate(&mut source, &mut destination, (&here, &there), NoGuest);
    let signalled = |eventfd, seconds| {
        let mut set = [PollFd::new(eventfd, PollFlags::IN)];
        poll(&mut set, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() == 1
    };
    assert!(signalled(&eventfds[1], 60), "no interrupt");
    let mut driver = GuestDriver::resume(seat(destination.client(), &there), RINGS, progress);
    let done = driver.take_completion().unwrap().expect("it has interrupted");
    assert!(driver.verify(&job(0), &done).unwrap(), "{done:?}");
    assert!(!signalled(&eventfds[0], 0), "the source did it");
}

/// An owner that lets its device do the waiting jobs once all memory was sent, and then unmaps the memory.
struct Unmaps {
    client: Client,
    memory: GuestMemoryMmap,
    progress: Progress,
}

impl Guest for Unmaps {
    fn pause(&mut self) -> Result<(), GuestError> {
        let mut driver = GuestDriver::resume(seat(&mut self.client, &self.memory), RINGS, self.progress);
        driver.ring()?;
        assert_done(&mut driver);
        assert_eq!(self.client.unmap_dma(0, SIZE)?, SIZE);
        Ok(())
    }
}

#[test]
fn pages_that_a_served_device_wrote_before_they_were_unmapped_arrive() {
    let model = "accel?state=4KiB";
    let (mut source, mut destination) = (Served::new(model), Served::new(model));
    let (here, there) = (memory(true), memory(true));
    map(source.client(), &here);
    map(destination.client(), &there);
    let mut driver = GuestDriver::start(seat(source.client(), &here), RINGS).unwrap();
    (0..JOBS).for_each(|number| driver.put(&job(number)).unwrap());
    let progress = driver.progress();
    let owner = Unmaps { client: source.client().clone(), memory: here.clone(), progress };
    let report = migrate(&mut source, &mut destination, (&here, &there), owner);
    assert_done(&mut GuestDriver::resume(seat(destination.client(), &there), RINGS, progress));
    // By the device's log: what was written was sent again, and not everything.
    let written = JOBS * LENGTH;
    assert!((SIZE + written..SIZE + written + 0x10000).contains(&report.memory_bytes), "{report:?}");
}

/// Migrates the device of one server to another, with its memory.
fn migrate(
    source: &mut Served,
    destination: &mut Served,
    (here, there): (&GuestMemoryMmap, &GuestMemoryMmap),
    guest: impl Guest + 'static,
) -> Report {
    let (left, right) = UnixStream::pair().unwrap();
    let options = SourceOptions::default().downtime_limit(Duration::from_mins(1));
    // Another handle to each client: the engine has it as long as the migration takes.
    let receiving = Destination::new(vec![Box::new(destination.client().clone())]);
    let receiving = receiving.memory(Arc::new(there.clone()));
    let receiver = std::thread::spawn(|| receiving.receive(Stream::from(right)));
    let report = Source::new(vec![Box::new(source.client().clone())])
        .memory(Arc::new(here.clone()), NoCpuLog)
        .guest(guest)
        .options(options)
        .send(Stream::from(left))
        .result
        .unwrap();
    receiver.join().unwrap().result.unwrap();
    report
}

/// Moves a device between servers with which so much was agreed on.
pub(crate) fn moves(from: &ClientOptions, to: &ClientOptions, has_file: bool) {
    let mut source = Served::with("accel?state=1MiB&rate=4MiB", from);
    let mut destination = Served::with("accel?state=1MiB", to);
    let (here_memory, there_memory) = (memory(has_file), memory(has_file));
    map(source.client(), &here_memory);
    map(destination.client(), &there_memory);
    let progress = start(source.client(), &here_memory);

    let report = migrate(&mut source, &mut destination, (&here_memory, &there_memory), NoGuest);
    assert!(report.device_bytes > 0 && report.memory_bytes >= SIZE, "{report:?}");
    assert_eq!(source.client().state().unwrap(), State::Stop);
    assert_eq!(destination.client().state().unwrap(), State::Running);

    // Wherever the jobs were done, all of them are done in the memory that has moved.
    assert_done(&mut GuestDriver::resume(seat(destination.client(), &there_memory), RINGS, progress));
    assert_eq!(destination.client().unmap_dma(0, SIZE).unwrap(), SIZE);
}
