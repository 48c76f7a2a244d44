//! The engine: an idle device migrates with the memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;
use whimbrel_engine::channel::{Address, Listener, Until, connect};
use whimbrel_engine::{Destination, NoCpuLog, Source};
use whimbrel_models::Model;
use whimbrel_user::Local;

use super::memory::MemoryFile;
use super::{Move, Result};

/// Timeout for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

fn device() -> Result<Local> {
    let model: Model = "accel?state=64KiB".parse()?;
    Ok(Local::new(model.open("accel")?))
}

pub(super) fn send(noise: &MemoryFile, address: &str) -> Result<Move> {
    // Kept, so that unmapping it is not measured.
    let memory = Arc::new(noise.map(true)?);
    let device = device()?;
    let address: Address = address.parse()?;
    let stream = connect(&address, Until::timeout(PATIENCE))?;
    let start = Instant::now();
    let report = Source::new(vec![Box::new(device)]).memory(memory.clone(), NoCpuLog).send(stream).result?;
    let downtime = Duration::from_secs_f64(report.downtime_ms / 1e3);
    Ok(Move { took: start.elapsed(), downtime: Some(downtime) })
}

pub(super) fn receive(memory: GuestMemoryMmap, told: impl FnOnce(&str)) -> Result<()> {
    let device = device()?;
    let mut listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
    told(&listener.address().to_string());
    let accepted = listener.accept(Until::timeout(PATIENCE))?;
    Destination::new(vec![Box::new(device)]).memory(Arc::new(memory)).receive_accepted(accepted).result?;
    Ok(())
}
