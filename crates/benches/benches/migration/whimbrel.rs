//! The engine: an idle device migrates with the memory.

use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;
use whimbrel_engine::{Address, Destination, Link, Listener, NoCpuLog, Source};
use whimbrel_models::Model;
use whimbrel_user::Local;

use super::memory::MemoryFile;
use super::{Move, Result};

fn device() -> Result<Local> {
    let model: Model = "accel?state=64KiB".parse()?;
    Ok(Local::new(model.open("accel")?))
}

pub(super) fn send(noise: &MemoryFile, address: &str) -> Result<Move> {
    let memory = noise.map(true)?;
    let mut device = device()?;
    let address: Address = address.parse()?;
    let link = Link::connect(&address, Duration::ZERO)?;
    let start = Instant::now();
    let report = Source::new(&mut device).memory(&memory, NoCpuLog).send(link)?;
    let downtime = Duration::from_secs_f64(report.downtime_ms / 1e3);
    Ok(Move { took: start.elapsed(), downtime: Some(downtime) })
}

pub(super) fn receive(memory: &GuestMemoryMmap, told: impl FnOnce(&str)) -> Result<()> {
    let mut device = device()?;
    let mut listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
    told(&listener.address()?.to_string());
    Destination::new(&mut device).memory(memory).receive(listener.accept()?)?;
    Ok(())
}
