//! DMA of the engine `accel` to shared memory of the program: in the program's process, and under `run`.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_memory::{FileOffset, Memory};
use whimbrel_models::Model;
use whimbrel_models::accel::guest::{GuestDriver, Platform, Rings};
use whimbrel_models::accel::{Descriptor, SLICE_BYTES};
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::kernel::Cdev;
use whimbrel_user::{Device, DmaRegion, Local};

use crate::{DEVICE, Way, lines, measurement, median};

const MODEL: &str = "accel?state=1MiB";
const WAYS: [Way; 2] = [Way::Bare, Way::Run(MODEL)];
const RUNS: usize = 7;
const ROUNDS: usize = 31;

/// Clear of what an IOMMU reserves.
const IOVA: u64 = 0x100_0000;
const MEMORY: u64 = 64 << 20;
const SOURCE: u64 = 1 << 20;
const DESTINATION: u64 = 32 << 20;
const BYTES: u64 = 16 << 20;
const ENTRIES: u32 = 128;
const COMPLETIONS: u64 = 0x2000;
const COMMAND: u64 = 0x04;
const BUS_MASTER: u16 = 0x0004;
/// The longest that the engine may take for jobs that it was given at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prints the rate of large copies and the time of a small job, in both ways.
pub(crate) fn measure() {
    let mut values = WAYS.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..RUNS {
        for (way, values) in WAYS.into_iter().zip(&mut values) {
            for ((_, value), values) in lines(measurement(way, "memory")).into_iter().zip(values) {
                values.push(value);
            }
        }
    }
    let [[copies, fills], [copies_under_run, fills_under_run]] = values.map(|values| values.map(median));
    println!(
        "copies of {} KiB, GB/s: in process {copies:.2}, run {copies_under_run:.2}, ratio {:.2}",
        SLICE_BYTES >> 10,
        copies_under_run / copies
    );
    println!(
        "fills of 64 bytes, ns: in process {fills:.0}, run {fills_under_run:.0}, ratio {:.2}",
        fills_under_run / fills
    );
}

/// Measures the engine of this process, or the one that it is served.
pub(crate) fn inside() {
    match std::env::var_os(DEVICE) {
        Some(path) => time(Cdev::open(path).unwrap()),
        None => time(Local::new(MODEL.parse::<Model>().unwrap().open("engine").unwrap())),
    }
}

/// A device, and the memory that it shares with its driver.
struct Seat<D> {
    device: D,
    memory: DmaRegion,
}

impl<D: Device> Platform for Seat<D> {
    type Error = io::Error;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.device.read_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data).map_err(io::Error::other)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data).map_err(io::Error::other)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> io::Result<()> {
        self.memory.bytes(address - IOVA, data.len()).unwrap().copy_to(data);
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> io::Result<()> {
        self.memory.bytes(address - IOVA, data.len()).unwrap().copy_from(data);
        Ok(())
    }
}

fn time<D: Device>(mut device: D) {
    let file = File::from(memfd_create(c"memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY).unwrap();
    let memory = DmaRegion::from(Memory::of_file(FileOffset::new(file, 0), MEMORY, true).unwrap());
    let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    device.dma_map().unwrap().map_dma(IOVA, rights, memory.clone()).unwrap();
    let mut word = [0; 2];
    device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &mut word).unwrap();
    let word = u16::from_le_bytes(word) | BUS_MASTER;
    device.write_region(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &word.to_le_bytes()).unwrap();
    let seat = Seat { device, memory };
    let mut driver = GuestDriver::start(seat, Rings::new(IOVA, IOVA + COMPLETIONS, ENTRIES)).unwrap();
    let starts = (0..BYTES).step_by(SLICE_BYTES as usize);
    let copy = |at| Descriptor::copy(at, IOVA + SOURCE + at, IOVA + DESTINATION + at, SLICE_BYTES);
    let copies: Vec<Descriptor> = starts.map(copy).collect();
    let small = |tag| Descriptor::fill(tag, IOVA + DESTINATION, 64, tag);
    let fills: Vec<Descriptor> = (0..4096).map(small).collect();
    let (mut of_copies, mut of_fills) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        of_copies.push(BYTES as f64 / execute(&mut driver, &copies).as_secs_f64() / 1e9);
        of_fills.push(execute(&mut driver, &fills).as_nanos() as f64 / fills.len() as f64);
    }
    println!("copies {}\nfills {}", median(of_copies), median(of_fills));
}

/// Has the engine execute jobs, a ring of them at a time, and returns the time that they take.
fn execute<D: Device>(driver: &mut GuestDriver<Seat<D>>, jobs: &[Descriptor]) -> Duration {
    let begun = Instant::now();
    for jobs in jobs.chunks(ENTRIES as usize) {
        for job in jobs {
            driver.put(job).unwrap();
        }
        driver.ring().unwrap();
        for job in jobs {
            let completion = loop {
                if let Some(completion) = driver.take_completion().unwrap() {
                    break completion;
                }
                assert!(begun.elapsed() < PATIENCE, "the engine does not complete its jobs");
                std::thread::yield_now();
            };
            assert!(completion.is_success_of(job), "{completion:?}");
        }
    }
    begun.elapsed()
}
