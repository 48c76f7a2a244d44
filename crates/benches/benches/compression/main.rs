//! A migration over slow links with compression, beside the same without, alternating in one run.
//!
//! The memory holds what a guest's does: libraries and programs of this machine page by page, a quarter of noise, as of what is
//! compressed or encrypted already, and a quarter of zeros. `WHIMBREL_BENCH_ROUNDS` (3) is the number of rounds.

#[path = "../prediction/link.rs"]
mod link;
#[allow(dead_code, reason = "other benchmarks use more of it")]
#[path = "../migration/processor.rs"]
mod processor;
#[path = "../prediction/writer.rs"]
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use link::link;
use vm_memory::{Bytes, GuestAddress};
use whimbrel_engine::channel::{Address, Connector, Listener, Stream, Until, connect};
use whimbrel_engine::{Destination, Report, Source, SourceOptions};
use whimbrel_models::Model;
use whimbrel_user::Local;
use writer::{Memory, Writer};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// The links: their names, throughput in bytes per second, and the memory to migrate.
const LINKS: [(&str, u64, usize); 3] =
    [("100 Mbit/s", 12_500_000, 64 * MIB), ("1 Gbit/s", 125_000_000, 256 * MIB), ("loopback", 0, 256 * MIB)];
/// The files that the memory holds.
const FOLDERS: [&str; 3] = ["/usr/lib", "/usr/bin", "/usr/share"];

fn device() -> Result<Local> {
    Ok(Local::new("accel?state=4MiB".parse::<Model>()?.open("accel")?))
}

/// Appends the files below a folder, each from a page on, until there are `most` bytes.
fn read_files(folder: &Path, most: usize, data: &mut Vec<u8>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.into_iter().filter(|path| !path.is_symlink()) {
        if data.len() >= most {
            return;
        }
        if path.is_dir() {
            read_files(&path, most, data);
        } else if let Ok(file) = std::fs::read(&path) {
            // A large file would be all that there is.
            data.extend_from_slice(&file[..file.len().min(4 * MIB)]);
            data.resize(data.len().next_multiple_of(PAGE), 0);
        }
    }
}

/// Returns the contents of the memory of a guest of this size.
fn contents(size: usize) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    for folder in FOLDERS {
        read_files(Path::new(folder), size / 2, &mut data);
    }
    if data.len() < size / 2 {
        return Err(format!("{} MiB of files in {FOLDERS:?}, too few", data.len() / MIB).into());
    }
    data.truncate(size / 2);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_ne_bytes()
    });
    data.extend(noise.take(size / 4 / 8).flatten());
    data.resize(size, 0);
    Ok(data)
}

fn memory(contents: &[u8]) -> Result<Arc<Memory>> {
    let memory = Memory::from_ranges(&[(GuestAddress(0), contents.len())])?;
    memory.write_slice(contents, GuestAddress(0))?;
    Ok(Arc::new(memory))
}

/// A finished migration, and the processor time of both sides and of the link.
struct Move {
    report: Report,
    processor: Duration,
}

/// Migrates the memory and a device over a link. The guest writes `rate` bytes per second.
fn migrate(contents: &[u8], throughput: u64, rate: u64, options: SourceOptions) -> Result<Move> {
    let (here, there) = (memory(contents)?, Memory::from_ranges(&[(GuestAddress(0), contents.len())])?);
    let there = Arc::new(there);
    let arriving = Destination::new(vec![Box::new(device()?)]).memory(there.clone());
    let guest = Writer::start(here.clone(), rate);
    let source = Source::new(vec![Box::new(device()?)]).memory(here.clone(), here.clone()).guest(guest);
    let source = source.options(options);
    let used = processor::own()?;
    let (sent, receiver) = if throughput == 0 {
        let mut listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
        let address: Address = listener.address().to_string().parse()?;
        let receiver = std::thread::spawn(move || {
            let accepted = arriving.accept(&mut listener, Until::timeout(Duration::from_secs(30)));
            accepted.map(|accepted| arriving.receive_accepted(accepted).result)
        });
        let stream = connect(&address, Until::timeout(Duration::from_secs(30)))?;
        (source.connector(Connector::new(address)).send(stream), receiver)
    } else {
        let (left, right) = link(throughput, Duration::from_micros(200))?;
        let receiver = std::thread::spawn(move || Ok(arriving.receive(Stream::from(right)).result));
        (source.send(Stream::from(left)), receiver)
    };
    let report = sent.result?;
    receiver.join().map_err(|_| "the destination has failed")???;
    let processor = processor::own_since(used)?;
    let (mut ours, mut theirs) = (vec![0; MIB], vec![0; MIB]);
    for at in (0..contents.len()).step_by(MIB) {
        here.read_slice(&mut ours, GuestAddress(at as u64))?;
        there.read_slice(&mut theirs, GuestAddress(at as u64))?;
        if ours != theirs {
            return Err(format!("the memory at {at:#x} differs").into());
        }
    }
    Ok(Move { report, processor })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints a row of medians, and returns the time.
fn print(what: &str, moves: &[Move], plain: Option<f64>) -> f64 {
    let of = |value: fn(&Report) -> f64| median(moves.iter().map(|moved| value(&moved.report)).collect());
    let processor = median(moves.iter().map(|moved| moved.processor.as_secs_f64()).collect());
    let total = of(|report| report.total_ms);
    println!(
        "| {what} | {:.2} | {} | {processor:.2} | {:.1} | {:.1} | {} | {:.1} | {:.1} |",
        total / 1e3,
        plain.map_or("1".into(), |plain| format!("**{:.2}**", total / plain)),
        of(|report| report.wire_bytes as f64) / MIB as f64,
        of(|report| (report.memory_bytes - report.zero_bytes + report.device_bytes) as f64) / MIB as f64,
        of(|report| f64::from(report.rounds)),
        of(|report| report.predicted_downtime_ms),
        of(|report| report.downtime_ms),
    );
    total
}

fn main() -> Result<()> {
    let rounds: usize = match std::env::var("WHIMBREL_BENCH_ROUNDS") {
        Ok(text) => text.parse()?,
        Err(_) => 3,
    };
    println!(
        "A half of files, a quarter of noise, a quarter of zeros; 4 MiB of state; medians of {rounds}\n"
    );
    println!(
        "| | seconds | to plain | processor, s | on the link, MiB | data, MiB | rounds | predicted, ms | downtime, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (name, throughput, size) in LINKS {
        let contents = contents(size)?;
        // A guest that writes as much as half of the link carries.
        for (guest, rate) in [("idle", 0), ("writes", throughput / 2)] {
            if throughput == 0 && guest == "writes" {
                continue;
            }
            let mut kinds =
                [("plain", 1, vec![]), ("compressed", 1, vec![]), ("compressed, 2 lanes", 2, vec![])];
            for _ in 0..rounds.max(1) {
                for (kind, channels, moves) in &mut kinds {
                    // One link has one connection.
                    if *channels > 1 && throughput != 0 {
                        continue;
                    }
                    let options = SourceOptions::default().compression(*kind != "plain").channels(*channels);
                    moves.push(migrate(&contents, throughput, rate, options)?);
                }
            }
            let mut plain = None;
            for (kind, _, moves) in kinds.iter().filter(|(_, _, moves)| !moves.is_empty()) {
                let total = print(&format!("{name}, guest {guest}, {kind}"), moves, plain);
                plain.get_or_insert(total);
            }
        }
    }
    Ok(())
}
