//! TLS 1.3 between the two sides of a migration, each of which shows a certificate and checks that of the other.
//!
//! The rules of TLS are rustls's. Here are the files that a side is given ([`Tls`]), which a listener reads again on a thread
//! of its own (`watch`), the stream that goes through them ([`TlsStream`]) and the reasons for a refusal ([`TlsError`]).

mod error;
mod files;
mod named_client;
mod own;
mod stream;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustls::ClientConnection;
use rustls::pki_types::{ServerName, UnixTime};

use super::{Address, Stream, Until, WaitError};
pub use error::TlsError;
use files::{Files, Loaded, Stamp};
pub use stream::TlsStream;
pub(super) use watch::WatchedTls;

/// The longest wait for another thread that reads the files, if there are some that were read before.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest wait of a check for another thread that reads the files.
const CHECK_TIMEOUT: Duration = Duration::from_mins(1);
/// The interval at which these waits look whether they are interrupted.
const LOOK: Duration = Duration::from_millis(20);

/// The means of a side to prove who it is, and to check who the other is: its certificate with the key, and the authorities whose certificates it
/// accepts, all in PEM files.
///
/// The files are read again when they change, for the next connection, and by a [`Listener`](super::Listener) within a few
/// seconds, on a thread of its own: connections meanwhile do not wait for that. If they cannot be used then, those read before
/// stay in use, with a warning; and so they do for a connection that would wait longer than a second for another thread that reads
/// them.
///
/// A warning also tells of a certificate of this side that has expired, or is not valid yet: peers refuse it.
///
/// Both sides have to show a certificate. It has to be signed by an authority of the other side, be valid at this time, be
/// on no revocation list that the other side has, and name the peer that the other side asked for: a source asks for the
/// host that it connects to, unless [`Tls::peer`] gives another name. A destination asks for no name, unless
/// [`Tls::peer`] gives one.
///
/// ```no_run
/// use std::time::Duration;
/// use whimbrel_engine::channel::{Tls, Until, connect};
///
/// let tls = Tls::new("host.pem", "host.key", "authorities.pem");
/// let address = "other-host:4000".parse()?;
/// let until = Until::timeout(Duration::from_secs(10));
/// let channel = tls.connect(connect(&address, until)?, &address, until)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tls {
    files: Files,
    peer: Option<ServerName<'static>>,
    shared: Arc<Shared>,
}

/// The contents of the files, which clones share.
#[derive(Debug, Default)]
struct Shared {
    /// Those that were read last. Never held while files are read.
    last: Mutex<Option<Arc<Loaded>>>,
    /// Held while files are read.
    reading: Mutex<()>,
    /// The files whose failure was told.
    told: Mutex<Option<Stamp>>,
}

impl Tls {
    /// Names the files of this side's certificate, followed by those of its issuers up to an authority, of its key, and of
    /// the authorities.
    pub fn new(
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        authorities: impl Into<PathBuf>,
    ) -> Tls {
        let files = Files {
            certificate: certificate.into(),
            key: key.into(),
            authorities: authorities.into(),
            revocations: None,
        };
        Tls { files, peer: None, shared: Arc::default() }
    }

    /// Names the file of the revocation lists. With it, a peer is refused unless a list of its issuer, which has not
    /// expired, does not have its certificate.
    #[must_use]
    pub fn revocations(mut self, file: impl Into<PathBuf>) -> Tls {
        self.files.revocations = Some(file.into());
        self.shared = Arc::default();
        self
    }

    /// Sets the name, a DNS name or an IP address, that the peer's certificate has to carry.
    pub fn peer(mut self, name: &str) -> Result<Tls, TlsError> {
        self.peer = Some(name_of(name)?);
        self.shared = Arc::default();
        Ok(self)
    }

    /// Reads the files, so that an error in them is found before anything has begun.
    pub fn check(&self) -> Result<(), TlsError> {
        self.load(Until::timeout(CHECK_TIMEOUT)).map(|_| ())
    }

    /// Finds out whether [`Tls::connect`] knows which name the peer at `address` has to carry, before a connection is made.
    pub fn check_address(&self, address: &Address) -> Result<(), TlsError> {
        self.name_at(address).map(|_| ())
    }

    fn name_at(&self, address: &Address) -> Result<ServerName<'static>, TlsError> {
        match (&self.peer, address) {
            (Some(name), _) => Ok(name.clone()),
            (None, Address::Tcp(text)) => name_of(host_of(text)),
            (None, Address::Unix(_)) => Err(TlsError::Unnamed(address.clone())),
        }
    }

    /// Makes a connection to `address` one of TLS, as its client: a source.
    ///
    /// A destination that refuses this side's certificate says so only afterwards, and a read fails then.
    pub fn connect(
        &self,
        stream: Stream,
        address: &Address,
        until: Until<'_>,
    ) -> Result<TlsStream, TlsError> {
        let connection = ClientConnection::new(self.load(until)?.client.clone(), self.name_at(address)?)
            .map_err(|error| TlsError::of_connection(&error))?;
        let stream = TlsStream::new(Arc::new(stream), connection.into());
        stream.handshake(until)?;
        Ok(stream)
    }

    /// Makes a connection that was accepted one of TLS, as its server: a destination.
    pub fn accept(&self, stream: Stream, until: Until<'_>) -> Result<TlsStream, TlsError> {
        let stream = TlsStream::server(Arc::new(stream), &self.load(until)?.server)?;
        stream.handshake(until)?;
        Ok(stream)
    }

    /// Keeps others from reading the files, as long as the result exists.
    #[cfg(test)]
    pub(super) fn hold_reading(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.shared.reading.lock()
    }

    /// Returns whether the files were read since they changed, or will not be read before they change again.
    #[cfg(test)]
    pub(super) fn is_up_to_date(&self) -> bool {
        self.shared.last.lock().as_ref().is_some_and(|last| last.stamp == self.files.stamp())
    }

    /// Returns what the files say now. Reads them if they have changed. If another thread takes its time to read them, as from a
    /// server that does not answer, those read before are good enough.
    fn load(&self, until: Until<'_>) -> Result<Arc<Loaded>, TlsError> {
        let last = self.shared.last.lock().clone();
        let patience = last.as_ref().map_or(until, |_| until.at_most(Instant::now() + PATIENCE));
        let _reading = match (self.wait_for_reading(patience), last) {
            (Ok(reading), _) => reading,
            (Err(WaitError::TimedOut), Some(last)) => return Ok(last),
            (Err(error), _) => return Err(TlsError::Wait(error)),
        };
        let stamp = self.files.stamp();
        let earlier = self.shared.last.lock().clone();
        let loaded = match earlier {
            Some(earlier) if earlier.stamp == stamp => earlier,
            earlier => {
                let new = Arc::new(self.read(stamp, earlier.as_deref())?);
                *self.shared.last.lock() = Some(new.clone());
                new
            }
        };
        loaded.own.tell(UnixTime::now());
        Ok(loaded)
    }

    /// Waits until no other thread reads the files.
    fn wait_for_reading(&self, until: Until<'_>) -> Result<MutexGuard<'_, ()>, WaitError> {
        loop {
            let left = until.left().unwrap_or(LOOK).min(LOOK);
            if let Some(reading) = self.shared.reading.try_lock_for(left) {
                return Ok(reading);
            }
            until.check()?;
        }
    }

    /// Reads the files. What was read earlier stays in use if they cannot be used.
    fn read(&self, stamp: Stamp, earlier: Option<&Loaded>) -> Result<Loaded, TlsError> {
        match (self.files.load(stamp.clone(), self.peer.as_ref()), earlier) {
            (Err(error), Some(earlier)) => {
                // Said once for each change.
                if self.shared.told.lock().replace(stamp.clone()).as_ref() != Some(&stamp) {
                    tracing::warn!(%error, "the files of TLS have changed and cannot be used: those before stay in use");
                }
                // What could not be read for now, as without a descriptor left, is read again at the next look.
                let stamp = if error.is_passing() { earlier.stamp.clone() } else { stamp };
                Ok(Loaded { stamp, ..earlier.clone() })
            }
            (read, _) => read,
        }
    }
}

/// The host of a TCP address, without brackets and port.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn name_of(text: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(text.to_string()).map_err(|_| TlsError::Name(text.to_string()))
}
