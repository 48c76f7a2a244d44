//! The devices of a run of a program under test, whatever interface the program uses, and the record of its requests.

use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_conformance::user::{Record, Request, Socket};
use whimbrel_device::wrap::fault::Faults;
use whimbrel_device::{DeviceFile, Observed, WorkingDevice};
use whimbrel_models::Model;

use super::placeholders::{Values, Words};
use super::process::Process;
use super::vfio_user::Served;

/// Devices on which a program can be started.
pub(super) trait Devices {
    /// Returns the devices, the first one first.
    fn files(&self) -> Vec<DeviceFile>;

    /// Starts the program with these values, and those that name the devices.
    fn start(self: Box<Self>, words: &Words, values: Values) -> Result<Running, String>;
}

/// A program that runs.
pub(super) struct Running {
    pub(super) process: Process,
    /// The servers of its devices, unless the process has them.
    pub(super) servers: Vec<Served>,
}

/// Opens a new device with these faults.
pub(super) fn open(
    model: &Model,
    name: String,
    faults: Faults,
    for_programs: bool,
) -> Result<WorkingDevice, String> {
    let device = if for_programs {
        model.open_for_programs(name, faults)
    } else {
        model.open_with_faults(name, faults)
    };
    device.map_err(|error| format!("'{model}' cannot be served: {error}"))
}

/// Adds each request on a device to the record.
pub(super) fn record(device: &DeviceFile, socket: Socket, record: &Arc<Mutex<Record>>) {
    let record = record.clone();
    device.observe(move |observed| {
        if let Some(request) = request(observed) {
            record.lock().add(socket, request);
        }
    });
}

/// Says that a program does not run.
pub(super) fn cannot_run(words: &Words, why: impl Display) -> String {
    format!("cannot run {}: {why}", words.unfilled().first().cloned().unwrap_or_default().display())
}

/// Returns a request for the record.
fn request(observed: &Observed<'_>) -> Option<Request> {
    Some(match *observed {
        Observed::GetState(state) => Request::GetState(state),
        Observed::SetState { from, to, result, now } => Request::SetState { from, to, result, now },
        Observed::Reset { from, result, .. } => Request::Reset { from, result },
        Observed::Close { from, result, .. } => Request::Close { from, result },
        Observed::Read { session, state, result } => {
            Request::Read { session, state, result: result.map(<[u8]>::to_vec) }
        }
        Observed::Write { session, state, result } => {
            Request::Write { session, state, result: result.map(<[u8]>::to_vec) }
        }
        Observed::PrecopyInfo { session, result, .. } => Request::PrecopyInfo { session, result },
        Observed::PrecopyInfoV2(result) => Request::PrecopyInfoV2(result),
        Observed::DataSize { result, .. } => Request::DataSize(result),
        Observed::LoggingStart(result) => Request::LoggingStart(result),
        Observed::LoggingStop(result) => Request::LoggingStop(result),
        Observed::LoggingReport(result) => Request::LoggingReport(result),
        Observed::Region { is_write, state, index, offset, length, .. } => {
            Request::Region { is_write, state, index, offset, length }
        }
        _ => return None,
    })
}
