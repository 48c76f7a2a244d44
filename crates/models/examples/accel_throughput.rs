//! Save and load throughput of the engine's state, compared with a plain copy of the same bytes and their checksum.
//!
//! `cargo run --release -p whimbrel-models --example accel_throughput [MiB of state]`

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::time::{Duration, Instant};

use whimbrel_device::{DeviceFile, Next, State};
use whimbrel_memory::FileOffset;
use whimbrel_models::accel::guest::{GuestDriver, Rings};
use whimbrel_models::accel::{Accel, AccelConfig, Descriptor, MAX_LENGTH};
use whimbrel_uapi::type1::DmaMapFlags;

const BUFFER: usize = 1 << 20;
const ROUNDS: usize = 5;

fn open(config: AccelConfig) -> Result<DeviceFile, Box<dyn Error>> {
    let device = DeviceFile::try_new("engine", |bus| Accel::new(config, bus))?;
    let memory = File::from(rustix::fs::memfd_create(c"rings", rustix::fs::MemfdFlags::empty())?);
    memory.set_len(0x3000)?;
    let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    device.bus().dma().map(0, 0x3000, rights, FileOffset::new(memory, 0))?;
    Ok(device)
}

/// Gives every block of the own state some contents.
fn fill(device: &DeviceFile, state_bytes: u64) -> Result<(), Box<dyn Error>> {
    let mut driver = GuestDriver::start(device.clone(), Rings::new(0, 0x2000, 128))?;
    for offset in (0..state_bytes).step_by(MAX_LENGTH as usize) {
        driver.put(&Descriptor::scramble(0, offset, MAX_LENGTH.min(state_bytes - offset), offset))?;
    }
    driver.ring()?;
    while device.advance(Duration::ZERO) == Next::Now {}
    Ok(())
}

fn report(what: &str, bytes: usize, best: Duration) {
    println!("{what:<34} {:6.2} GB/s", bytes as f64 / best.as_secs_f64() / 1e9);
}

fn main() -> Result<(), Box<dyn Error>> {
    let mebibytes = std::env::args().nth(1).map_or(Ok(512), |argument| argument.parse::<u64>())?;
    let config = AccelConfig::default().state_bytes(mebibytes << 20);
    let source = open(config)?;
    fill(&source, config.state_bytes)?;

    let mut stream = vec![0; source.mig_data_size()? as usize];
    let mut best_read = Duration::MAX;
    for _ in 0..ROUNDS {
        let data = source.set_mig_state(State::StopCopy)?.ok_or("no session")?;
        let mut buffer = vec![0; BUFFER];
        let (mut at, mut spent) = (0, Duration::ZERO);
        loop {
            let begun = Instant::now();
            let count = data.read(&mut buffer)?;
            spent += begun.elapsed();
            if count == 0 {
                break;
            }
            stream[at..at + count].copy_from_slice(&buffer[..count]);
            at += count;
        }
        assert_eq!(at, stream.len());
        best_read = best_read.min(spent);
        source.set_mig_state(State::Stop)?;
    }

    let destination = open(config)?;
    let (mut best_first, mut best_write) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        let data = destination.set_mig_state(State::Resuming)?.ok_or("no session")?;
        let begun = Instant::now();
        for part in stream.chunks(BUFFER) {
            data.write(part)?;
        }
        best_first = best_first.min(begun.elapsed());
        destination.set_mig_state(State::Stop)?;
    }
    // The same without the kernel's part of it: blocks that are sent a second time have their pages already.
    // An empty state has one record in place of all blocks: the rest is head and closing records.
    let (head, record) = (32, 16);
    let closing = open(config)?.mig_data_size()? as usize - head - record;
    let all_blocks = stream.len() - closing;
    let data = destination.set_mig_state(State::Resuming)?.ok_or("no session")?;
    data.write(&stream[..all_blocks])?;
    let again: Vec<u8> = stream[head..all_blocks].to_vec();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for part in again.chunks(BUFFER) {
            data.write(part)?;
        }
        best_write = best_write.min(begun.elapsed());
    }

    let mut copy = vec![0; BUFFER];
    let (mut best_copy, mut best_checksum) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for part in stream.chunks(BUFFER) {
            copy[..part.len()].copy_from_slice(part);
            black_box(&copy);
        }
        best_copy = best_copy.min(begun.elapsed());
        let begun = Instant::now();
        black_box(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &stream));
        best_checksum = best_checksum.min(begun.elapsed());
    }

    println!("{mebibytes} MiB of state, {} KiB at a time, best of {ROUNDS}", BUFFER >> 10);
    report("read", stream.len(), best_read);
    report("write into an empty device", stream.len(), best_first);
    report("write over what is there", again.len(), best_write);
    report("(a plain copy of the same bytes)", stream.len(), best_copy);
    report("(their checksum alone)", stream.len(), best_checksum);
    Ok(())
}
