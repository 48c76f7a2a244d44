//! Builds a server that takes over from another one, and sets what takeovers a server allows.

use std::path::Path;
use std::time::Duration;

use super::server::{Server, Signals};
use super::socket_file::Listener;
use crate::server::backend::Backend;
use crate::server::session::thread::Ready;
use crate::takeover::{Takeover, TakeoverError};

impl Takeover {
    /// Takes the device, its client and the sockets. The backend's device receives the state: it must be of the same
    /// kind, with the same settings, and unused.
    ///
    /// The client waits until [`Server::run`] or [`Server::dispatch`] is called. After an error the backend's device
    /// is as after a reset, unless that is [`TakeoverError::Unsettled`].
    pub fn finish(self, backend: Backend) -> Result<Server, TakeoverError> {
        // What can fail does so before the old server has given anything away.
        let signals = Signals::new()?;
        let ready = Ready::new(backend.device().name())?;
        let taken = self.take_into(&backend)?;
        Ok(Server::taken(taken, backend, ready, signals))
    }
}

impl Server {
    /// Takes over from the server at a path, which must be in another process and allow it: its device's state moves
    /// to the device of `backend`, and its client and its socket move here. The client waits until [`Server::run`] is
    /// called. See [`Takeover`] for both in two steps, with an example.
    pub fn take_over(path: impl AsRef<Path>, backend: Backend) -> Result<Server, TakeoverError> {
        Takeover::connect(path)?.finish(backend)
    }

    /// Lets any process of the same user take over by the clients' socket, except the client's own process.
    ///
    /// That process gets the device's state, and the client's memory and sockets. A server that allows no takeover
    /// (the default) gives them to no process.
    #[must_use]
    pub fn allow_takeover(mut self) -> Server {
        self.takeovers.is_allowed = true;
        self
    }

    /// Lets any process of the same user take over by this socket, which is for takeovers only. The new server gets
    /// the socket too, so that the next one can take over in turn.
    #[must_use]
    pub fn takeover_socket(mut self, listener: Listener) -> Server {
        self.takeovers.listener = Some(listener);
        self
    }

    /// Sets the maximum downtime of the device in a takeover: 3 seconds by default, and at most ten minutes. A
    /// takeover that takes longer is aborted, and the device continues.
    ///
    /// A client's request may wait as long for its reply, and a moment more: QEMU gives up after 5 seconds
    /// (`x-msg-timeout`).
    #[must_use]
    pub fn takeover_pause(mut self, pause: Duration) -> Server {
        self.takeovers.set_pause(pause);
        self
    }
}
