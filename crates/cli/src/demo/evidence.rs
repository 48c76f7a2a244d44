//! The state of a host's machine at the switchover, during the downtime.

use std::time::Duration;

use whimbrel_engine::Ram;
use whimbrel_user::{Device, SavingRead, State};
use xxhash_rust::xxh3::Xxh3;

use super::machine::{Machine, Memory};
use super::messages::{DeviceEvidence, Evidence};
use super::work;
use crate::failure::Failure;

/// Bytes read at a time for a digest.
const PIECE: usize = 1 << 20;

/// Gathers the evidence of a machine whose devices are in STOP. `between` separates the two reads of their job counters.
pub(super) fn gather(machine: &Machine, between: Duration) -> Result<Evidence, Failure> {
    let mut devices = machine.devices()?;
    let states = devices.iter_mut().map(|device| device.state()).collect::<Result<Vec<_>, _>>()?;
    let then = work::completed_by_devices(machine)?;
    let memory = memory_digest(&machine.memory)?;
    let digests =
        devices.iter_mut().map(|device| device_digest(&mut **device)).collect::<Result<Vec<_>, _>>()?;
    std::thread::sleep(between);
    let later = work::completed_by_devices(machine)?;
    let programs = work::books(machine)?;
    let devices = (states.into_iter().zip(digests)).zip(then.into_iter().zip(later)).zip(programs);
    let devices = devices.map(|(((state, digest), (then, later)), program)| DeviceEvidence {
        digest,
        state: state.to_string(),
        completed_by_device: then.zip(later).map(<[u64; 2]>::from),
        program,
    });
    Ok(Evidence { memory, devices: devices.collect() })
}

fn memory_digest(memory: &Memory) -> Result<String, Failure> {
    let mut digest = Xxh3::new();
    let mut piece = vec![0; PIECE];
    for region in Ram::regions(memory) {
        let mut at = 0;
        while at < region.size {
            let count = (region.size - at).min(PIECE as u64);
            let piece = &mut piece[..count as usize];
            Ram::read(memory, region.start + at, piece).map_err(|error| Failure::from_error(&error))?;
            digest.update(piece);
            at += count;
        }
    }
    Ok(format!("xxh3:{:016x}", digest.digest()))
}

/// Returns a digest of the device's saved state. The device is in STOP before and after.
fn device_digest(device: &mut dyn Device) -> Result<String, Failure> {
    let mut digest = Xxh3::new();
    let mut piece = vec![0; PIECE];
    let mut data = device
        .go_to(State::StopCopy)?
        .ok_or_else(|| Failure::new("the device opened no data session on entering STOP_COPY"))?;
    while let SavingRead::Data(count) = data.read(&mut piece)? {
        digest.update(&piece[..count]);
    }
    device.go_to(State::Stop)?;
    Ok(format!("xxh3:{:016x}", digest.digest()))
}
