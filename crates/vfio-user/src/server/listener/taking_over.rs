//! A server that takes over from another one, and the settings for one that is taken over.

use std::path::Path;
use std::time::Duration;

use super::server::{Server, Signals};
use super::socket_file::Listener;
use crate::server::backend::Backend;
use crate::server::session::thread::Ready;
use crate::takeover::{Takeover, TakeoverError};

impl Takeover {
    /// Takes the device, its client and the sockets. The backend's device gets the state: it has to be one of the
    /// same kind, with the same settings, that nobody uses.
    ///
    /// The client waits until [`Server::run`] or [`Server::dispatch`] is called. After an error the backend's device is as after a reset,
    /// unless that is [`TakeoverError::Unsettled`].
    pub fn finish(self, backend: Backend) -> Result<Server, TakeoverError> {
        // What can fail does so before the old server has given anything away.
        let signals = Signals::new()?;
        let ready = Ready::new(backend.device().name())?;
        let taken = self.take_into(&backend)?;
        Ok(Server::taken(taken, backend, ready, signals))
    }
}

impl Server {
    /// Takes over from the server at a path, which is in another process and lets that happen: its device's state
    /// goes to that of `backend`, and its client and its socket come here. The client waits until [`Server::run`] is
    /// called. See [`Takeover`] for both in two steps, with an example.
    pub fn take_over(path: impl AsRef<Path>, backend: Backend) -> Result<Server, TakeoverError> {
        Takeover::connect(path)?.finish(backend)
    }

    /// Lets any process of the same user take over that connects where the clients do, except the client's own.
    ///
    /// That process gets the device's state, and the client's memory and sockets. A server that lets nobody take over
    /// (the default) gives them to nobody.
    #[must_use]
    pub fn allow_takeover(mut self) -> Server {
        self.takeovers.is_allowed = true;
        self
    }

    /// Lets any process of the same user take over that connects at this socket, which is for nothing else. Who takes
    /// over gets the socket too, so that it can be taken over from in turn.
    #[must_use]
    pub fn takeover_socket(mut self, listener: Listener) -> Server {
        self.takeovers.listener = Some(listener);
        self
    }

    /// Sets how long the device may stand still in a takeover: 30 seconds by default, and ten minutes at most. A
    /// takeover that takes longer is given up, and the device goes on.
    #[must_use]
    pub fn takeover_pause(mut self, pause: Duration) -> Server {
        self.takeovers.set_pause(pause);
        self
    }
}
