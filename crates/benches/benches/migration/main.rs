//! A whole migration beside a bare loop and beside QEMU, alternating in one run: memory full of noise moves over loopback
//! TCP to another process on the same machine, into memory that was touched before and into fresh memory.
//!
//! Whimbrel and QEMU move it over TLS too, each with its own certificates' checks. The processor time is that of both sides.
//!
//! All of them read the same memory file at the source, and write to a memory file that this program makes for each move
//! and checks after it. Medians and their ratios are printed. QEMU is left out with a message if it is missing.
//!
//! `WHIMBREL_BENCH_MEMORY` (4GiB) and `WHIMBREL_BENCH_ROUNDS` (5) are the size and the number of rounds;
//! `WHIMBREL_BENCH_QEMU` is QEMU's program. `WHIMBREL_BENCH_ONLY` leaves out all rows whose first column lacks that text, except
//! the bare loops of the same size.

mod bare;
#[path = "../certificates/mod.rs"]
mod certificates;
mod memory;
mod peer;
mod processor;
mod qemu;
mod whimbrel;

use std::path::Path;
use std::time::Duration;

use memory::{MIB, MemoryFile};
use peer::Peer;
use qemu::Qemu;
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A finished move.
#[derive(Clone, Copy, Debug)]
struct Move {
    /// From the connection, or the order to migrate, until the destination has everything.
    took: Duration,
    /// The time in which neither side runs, if the program reports it.
    downtime: Option<Duration>,
    /// The processor time of both sides together.
    processor: Duration,
}

/// The program that moves the memory.
#[derive(Clone, Copy, Debug)]
enum Program {
    /// With so many devices' states after the memory.
    Bare(u64),
    /// With so many devices whose state is measured (0 is a single small one), over so many connections.
    Whimbrel(u64, u32, Protection),
    /// QEMU, with so many connections; 0 is without multifd.
    Qemu(u32, Protection),
}

/// The protection of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    Plain,
    Tls,
}

impl Protection {
    /// Returns the suffix of a program's name.
    fn name(self) -> &'static str {
        match self {
            Protection::Plain => "",
            Protection::Tls => ", TLS",
        }
    }

    /// Returns the folder of the certificates, if they are needed.
    fn folder(self, certificates: &TempDir) -> Option<&Path> {
        (self == Protection::Tls).then(|| certificates.path())
    }
}

impl Program {
    fn name(self) -> String {
        match self {
            Program::Bare(0) => "bare loop, 1 MiB".into(),
            Program::Bare(devices) => format!("bare loop, {devices} x 256 MiB after the memory"),
            Program::Whimbrel(0, channels, protection) => {
                format!("Whimbrel, {}{}", connections(channels), protection.name())
            }
            Program::Whimbrel(devices, channels, protection) => {
                let connections = connections(channels);
                format!("Whimbrel, {devices} devices of 256 MiB, {connections}{}", protection.name())
            }
            Program::Qemu(0, protection) => format!("QEMU, without multifd{}", protection.name()),
            Program::Qemu(channels, protection) => format!("QEMU, multifd {channels}{}", protection.name()),
        }
    }

    /// The bytes of device state that it moves.
    fn state(self) -> u64 {
        match self {
            Program::Bare(devices) | Program::Whimbrel(devices, ..) => devices * DEVICE_STATE,
            Program::Qemu(..) => 0,
        }
    }

    /// Moves the noise into a new memory file, and checks what has arrived.
    fn run(
        self,
        noise: &MemoryFile,
        qemu: Option<&Qemu>,
        certificates: &TempDir,
        is_touched: bool,
    ) -> Result<Option<Move>> {
        let there = MemoryFile::new(noise.size())?;
        let moved = match self {
            Program::Bare(devices) => Peer::start("bare", devices, &there, is_touched, None)?
                .take(|address| bare::send(noise, devices, address))?,
            Program::Whimbrel(devices, channels, protection) => {
                let folder = protection.folder(certificates);
                Peer::start("whimbrel", devices, &there, is_touched, folder)?
                    .take(|address| whimbrel::send(noise, devices, channels, address, folder))?
            }
            Program::Qemu(channels, protection) => match qemu {
                Some(qemu) => {
                    qemu.migrate(noise, &there, is_touched, channels, protection.folder(certificates))?
                }
                None => return Ok(None),
            },
        };
        there.check(noise)?;
        Ok(Some(moved))
    }
}

fn connections(count: u32) -> String {
    if count == 1 { "1 connection".into() } else { format!("{count} connections") }
}

/// Bytes.
const GIB: f64 = (1u64 << 30) as f64;
/// The state of each of several devices, in bytes.
const DEVICE_STATE: u64 = 256 << 20;

const PROGRAMS: [Program; 16] = [
    Program::Bare(0),
    Program::Whimbrel(0, 1, Protection::Plain),
    Program::Whimbrel(0, 2, Protection::Plain),
    Program::Whimbrel(0, 4, Protection::Plain),
    Program::Whimbrel(0, 1, Protection::Tls),
    Program::Whimbrel(0, 4, Protection::Tls),
    Program::Bare(8),
    Program::Whimbrel(8, 1, Protection::Plain),
    Program::Whimbrel(8, 4, Protection::Plain),
    Program::Qemu(0, Protection::Plain),
    Program::Qemu(1, Protection::Plain),
    Program::Qemu(2, Protection::Plain),
    Program::Qemu(4, Protection::Plain),
    Program::Qemu(0, Protection::Tls),
    Program::Qemu(2, Protection::Tls),
    Program::Qemu(4, Protection::Tls),
];

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort();
    times.get(times.len() / 2).copied()
}

fn setting(name: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => Ok(whimbrel_models::parse_size(&text).ok_or(format!("{name}: not a number: {text}"))?),
        Err(_) => Ok(otherwise),
    }
}

fn main() -> Result<()> {
    if let Some(role) = peer::role() {
        return peer::run(&role);
    }
    let size = setting("WHIMBREL_BENCH_MEMORY", 4 << 30)?.next_multiple_of(MIB);
    let rounds = setting("WHIMBREL_BENCH_ROUNDS", 5)?;
    let qemu = Qemu::find();
    match &qemu {
        Some(qemu) => println!("{}", qemu.version()),
        None => println!("SKIPPED: QEMU: there is no qemu-system-x86_64 (apt-get install qemu-system-x86)"),
    }
    let noise = MemoryFile::noise(size)?;
    let certificates = TempDir::new()?;
    certificates::write(certificates.path())?;

    // A program and its destination's memory, with all of its moves.
    let only = std::env::var("WHIMBREL_BENCH_ONLY").unwrap_or_default();
    let named: Vec<Program> = PROGRAMS.into_iter().filter(|program| program.name().contains(&only)).collect();
    let is_base = |program: &Program| matches!(program, Program::Bare(_));
    let programs = PROGRAMS.into_iter().filter(|program| {
        let is_same = |other: &Program| other.state() == program.state();
        program.name().contains(&only) || (is_base(program) && named.iter().any(is_same))
    });
    let mut all: Vec<(Program, bool, Vec<Move>)> =
        programs.flat_map(|program| [(program, true, vec![]), (program, false, vec![])]).collect();
    for round in 1..=rounds {
        for (program, is_touched, moves) in &mut all {
            moves.extend(program.run(&noise, qemu.as_ref(), &certificates, *is_touched)?);
        }
        eprintln!("round {round} of {rounds} done");
    }

    println!("\n{} MiB of noise over loopback TCP, medians of {rounds}\n", size / MIB);
    println!("| | memory of the destination | GB/s | to bare | downtime, ms | processor, s/GiB |");
    println!("|---|---|---|---|---|---|");
    let took = |moves: &[Move]| median(moves.iter().map(|moved| moved.took).collect());
    for (program, is_touched, moves) in &all {
        let bytes = size + program.state();
        let bare = all.iter().find(|(other, touched, _)| {
            matches!(other, Program::Bare(_)) && other.state() == program.state() && touched == is_touched
        });
        let (Some(time), Some(bare)) = (took(moves), bare.and_then(|(_, _, moves)| took(moves))) else {
            continue;
        };
        let downtime = median(moves.iter().filter_map(|moved| moved.downtime).collect());
        let processor = median(moves.iter().map(|moved| moved.processor).collect()).unwrap_or_default();
        println!(
            "| {} | {} | {:.2} | {:.2} | {} | {:.2} |",
            program.name(),
            if *is_touched { "touched before" } else { "fresh" },
            bytes as f64 / time.as_secs_f64() / 1e9,
            bare.as_secs_f64() / time.as_secs_f64(),
            downtime.map_or("-".into(), |time| format!("{:.2}", time.as_secs_f64() * 1e3)),
            processor.as_secs_f64() * GIB / bytes as f64,
        );
    }
    Ok(())
}
