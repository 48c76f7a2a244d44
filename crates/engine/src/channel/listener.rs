//! The address where a destination waits for its sender.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::bound::Bound;
use super::visitors::{Policy, Visitors};
use super::{Address, Channel, Interrupt, Receiver, Until, WaitError};

/// A listener that waits for a sender and refuses all other peers.
///
/// Up to 16 peers may be unidentified at a time. Each has 5 s to send a preamble and a HELLO; none delays another. The
/// first that does is the sender. Until its migration has ended, all others are told that the listener is busy.
///
/// Only the user who created a Unix socket can connect to it (mode 0600). Its file is removed with the listener.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use whimbrel_engine::channel::{Listener, Sender, Until, connect};
/// # use std::collections::BTreeSet;
/// # use whimbrel_engine::proto::{control::Control, negotiate::Offer};
///
/// let mut listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
/// let address = listener.address().clone();
/// let until = Until::timeout(Duration::from_secs(10));
/// let hello = Control::Hello(Offer::new(1, &BTreeSet::new(), &BTreeSet::new()));
/// let sender = std::thread::spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///     let mut sender = Sender::new(Arc::new(connect(&address, until)?));
///     Ok(sender.send_now(&hello.into(), until)?)
/// });
/// let mut accepted = listener.accept(until)?;
/// let hello = accepted.receiver.next(until)?;
/// # sender.join().unwrap().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Listener {
    socket: Arc<Bound>,
    visitors: Visitors,
    busy: Busy,
}

/// The accepted sender.
#[derive(Debug)]
#[non_exhaustive]
pub struct Accepted {
    /// The connection.
    pub channel: Arc<dyn Channel>,
    /// Its receiver. The first frame is HELLO, and has arrived.
    pub receiver: Receiver,
    /// The IP address of the sender, over TCP.
    pub peer: Option<SocketAddr>,
    /// Other senders are refused while it exists.
    pub(crate) busy: Busy,
}

/// The refusal of all peers after a sender. It ends when the listener or the accepted sender drops its handle.
#[derive(Debug, Default)]
pub(crate) struct Busy(Arc<Mutex<Option<Rejector>>>);

impl Busy {
    /// Returns another handle.
    fn handle(&self) -> Busy {
        Busy(self.0.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Its thread has ended before this returns.
        drop(self.0.lock().take());
    }
}

/// The thread that refuses all peers after the sender.
#[derive(Debug)]
pub(crate) struct Rejector {
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Binds an address. A Unix socket whose listener has died is replaced; any other file at its path is EADDRINUSE.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        let socket = Arc::new(Bound::new(address)?);
        Ok(Listener { socket, visitors: Visitors::default(), busy: Busy::default() })
    }

    /// Returns the address, with the port that the system chose if the given one was 0.
    pub fn address(&self) -> &Address {
        self.socket.address()
    }

    /// Waits for a sender. Other senders are refused until the migration with this one has ended, or [`Accepted`] is
    /// dropped. Those that come later wait for the next call.
    pub fn accept(&mut self, until: Until<'_>) -> Result<Accepted, WaitError> {
        self.busy = Busy::default();
        let (stream, receiver) = loop {
            if let Some(sender) = self.visitors.step(&self.socket, Policy::Choose, until)? {
                break sender;
            }
        };
        let mut visitors = std::mem::take(&mut self.visitors);
        visitors.refuse_all();
        match Rejector::start(self.socket.clone(), visitors) {
            Ok(rejector) => self.busy = Busy(Arc::new(Mutex::new(Some(rejector)))),
            // They wait then, without a reason.
            Err(error) => tracing::warn!(%error, "other senders cannot be refused"),
        }
        let peer = stream.peer();
        Ok(Accepted { channel: stream, receiver, peer, busy: self.busy.handle() })
    }
}

impl Rejector {
    fn start(socket: Arc<Bound>, mut visitors: Visitors) -> io::Result<Rejector> {
        let stop = Interrupt::new()?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("listener".into()).spawn(move || {
            loop {
                match visitors.step(&socket, Policy::Refuse, Until::interrupted(&stopped)) {
                    Ok(_) => {}
                    Err(WaitError::Interrupted | WaitError::TimedOut) => return,
                    Err(WaitError::Failed(error)) => {
                        tracing::warn!(%error, "other senders are not refused any more");
                        return;
                    }
                }
            }
        })?;
        Ok(Rejector { stop, thread: Some(thread) })
    }
}

impl Drop for Rejector {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
