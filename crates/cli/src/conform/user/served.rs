//! A device that is served to a program under test, and whose requests are recorded.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use whimbrel_conformance::user::{Record, Request, Socket};
use whimbrel_device::wrap::fault::Faults;
use whimbrel_device::{Observed, WorkingDevice};
use whimbrel_models::Model;
use whimbrel_vfio_user::{Backend, Server, Stopper};

use crate::output::note;

/// A device that is served until this is dropped.
pub(super) struct Served {
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

/// Opens a new device with these faults.
pub(super) fn open(model: &Model, faults: Faults) -> Result<WorkingDevice, String> {
    model
        .open_with_faults(model.to_string(), faults)
        .map_err(|error| format!("'{model}' cannot be served: {error}"))
}

impl Served {
    /// Serves a device, and adds each request to the record.
    pub(super) fn start(
        device: WorkingDevice,
        path: &Path,
        socket: Socket,
        record: Arc<Mutex<Record>>,
    ) -> Result<Served, String> {
        device.observe(move |observed| {
            if let Some(request) = request(observed) {
                record.lock().add(socket, request);
            }
        });
        let cannot = |error: std::io::Error| format!("cannot serve at {}: {error}", path.display());
        let server = Server::bind(path, Backend::new(device)).map_err(cannot)?;
        let stopper = server.stopper();
        let thread = std::thread::Builder::new()
            .name("server".into())
            .spawn(move || {
                if let Err(error) = server.run() {
                    note(format_args!("the server has ended: {error}"));
                }
            })
            .map_err(cannot)?;
        Ok(Served { stopper, thread: Some(thread) })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            // A driver that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}

/// Returns a request for the record.
fn request(observed: &Observed<'_>) -> Option<Request> {
    Some(match *observed {
        Observed::GetState(state) => Request::GetState(state),
        Observed::SetState { from, to, result, now } => Request::SetState { from, to, result, now },
        Observed::Reset { from, result, .. } => Request::Reset { from, result },
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
