//! Models behind sockets.

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use whimbrel_device::{DeviceFile, Worker};
use whimbrel_models::Model;
use whimbrel_user::{Device, State};
use whimbrel_vfio_user::{Backend, Client, ClientOptions, ServeError};

/// A model that is served, and what serves it.
pub(crate) struct Served {
    pub(crate) client: Option<Client>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    _worker: Option<Worker>,
}

pub(crate) fn open(model: &str) -> (DeviceFile, Option<Worker>) {
    let opened = model.parse::<Model>().unwrap().open("model").unwrap();
    (opened.device, opened.worker)
}

impl Served {
    pub(crate) fn new(model: &str) -> Served {
        Served::with(model, &ClientOptions::default())
    }

    pub(crate) fn with(model: &str, options: &ClientOptions) -> Served {
        let (device, worker) = open(model);
        let (server, stream) = UnixStream::pair().unwrap();
        let backend = Backend::new(device);
        let thread = std::thread::spawn(move || backend.serve(server));
        let client = Client::new("model", stream, options).unwrap();
        Served { client: Some(client), thread: Some(thread), _worker: worker }
    }

    pub(crate) fn client(&mut self) -> &mut Client {
        self.client.as_mut().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.client = None;
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap().unwrap();
        }
    }
}

/// Brings a device that runs to a state by one request; `false` if it has none such.
pub(crate) fn brought(device: &mut dyn Device, state: State) -> bool {
    state == State::Running || device.set_state(state).is_ok()
}
