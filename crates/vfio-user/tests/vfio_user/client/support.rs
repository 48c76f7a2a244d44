//! Models behind sockets.

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use whimbrel_device::{ResetRule, WorkingDevice};
use whimbrel_models::Model;
use whimbrel_user::{Device, State};
use whimbrel_vfio_user::message::{Limits, MessageBuffer, Reply, Version};
use whimbrel_vfio_user::{
    Backend, BackendOptions, Capabilities, Client, ClientOptions, Receiver, Sender, ServeError, connection,
};

/// A model that is served, and what serves it.
pub(crate) struct Served {
    pub(crate) client: Option<Client>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

pub(crate) fn open(model: &str) -> WorkingDevice {
    model.parse::<Model>().unwrap().open("model").unwrap()
}

impl Served {
    pub(crate) fn new(model: &str) -> Served {
        Served::with(model, &ClientOptions::default())
    }

    pub(crate) fn with(model: &str, options: &ClientOptions) -> Served {
        Served::of(open(model), options)
    }

    /// One that accepts work and does none of it.
    pub(crate) fn idle(model: &str) -> Served {
        Served::of(open(model).into_device().into(), &ClientOptions::default())
    }

    /// One whose server follows a rule for resets.
    pub(crate) fn by_rule(model: &str, rule: ResetRule, options: &ClientOptions) -> Served {
        let backend = Backend::with(open(model), BackendOptions::default().reset_rule(rule));
        Served::behind(backend, options)
    }

    fn of(device: WorkingDevice, options: &ClientOptions) -> Served {
        Served::behind(Backend::new(device), options)
    }

    fn behind(backend: Backend, options: &ClientOptions) -> Served {
        let (server, stream) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || backend.serve(server));
        let client = Client::new("model", stream, options).unwrap();
        Served { client: Some(client), thread: Some(thread) }
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

/// A server that does as `then` says once it has agreed on the version.
pub(crate) fn plain_server(
    options: &ClientOptions,
    then: impl FnOnce(Receiver, Sender) + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (stream, client) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut receiver, mut sender) = connection(stream, Limits::default());
        let id = receiver.receive().unwrap().unwrap().header.id;
        let mut out = MessageBuffer::new();
        out.reply(id, &Reply::Version(Version::proposal(Capabilities::default())));
        sender.send(out.as_bytes(), &[]).unwrap();
        then(receiver, sender);
    });
    (Client::new("card", client, options).unwrap(), thread)
}
