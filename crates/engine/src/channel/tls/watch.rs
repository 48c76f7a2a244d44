//! The files of a listener's TLS, read again when they change on a thread of their own: a large revocation list takes seconds
//! to read, and nobody who connects meanwhile waits for it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Tls, TlsError, TlsStream};
use crate::channel::{Interrupt, Stream, Until, WaitError};

/// The time between two looks at the files.
const INTERVAL: Duration = Duration::from_secs(1);

/// The TLS of a listener. Clones share the thread, which ends after the last of them.
#[derive(Clone, Debug)]
pub(in crate::channel) struct WatchedTls {
    tls: Tls,
    #[expect(dead_code, reason = "ends the thread when dropped")]
    watch: Arc<Watch>,
}

/// The end of the thread.
#[derive(Debug)]
struct Watch(Interrupt);

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread is not waited for: it may be reading a file.
        self.0.set();
    }
}

impl WatchedTls {
    /// Reads the files, and looks for changes from here on.
    pub(in crate::channel) fn new(tls: Tls) -> Result<WatchedTls, TlsError> {
        tls.check()?;
        let stop = Interrupt::new().map_err(TlsError::Thread)?;
        let (watched, stopped) = (tls.clone(), stop.clone());
        let look = move || {
            let next = || Until::interrupted(&stopped).at_most(Instant::now() + INTERVAL);
            let mut before = watched.files.stamp();
            while matches!(next().sleep(), WaitError::TimedOut) {
                let stamp = watched.files.stamp();
                // A certificate and its key are replaced one after the other: they are read once both stay as they are.
                if stamp == before {
                    // Files that cannot be used leave those before in use, with a warning.
                    let _ = watched.load(Until::interrupted(&stopped));
                }
                before = stamp;
            }
        };
        thread::Builder::new().name("tls files".into()).spawn(look).map_err(TlsError::Thread)?;
        Ok(WatchedTls { tls, watch: Arc::new(Watch(stop)) })
    }

    /// Begins as a server, with the files that were read last. Reading goes on with the handshake.
    pub(in crate::channel) fn begin(&self, stream: Arc<Stream>) -> Result<TlsStream, TlsError> {
        let last = self.tls.shared.last.lock().clone();
        let loaded = last.map_or_else(|| self.tls.load(Until::now()), Ok)?;
        TlsStream::server(stream, &loaded.server)
    }
}
