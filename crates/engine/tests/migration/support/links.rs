//! A listener, and links to it that end where a test says, for migrations whose connections are lost.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use whimbrel_engine::channel::{Address, Channel, Connect, ConnectorError, Listener, Tls, Until};

use super::proxy::{Cut, Recording, Throttle, proxy_to};
use super::rig::{Ended, Rig};
use super::wire::frames;

/// The time to replace a lost link: longer than any takes.
pub(crate) const WITHIN: Duration = Duration::from_secs(20);

/// Links to a listener, each of which ends where it is told to; those after the last cut do not end.
pub(crate) struct Links {
    pub(crate) address: Address,
    pub(crate) cuts: VecDeque<Cut>,
    throttle: Throttle,
    pub(crate) tls: Option<Tls>,
    /// Called before each link but the first.
    pub(crate) between: Box<dyn FnMut() -> Result<(), ConnectorError> + Send>,
    pub(crate) made: Arc<Mutex<Vec<Recording>>>,
}

impl Connect for Links {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        if !self.made.lock().is_empty() {
            (self.between)()?;
        }
        let far = match &self.address {
            Address::Tcp(address) => UnixStream::from(OwnedFd::from(TcpStream::connect(address)?)),
            Address::Unix(path) => UnixStream::connect(path)?,
            other => return Err(format!("no link to {other}").into()),
        };
        let cut = self.cuts.pop_front().unwrap_or(Cut::Never);
        let (near, recording) = proxy_to(far, cut, Duration::ZERO, &self.throttle);
        self.made.lock().push(recording);
        Ok(match &self.tls {
            None => Arc::new(near),
            Some(tls) => Arc::new(tls.connect(near, &"127.0.0.1:1".parse()?, until)?),
        })
    }
}

/// The kinds of the frames that passed over a link: from the source, and from the destination.
pub(crate) type Passed = (Vec<u16>, Vec<u16>);

/// A listener, and links to it.
pub(crate) struct Net {
    folder: tempfile::TempDir,
    pub(crate) listener: Listener,
    pub(crate) links: Links,
}

impl Net {
    /// Over a Unix socket.
    pub(crate) fn new(cuts: &[Cut]) -> Net {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("door"));
        Net::at(&address, folder, cuts)
    }

    /// Over TCP.
    pub(crate) fn tcp(cuts: &[Cut]) -> Net {
        Net::at(&"127.0.0.1:0".parse().unwrap(), tempfile::tempdir().unwrap(), cuts)
    }

    fn at(address: &Address, folder: tempfile::TempDir, cuts: &[Cut]) -> Net {
        let listener = Listener::bind(address).unwrap();
        let links = Links {
            address: listener.address().clone(),
            cuts: cuts.iter().copied().collect(),
            throttle: Throttle::open(),
            tls: None,
            between: Box::new(|| Ok(())),
            made: Arc::default(),
        };
        Net { folder, listener, links }
    }

    /// With TLS on each link.
    pub(crate) fn tls(mut self, [here, there]: [Tls; 2]) -> Net {
        self.listener = self.listener.tls(there).unwrap();
        self.links.tls = Some(here);
        self
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("door")
    }

    /// Migrates, and returns the kinds of all frames that passed, link by link: from the source, and from the destination.
    pub(crate) fn migrate(mut self, rig: Rig) -> (Ended, Vec<Passed>) {
        let made = self.links.made.clone();
        let ended = rig.migrate_over_links(&mut self.listener, self.links, |source| source);
        (ended, passed(&made))
    }
}

pub(crate) fn passed(made: &Mutex<Vec<Recording>>) -> Vec<Passed> {
    let kinds = |stream: &[u8]| frames(stream).into_iter().map(|(kind, _)| kind).collect();
    let ends = std::mem::take(&mut *made.lock()).into_iter().map(Recording::end);
    ends.map(|(source, destination)| (kinds(&source), kinds(&destination))).collect()
}

/// Both sides replace a lost link.
pub(crate) fn resuming(mut rig: Rig, within: Duration) -> Rig {
    rig.options = rig.options.reconnect(within);
    rig.there_options = rig.there_options.reconnect(within);
    rig
}
