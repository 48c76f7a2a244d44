//! The engine: idle devices migrate with the memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;
use whimbrel_engine::channel::{Address, Connector, Listener, Until, connect};
use whimbrel_engine::{Destination, NoCpuLog, Source, SourceOptions};
use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable};

use super::memory::MemoryFile;
use super::{DEVICE_STATE, Move, Result, certificates, processor};

/// Timeout for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens devices with much state, or a single one with little.
fn devices(count: u64) -> Result<Vec<Box<dyn Migratable>>> {
    let state = if count == 0 { 64 << 10 } else { DEVICE_STATE };
    let model: Model = format!("accel?state={state}").parse()?;
    let open = |number| -> Result<Box<dyn Migratable>> {
        Ok(Box::new(Local::new(model.open(format!("accel {number}"))?)))
    };
    (0..count.max(1)).map(open).collect()
}

/// Sends over so many connections, with TLS if there is a folder of certificates.
pub(super) fn send(
    noise: &MemoryFile,
    count: u64,
    channels: u32,
    address: &str,
    tls: Option<&Path>,
) -> Result<Move> {
    // Kept, so that unmapping it is not measured.
    let memory = Arc::new(noise.map(true)?);
    let devices = devices(count)?;
    let address: Address = address.parse()?;
    let until = Until::timeout(PATIENCE);
    let stream = connect(&address, until)?;
    let tls = tls.map(certificates::open);
    let connector = Connector::new(address.clone());
    let source = Source::new(devices)
        .memory(memory.clone(), NoCpuLog)
        .options(SourceOptions::default().channels(channels))
        .connector(match &tls {
            None => connector,
            Some(tls) => connector.tls(tls.clone()),
        });
    let (start, used) = (Instant::now(), processor::own()?);
    let sent = match tls {
        None => source.send(stream),
        Some(tls) => source.send(tls.connect(stream, &address, until)?),
    };
    let downtime = Duration::from_secs_f64(sent.result?.downtime_ms / 1e3);
    Ok(Move { took: start.elapsed(), downtime: Some(downtime), processor: processor::own_since(used)? })
}

/// Receives likewise.
pub(super) fn receive(
    memory: GuestMemoryMmap,
    count: u64,
    tls: Option<&Path>,
    told: impl FnOnce(&str),
) -> Result<()> {
    let devices = devices(count)?;
    let mut listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
    if let Some(folder) = tls {
        listener = listener.tls(certificates::open(folder))?;
    }
    told(&listener.address().to_string());
    let accepted = listener.accept(Until::timeout(PATIENCE))?;
    Destination::new(devices).memory(Arc::new(memory)).receive_accepted(accepted).result?;
    Ok(())
}
