//! `demo --cuts N`: the source's connection is cut while the devices work, and the hosts replace it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::net::Shutdown;
use whimbrel_engine::channel::{Channel, Connect, Connector, ConnectorError, Until};
use whimbrel_engine::{Phase, Progress};

/// The connection, and how often it is still to be cut. Its clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Cutter(Arc<Mutex<Cuts>>);

#[derive(Debug)]
struct Cuts {
    left: u32,
    /// The socket of the connection, until it is cut.
    socket: Option<OwnedFd>,
}

impl Cutter {
    /// Returns one for so many cuts.
    pub(super) fn new(cuts: u32) -> Cutter {
        Cutter(Arc::new(Mutex::new(Cuts { left: cuts, socket: None })))
    }

    /// Takes in a new connection.
    pub(super) fn watch(&self, channel: &dyn Channel) {
        // Without a descriptor to spare there is one cut less.
        self.0.lock().socket = channel.readiness_fd().try_clone_to_owned().ok();
    }

    /// Cuts the connection in a round, unless that was done often enough.
    pub(super) fn progress(&self, progress: &Progress) {
        let mut cuts = self.0.lock();
        if matches!(progress.phase, Phase::Round(_))
            && cuts.left > 0
            && let Some(socket) = cuts.socket.take()
        {
            cuts.left -= 1;
            // Fails if it is gone already.
            let _ = rustix::net::shutdown(&socket, Shutdown::Both);
        }
    }

    /// Returns a connector whose connections are cut as well.
    pub(super) fn connector(&self, inner: Connector) -> impl Connect + 'static {
        Cuttable { inner, cutter: self.clone() }
    }
}

struct Cuttable {
    inner: Connector,
    cutter: Cutter,
}

impl Connect for Cuttable {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        let channel = self.inner.connect(until)?;
        self.cutter.watch(&*channel);
        Ok(channel)
    }
}
