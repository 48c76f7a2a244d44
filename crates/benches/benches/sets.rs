//! Migrations of sets: what a device costs, from 1 to 256 of them; and the memory that a migration takes beyond the guest's.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, NoCpuLog, Report, Source};
use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MIB: u64 = 1 << 20;
const DEVICES: [usize; 5] = [1, 4, 16, 64, 256];
const RUNS: usize = 7;

fn devices(count: usize, state: &str) -> Result<Vec<Box<dyn Migratable>>> {
    let model: Model = format!("accel?state={state}").parse()?;
    (0..count)
        .map(|index| Ok(Box::new(Local::new(model.open(format!("accel {index}"))?)) as Box<dyn Migratable>))
        .collect()
}

/// Migrates devices of the given state each, over loopback TCP, with memory or without.
fn migrate(count: usize, state: &str, memory: Option<[Arc<GuestMemoryMmap>; 2]>) -> Result<Report> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let left = TcpStream::connect(listener.local_addr()?)?;
    let right = listener.accept()?.0;
    let mut source = Source::new(devices(count, state)?);
    let mut destination = Destination::new(devices(count, state)?);
    if let Some([here, there]) = memory {
        source = source.memory(here, NoCpuLog);
        destination = destination.memory(there);
    }
    let receiver = std::thread::spawn(move || destination.receive(Stream::from(right)).result);
    let report = source.send(Stream::from(left)).result?;
    receiver.join().map_err(|_| "the destination has failed")??;
    Ok(report)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns this process's resident anonymous memory, in bytes.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Memory in a file of its own, so that it does not count as anonymous.
fn memory(size: u64, noise: bool) -> Result<Arc<GuestMemoryMmap>> {
    let file = tempfile::tempfile_in("/dev/shm")?;
    file.set_len(size)?;
    let file = vm_memory::FileOffset::new(file, 0);
    let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), size as usize, Some(file))])?;
    if noise {
        let block: Vec<u8> = (0..MIB / 8).flat_map(|word| (word * 0x9e37_79b9 + 1).to_le_bytes()).collect();
        for at in (0..size).step_by(MIB as usize) {
            memory.write_slice(&block, GuestAddress(at))?;
        }
    }
    Ok(Arc::new(memory))
}

/// Returns how much more anonymous memory this process has at its peak while `work` runs.
fn peak(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = resident()?;
    let ends = Arc::new(AtomicBool::new(false));
    let ended = ends.clone();
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        while !ended.load(Ordering::Relaxed) {
            peak = peak.max(resident().unwrap_or(0));
            std::thread::sleep(Duration::from_millis(1));
        }
        peak
    });
    let result = work();
    ends.store(true, Ordering::Relaxed);
    let peak = watcher.join().map_err(|_| "the watcher has failed")?;
    result.map(|()| peak.saturating_sub(before))
}

fn main() -> Result<()> {
    println!("| idle devices of 64 KiB | total, ms | per device, ms | downtime, ms | per device, ms |");
    println!("|---|---|---|---|---|");
    let mut all = DEVICES.map(|count| (count, Vec::new()));
    for _ in 0..RUNS {
        for (count, reports) in &mut all {
            reports.push(migrate(*count, "64KiB", None)?);
        }
    }
    for (count, reports) in &all {
        let total = median(reports.iter().map(|report| report.total_ms).collect());
        let downtime = median(reports.iter().map(|report| report.downtime_ms).collect());
        let each = |time: f64| time / *count as f64;
        println!("| {count} | {total:.2} | {:.3} | {downtime:.2} | {:.3} |", each(total), each(downtime));
    }

    let size = 2048 * MIB;
    let held = peak(|| migrate(4, "1MiB", Some([memory(size, true)?, memory(size, false)?])).map(|_| ()))?;
    println!(
        "\n2 GiB with 4 devices: {:.1} MiB on both sides beyond the guest's memory",
        held as f64 / MIB as f64
    );
    Ok(())
}
