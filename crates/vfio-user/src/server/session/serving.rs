//! A client under service, with the right to serve it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
#[cfg(feature = "takeover")]
use std::sync::atomic::Ordering;
use std::time::Instant;

use whimbrel_device::Errno;

use super::channel::Channel;
use super::client::{Client, Served};
#[cfg(feature = "takeover")]
use super::dirty_log::Log;
use super::rest::Rest;
use crate::message::Limits;
use crate::server::backend::{Backend, Shared, Turn};
use crate::server::error::ServeError;
use crate::server::foreign::ForeignThread;
use crate::server::refusal::{first_header, reject};
use crate::socket::connection;

/// A client that is served, or rests between two messages.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(super) client: Client,
    pub(super) turn: Turn,
}

/// The requests for a client's memory, of which none is sent. If this is dropped, that is so for good.
#[cfg(feature = "takeover")]
#[derive(Debug)]
pub(crate) struct SuspendedRequests(Arc<Channel>);

#[cfg(feature = "takeover")]
impl SuspendedRequests {
    pub(crate) fn resume(self) {
        self.0.resume_requests();
    }
}

/// The outcome of a client's service.
#[derive(Debug)]
pub(super) enum Ended {
    Left,
    /// Another process serves it.
    Elsewhere,
    Failed(ServeError),
}

impl Ended {
    pub(super) fn log(&self, shared: &Shared) {
        let device = shared.device.name();
        match self {
            Ended::Left => tracing::info!(device, "client disconnected"),
            Ended::Elsewhere => tracing::info!(device, "client handed over to another process"),
            Ended::Failed(error @ ServeError::Socket(_)) => {
                tracing::info!(device, %error, "connection to the client failed");
            }
            Ended::Failed(error) => {
                if let Some(left_out) = shared.not_served.admit(Instant::now()) {
                    tracing::warn!(device, %error, left_out, "client rejected or disconnected");
                }
            }
        }
    }
}

impl Backend {
    /// Serves one client until it leaves. A client that connects while another is served gets EBUSY at once.
    pub fn serve(&self, stream: UnixStream) -> Result<(), ServeError> {
        let Some(turn) = Turn::take(self) else {
            reject(&stream, first_header(&stream).map_or(0, |(id, _)| id), Errno::EBUSY);
            return Err(ServeError::Busy);
        };
        Serving::begin(turn, stream, None).serve().map(drop)
    }
}

impl Serving {
    /// Creates a client without any setup.
    pub(in crate::server) fn begin(turn: Turn, stream: UnixStream, rest: Option<Arc<Rest>>) -> Serving {
        let limits = Limits::new(turn.0.capabilities.max_data_xfer_size);
        let (mut receiver, sender) = connection(stream, limits);
        let foreign = Arc::new(ForeignThread::new(&turn.0.foreign_threads));
        receiver.admit_by(turn.0.screen(&foreign));
        let client = Client::new(turn.0.clone(), Channel::new(receiver, sender), rest, foreign);
        Serving { client, turn }
    }

    /// Serves until the client leaves. Returns it if it must rest.
    pub(super) fn serve(self) -> Result<Option<Serving>, ServeError> {
        let Serving { client, turn } = self;
        Ok(match client.run()? {
            Served::Left => None,
            Served::Rests(client) => Some(Serving { client: *client, turn }),
        })
    }

    /// Returns whether the client has received the file of a region, and may have mapped it.
    #[cfg(feature = "takeover")]
    pub(crate) fn has_region_file(&self) -> bool {
        self.client.has_region_file.load(Ordering::Relaxed)
    }

    /// Returns whether the connection is over.
    #[cfg(feature = "takeover")]
    pub(crate) fn is_over(&self) -> bool {
        self.client.channel.pending().is_over()
    }

    /// Asks the client for no more memory until the result is resumed. `None` if a request for memory has no answer yet.
    #[cfg(feature = "takeover")]
    pub(crate) fn suspend_requests(&self) -> Option<SuspendedRequests> {
        let channel = self.client.twin.as_ref().unwrap_or(&self.client.channel);
        channel.suspend_requests().then(|| SuspendedRequests(channel.clone()))
    }

    /// Returns the dirty log that the client has started.
    #[cfg(feature = "takeover")]
    pub(crate) fn log(&mut self) -> Option<&mut Log> {
        self.client.log.as_mut()
    }

    /// Sets whether another process serves the same connection: then it is not ended here.
    #[cfg(feature = "takeover")]
    pub(crate) fn set_anothers(&mut self, is_anothers: bool) {
        self.client.is_anothers = is_anothers;
    }
}
