//! The stop of a migration: from RUNNING to STOP_COPY, all of the state to another device on the same image, and RUNNING
//! there. Idle and under load, beside an accel with as little state. In this process, so that neither a link nor memory
//! counts.

use std::path::Path;
use std::time::{Duration, Instant};

use whimbrel_device::{DeviceFile, State, WorkingDevice};
use whimbrel_models::Model;
use whimbrel_models::nvme::EngineKind;

use super::host::{self, Host};
use super::load::LOADS;
use super::{Result, create_image, median};

/// Moves the state of a device to another one. Returns the time, and the bytes of state.
fn stop(source: &DeviceFile, destination: &DeviceFile) -> Result<(Duration, usize)> {
    let begun = Instant::now();
    let saving = source.set_mig_state(State::StopCopy)?.ok_or("no session")?;
    let mut state = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        match saving.read(&mut state[length..])? {
            0 => break,
            count => length += count,
        }
        state.resize(state.len().max(length * 2), 0);
    }
    // The image's lock is free, so that the other device may have it.
    source.set_mig_state(State::Stop)?;
    let resuming = destination.set_mig_state(State::Resuming)?.ok_or("no session")?;
    let mut written = 0;
    while written < length {
        written += resuming.write(&state[written..length])?;
    }
    destination.set_mig_state(State::Running)?;
    Ok((begun.elapsed(), length))
}

/// Measures a stop several times, each time of a new pair of devices.
fn measure_stops(name: &str, rounds: u64, mut once: impl FnMut() -> Result<(Duration, usize)>) -> Result<()> {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..rounds {
        let (time, length) = once()?;
        times.push(time.as_secs_f64() * 1e3);
        bytes = bytes.max(length);
    }
    let most = times.iter().copied().fold(0.0, f64::max);
    println!("  {name:<48} {:>8.2} ms, at most {most:.2} ms, {bytes} bytes of state", median(times));
    Ok(())
}

pub(crate) fn measure(folder: &Path, rounds: u64) -> Result<()> {
    let image = folder.join("moving");
    create_image(&image)?;
    println!("the stop of a migration");
    measure_stops("accel with 4 KiB of state, idle", rounds, || {
        let open = || -> Result<WorkingDevice> { Ok("accel?state=4KiB".parse::<Model>()?.open("accel")?) };
        let (source, destination) = (open()?, open()?);
        stop(source.device(), destination.device())
    })?;
    measure_stops("nvme, idle", rounds, || {
        let source = host::device(&image, EngineKind::Automatic)?;
        let file = source.device().clone();
        let _host = Host::on(source)?;
        stop(&file, host::device(&image, EngineKind::Automatic)?.device())
    })?;
    for load in LOADS.iter().filter(|load| load.depth > 1) {
        measure_stops(&format!("nvme, {}", load.name), rounds, || {
            let source = host::device(&image, EngineKind::Automatic)?;
            let file = source.device().clone();
            let mut host = Host::on(source)?;
            let destination = host::device(&image, EngineKind::Automatic)?;
            host.run(load, Duration::from_millis(200))?;
            host.fill(load)?;
            stop(&file, destination.device())
        })?;
    }
    Ok(())
}
