//! The accuracy of `SourceOptions::bandwidth`: memory full of noise migrates over loopback TCP with a limit, over 1 and 4
//! connections, with TLS and without. A relay in front of the destination counts the bytes of all connections as they arrive.
//!
//! The bytes are those of the TCP streams: frames, and with TLS its records. The rate is that between the first and the last
//! hundredth of them; beside it are the second with most and the one with least of them.
//!
//! `WHIMBREL_BENCH_SECONDS` (10) is how long each migration sends.

#[path = "../certificates/mod.rs"]
#[allow(dead_code, reason = "only a part of it is needed here")]
mod certificates;
mod relay;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::{Arrivals, relay};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use whimbrel_engine::channel::{Address, Connector, Listener, Tls, Until, connect};
use whimbrel_engine::{Destination, NoCpuLog, Source, SourceOptions};
use whimbrel_models::Model;
use whimbrel_user::Local;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MIB: u64 = 1 << 20;
/// Bytes per second.
const LIMITS: [u64; 3] = [MIB, 16 * MIB, 100 * MIB];
const CHANNELS: [u32; 2] = [1, 4];
/// Timeout for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

fn memory(size: u64, has_noise: bool) -> Result<Arc<GuestMemoryMmap>> {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)])?;
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; MIB as usize];
    for at in (0..size).step_by(MIB as usize).take_while(|_| has_noise) {
        for part in block.chunks_exact_mut(8) {
            // xorshift64, which is never zero and does not compress.
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            part.copy_from_slice(&word.to_ne_bytes());
        }
        memory.write_slice(&block, GuestAddress(at))?;
    }
    Ok(Arc::new(memory))
}

fn device() -> Result<Local> {
    Ok(Local::new("accel?state=64KiB".parse::<Model>()?.open("accel")?))
}

/// Migrates so much memory with a limit, and returns what arrived.
fn migrate(size: u64, limit: u64, channels: u32, tls: Option<&Tls>) -> Result<Arrivals> {
    let mut listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
    if let Some(tls) = tls {
        listener = listener.tls(tls.clone())?;
    }
    let (address, arrivals) = relay(&listener.address().to_string())?;
    let there = memory(size, false)?;
    let arriving = Destination::new(vec![Box::new(device()?)]).memory(there);
    let receiver = std::thread::spawn(move || {
        let accepted =
            arriving.accept(&mut listener, Until::timeout(PATIENCE)).map_err(|error| error.to_string())?;
        arriving.receive_accepted(accepted).result.map_err(|error| error.to_string())
    });
    let limit = NonZeroU64::new(limit).ok_or("no limit")?;
    let options = SourceOptions::default().bandwidth(limit).channels(channels).downtime_limit(PATIENCE * 10);
    let address: Address = address.parse()?;
    let connector = Connector::new(address.clone());
    let source =
        Source::new(vec![Box::new(device()?)]).memory(memory(size, true)?, NoCpuLog).options(options);
    let stream = connect(&address, Until::timeout(PATIENCE))?;
    let sent = match tls {
        None => source.connector(connector).send(stream),
        Some(tls) => {
            let stream = tls.connect(stream, &address, Until::timeout(PATIENCE))?;
            source.connector(connector.tls(tls.clone())).send(stream)
        }
    };
    let report = sent.result?;
    receiver.join().map_err(|_| "the destination has failed")??;
    if report.lanes.len() != channels as usize {
        return Err(format!("{} connections", report.lanes.len()).into());
    }
    Ok(arrivals)
}

fn main() -> Result<()> {
    let seconds: u64 = match std::env::var("WHIMBREL_BENCH_SECONDS") {
        Ok(text) => text.parse()?,
        Err(_) => 10,
    };
    let folder = tempfile::tempdir()?;
    let tls = certificates::write(folder.path())?;
    println!("bytes of the TCP streams as they arrive, {seconds} s of memory\n");
    println!("| limit, MiB/s | connections | MiB/s | off | most in a second | least in a second |");
    println!("|---|---|---|---|---|---|");
    for limit in LIMITS {
        for channels in CHANNELS {
            for tls in [None, Some(&tls)] {
                let began = Instant::now();
                let rates = migrate(limit * seconds, limit, channels, tls)?.rates();
                let off = |rate: f64| format!("{:+.1} %", (rate / limit as f64 - 1.0) * 100.0);
                println!(
                    "| {} | {channels}{} | {:.2} | {} | {} | {} |",
                    limit / MIB,
                    if tls.is_some() { ", TLS" } else { "" },
                    rates.mean / MIB as f64,
                    off(rates.mean),
                    off(rates.most),
                    off(rates.least),
                );
                eprintln!("{:.1} s", began.elapsed().as_secs_f64());
            }
        }
    }
    Ok(())
}
