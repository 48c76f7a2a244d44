//! Device state through the engine over loopback TCP, without TLS and with it, beside a bare write and read loop on such a
//! socket pair with buffers of 1 MiB, in one run; and the peak memory that takes, whatever the state's size.
//!
//! They alternate, and medians are compared, so that a busy machine disturbs both alike. The device is one that gives
//! and takes its state without work of its own: what is measured is the engine.

mod certificates;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use whimbrel_device::{ArcError, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration};
use whimbrel_device::{MigrationFlags, State};
use whimbrel_engine::channel::{Stream, Tls, Until};
use whimbrel_engine::{Arrived, Destination, Sent, Source, SourceOptions};
use whimbrel_user::Local;

/// Bytes moved in one measurement of speed.
const SIZE: u64 = 2 << 30;
const BUFFER: usize = 1 << 20;
const MEASUREMENTS: usize = 7;
/// Sizes of state whose peak memory is measured.
const STATES: [u64; 3] = [64 << 20, 1 << 30, 8 << 30];

/// A device whose state is so many bytes of nothing in particular.
struct Weightless {
    size: u64,
    left: u64,
    taken: u64,
}

impl Driver for Weightless {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET)
    }
    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Weightless {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY
    }
    fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
        match (from, to) {
            (_, State::StopCopy) => self.left = self.size,
            (_, State::Resuming) => self.taken = 0,
            (State::Resuming, _) if self.taken != self.size => return Err(Errno::EINVAL.into()),
            _ => {}
        }
        Ok(())
    }
    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(self.size)
    }
    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let count = self.left.min(buffer.len() as u64);
        self.left -= count;
        Ok(count as usize)
    }
    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        self.taken += data.len() as u64;
        Ok(data.len())
    }
}

fn device(size: u64) -> Local {
    let driver = Weightless { size, left: 0, taken: 0 };
    Local::new(DeviceFile::new("weightless", |_| driver))
}

fn connected() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let left = TcpStream::connect(listener.local_addr()?)?;
    Ok((left, listener.accept()?.0))
}

fn bare(size: u64) -> std::io::Result<Duration> {
    let (mut left, mut right) = connected()?;
    let start = Instant::now();
    let reader = std::thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        for _ in 0..size / BUFFER as u64 {
            right.read_exact(&mut buffer)?;
        }
        right.write_all(b"!")
    });
    let buffer = vec![1; BUFFER];
    for _ in 0..size / BUFFER as u64 {
        left.write_all(&buffer)?;
    }
    left.read_exact(&mut [0])?;
    let elapsed = start.elapsed();
    reader.join().expect("the reader does not panic")?;
    Ok(elapsed)
}

/// Migrates a device with so much state.
fn engine(size: u64, tls: Option<&Tls>) -> Result<Duration, Box<dyn std::error::Error>> {
    let (left, right) = connected()?;
    let (here, there) = (device(size), device(size));
    let [left, right] = [left, right].map(|socket| Stream::try_from(OwnedFd::from(socket)));
    let (left, right) = (left?, right?);
    // The limit is off: the whole state goes in the switchover.
    let options = SourceOptions::default().downtime_limit(Duration::MAX);
    let source = Source::new(vec![Box::new(here)]).options(options);
    let destination = Destination::new(vec![Box::new(there)]);
    let its = tls.cloned();
    let until = Until::timeout(Duration::from_secs(10));
    let start = Instant::now();
    let receiver = std::thread::spawn(move || -> Result<Arrived, String> {
        Ok(match its {
            None => destination.receive(right),
            Some(tls) => destination.receive(tls.accept(right, until).map_err(|error| error.to_string())?),
        })
    });
    let Sent { result, .. } = match tls {
        None => source.send(left),
        Some(tls) => source.send(tls.connect(left, &"127.0.0.1:0".parse()?, until)?),
    };
    let report = result?;
    let elapsed = start.elapsed();
    receiver.join().expect("the receiver does not panic")?.result?;
    assert_eq!(report.device_bytes, size);
    Ok(elapsed)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The most memory this process has held, in KiB.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A process of its own for each size: the peak of a process never falls.
    if let Ok(size) = std::env::var("WHIMBREL_BENCH_STATE") {
        let before = peak_kib().ok_or("no VmHWM in /proc/self/status")?;
        engine(size.parse()?, None)?;
        println!("{}", peak_kib().ok_or("no VmHWM in /proc/self/status")? - before);
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let tls = certificates::write(folder.path())?;
    let (mut bare_times, mut engine_times, mut tls_times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..MEASUREMENTS {
        bare_times.push(bare(SIZE)?);
        engine_times.push(engine(SIZE, None)?);
        tls_times.push(engine(SIZE, Some(&tls))?);
    }
    let over_tls = median(tls_times).as_secs_f64();
    let (bare, engine) = (median(bare_times).as_secs_f64(), median(engine_times).as_secs_f64());
    let speed = |seconds: f64| SIZE as f64 / seconds / 1e9;
    println!(
        "device state over loopback tcp: {:.2} GB/s, bare loop: {:.2} GB/s, ratio {:.2} (goal: at least 0.85)",
        speed(engine),
        speed(bare),
        bare / engine
    );
    println!("over tls: {:.2} GB/s, {:.2} of that without", speed(over_tls), engine / over_tls);
    for size in STATES {
        let child =
            Command::new(std::env::current_exe()?).env("WHIMBREL_BENCH_STATE", size.to_string()).output()?;
        let grown: f64 = String::from_utf8(child.stdout)?.trim().parse()?;
        println!(
            "peak memory of source and destination together, state of {:>5} MiB: {:.1} MiB (goal: under 32)",
            size >> 20,
            grown / 1024.0
        );
    }
    Ok(())
}
