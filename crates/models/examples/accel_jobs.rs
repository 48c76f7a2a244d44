//! Throughput of the engine's jobs on memory that is mapped, compared with a plain copy of the same bytes.
//!
//! `cargo run --release -p whimbrel-models --example accel_jobs`

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::time::{Duration, Instant};

use whimbrel_device::{DeviceFile, Next};
use whimbrel_memory::FileOffset;
use whimbrel_models::accel::guest::{GuestDriver, Rings};
use whimbrel_models::accel::{Accel, AccelConfig, Descriptor, SLICE_BYTES};
use whimbrel_uapi::type1::DmaMapFlags;

const MEMORY: u64 = 64 << 20;
const SOURCE: u64 = 1 << 20;
const DESTINATION: u64 = 32 << 20;
const BYTES: u64 = 16 << 20;
const SMALL_JOBS: u64 = 4096;
const ROUNDS: usize = 31;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Has the engine execute jobs, and returns the time that they take, as the device's own thread would spend it.
fn time(driver: &mut GuestDriver<DeviceFile>, jobs: &[Descriptor]) -> Result<Duration, Box<dyn Error>> {
    let mut spent = Duration::ZERO;
    for jobs in jobs.chunks(128) {
        for job in jobs {
            driver.put(job)?;
        }
        driver.ring()?;
        let begun = Instant::now();
        while driver.platform().advance(Duration::ZERO) == Next::Now {}
        spent += begun.elapsed();
        for _ in jobs {
            driver.take_completion()?.ok_or("a job was not done")?;
        }
    }
    Ok(spent)
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = AccelConfig::default().state_bytes(1 << 20);
    let device = DeviceFile::try_new("engine", |bus| Accel::new(config, bus))?;
    let memory = File::from(rustix::fs::memfd_create(c"memory", rustix::fs::MemfdFlags::empty())?);
    memory.set_len(MEMORY)?;
    device.bus().dma().map(0, MEMORY, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(memory, 0))?;
    let mut driver = GuestDriver::start(device, Rings::new(0, 0x2000, 128))?;

    let starts = (0..BYTES).step_by(SLICE_BYTES as usize);
    let copies: Vec<Descriptor> =
        starts.map(|at| Descriptor::copy(at, SOURCE + at, DESTINATION + at, SLICE_BYTES)).collect();
    let small: Vec<Descriptor> =
        (0..SMALL_JOBS).map(|tag| Descriptor::fill(tag, DESTINATION, 64, tag)).collect();
    let (source, mut copy, mut buffer) =
        (vec![1; BYTES as usize], vec![0; BYTES as usize], vec![0; SLICE_BYTES as usize]);
    let (mut of_copies, mut of_small, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        of_copies.push(time(&mut driver, &copies)?);
        of_small.push(time(&mut driver, &small)?);
        let begun = Instant::now();
        for (from, to) in source.chunks(buffer.len()).zip(copy.chunks_mut(buffer.len())) {
            // The engine has a buffer between the two.
            buffer.copy_from_slice(black_box(from));
            to.copy_from_slice(black_box(&buffer));
        }
        plain.push(begun.elapsed());
    }
    let [of_copies, of_small, plain] = [of_copies, of_small, plain].map(median);
    let rate = |time: Duration| BYTES as f64 / time.as_secs_f64() / 1e9;
    println!("copies of {} KiB: {:.2} GB/s", SLICE_BYTES >> 10, rate(of_copies));
    println!("(plain copies through a buffer: {:.2} GB/s)", rate(plain));
    println!("fills of 64 bytes: {:.0} ns each", of_small.as_nanos() as f64 / SMALL_JOBS as f64);
    Ok(())
}
