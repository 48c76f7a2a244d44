//! The downtime that the engine predicts when it decides to stop, beside the one it then has: over the rate at which the
//! guest writes memory, and over the round-trip time of the link.
//!
//! The link has a throughput of its own, far below what this machine can do, so that a busy machine changes little.

mod link;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use link::link;
use vm_memory::{Bytes, GuestAddress};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, Report, Source};
use whimbrel_models::Model;
use whimbrel_user::Local;
use writer::{Memory, Writer};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 256 * MIB;
/// Bytes per second.
const LINK: u64 = 200 * MIB;
/// The guest's writes, in tenths of the link's throughput.
const RATES: [u64; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
/// Milliseconds.
const ROUND_TRIPS: [u64; 6] = [0, 10, 50, 100, 150, 200];

fn device() -> Result<Local> {
    Ok(Local::new("accel?state=4MiB".parse::<Model>()?.open("accel")?))
}

fn memory(noise: bool) -> Result<Arc<Memory>> {
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
    if noise {
        let block: Vec<u8> = (0..MIB / 8)
            .flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes())
            .collect();
        for at in (0..MEMORY).step_by(MIB as usize) {
            memory.write_slice(&block, GuestAddress(at))?;
        }
    }
    Ok(Arc::new(memory))
}

/// Migrates a device with memory that is written at `rate` bytes per second.
fn migrate(rate: u64, round_trip: Duration) -> Result<Report> {
    let (here, there) = (memory(true)?, memory(false)?);
    let (left, right) = link(LINK, round_trip / 2)?;
    let arriving = Destination::new(vec![Box::new(device()?)]).memory(there);
    let receiver = std::thread::spawn(move || arriving.receive(Stream::from(right)).result);
    let guest = Writer::start(here.clone(), rate);
    let sent = Source::new(vec![Box::new(device()?)]).memory(here.clone(), here).guest(guest);
    let report = sent.send(Stream::from(left)).result?;
    receiver.join().map_err(|_| "the destination has failed")??;
    Ok(report)
}

/// Prints one migration, and returns whether its prediction was within 15 % or 2 ms.
fn print(what: &str, report: &Report) -> bool {
    let (predicted, downtime) = (report.predicted_downtime_ms, report.downtime_ms);
    let off = predicted - downtime;
    let is_near = off.abs() <= 2.0 || off.abs() <= 0.15 * downtime;
    // What no migration over this link can be faster than.
    let least = report.final_bytes as f64 / LINK as f64 * 1e3;
    println!(
        "| {what} | {} | {predicted:.1} | {downtime:.1} | {:+.0} % | {} | {least:.1} | {} |",
        report.rounds,
        off / downtime * 100.0,
        if is_near { "yes" } else { "no" },
        // Without bytes there is nothing but round trips and transitions.
        if least >= 1.0 { format!("{:.2}", downtime / least) } else { "-".into() }
    );
    is_near
}

fn main() -> Result<()> {
    println!("256 MiB of memory, 4 MiB of state, a link of 200 MiB/s, a limit of 300 ms\n");
    let columns = "rounds | predicted, ms | downtime, ms | off | within 15 % or 2 ms | final bytes at 200 MiB/s, ms | ratio |";
    let line = "|---|---|---|---|---|---|---|---|";
    println!("| written, of the link | {columns}\n{line}");
    let mut near = 0;
    for rate in RATES {
        let report = migrate(rate * LINK / 10, Duration::ZERO)?;
        near += usize::from(print(&format!("0.{rate}"), &report));
    }
    println!("\n{near} of {} within the bound\n", RATES.len());
    println!("| round trip, ms | {columns}\n{line}");
    for round_trip in ROUND_TRIPS {
        print(&round_trip.to_string(), &migrate(0, Duration::from_millis(round_trip))?);
    }
    Ok(())
}
