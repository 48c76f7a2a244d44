//! The address where a destination waits for its sender.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::bound::Bound;
use super::tls::WatchedTls;
use super::visitors::{Known, Policy, Visitors};
use super::{Address, Interrupt, Joins, Receiver, Sender, Tls, TlsError, Until, WaitError};
use crate::proto::greeting::{Greeting, Terms};

/// A listener that waits for a sender and refuses all other peers.
///
/// A peer has 5 s for the whole greeting, from when [`accept`](Listener::accept) took its connection from the system:
/// preamble, HELLO and, once it has got ACCEPT, TABLE. The first that completes it is the sender. All others neither end the
/// wait nor delay it. Those that fail after HELLO are logged as warnings, up to 10 a minute.
///
/// At a time, 16 peers may take their time for HELLO; of more, the oldest are refused after half a second, and of more than
/// 32 at once. Apart from them, 32 may take their time for TABLE; of more, the oldest are refused at once. A sender among
/// many other peers may therefore be refused only if its HELLO arrives late, or if 32 others send a valid HELLO before its
/// TABLE arrives.
///
/// [Checks](crate::Source::check_with) do not end the wait: of a destination that answers them, 4 at a time may take 10 s each
/// after their TABLE, and send 33 MiB.
///
/// Until the sender's migration has ended, all other peers are told that the listener is busy. Only further connections of
/// the same sender are handed over to its migration: each has 5 s for its first frame, which has to carry the migration's id
/// and secret, and shows the certificate of the first connection if there is TLS. The bounds above apply to them.
///
/// Only the user who created a Unix socket can connect to it (mode 0600). Its file is removed with the listener.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use whimbrel_engine::channel::{Listener, Receiver, Sender, Until, connect};
/// use whimbrel_engine::proto::control::{Control, Table};
/// use whimbrel_engine::proto::identity::DeviceIdentity;
/// # use std::collections::BTreeSet;
/// # use whimbrel_engine::proto::negotiate::Offer;
///
/// let mut listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
/// let address = listener.address().clone();
/// let until = Until::timeout(Duration::from_secs(10));
/// let hello = Control::Hello(Offer::new(1, &BTreeSet::new(), &BTreeSet::new()));
/// let device = DeviceIdentity { name: "nic0".into(), ..DeviceIdentity::default() };
/// let table = Control::Table(Table { devices: vec![device], ..Table::default() });
/// let sender = std::thread::spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///     let channel = Arc::new(connect(&address, until)?);
///     let mut sender = Sender::new(channel.clone());
///     sender.send_now(&hello.into(), until)?;
///     Receiver::new(channel).next(until)?;   // ACCEPT
///     Ok(sender.send_now(&table.into(), until)?)
/// });
/// let accepted = listener.accept(until)?;
/// assert_eq!(accepted.greeting.table.devices[0].name, "nic0");
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
    /// The sender's greeting: what it offers, and its devices, memory and blobs.
    pub greeting: Greeting,
    /// The IP address of the sender, over TCP.
    pub peer: Option<SocketAddr>,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// Takes in the further connections of the sender.
    pub(crate) joins: Joins,
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

    /// Accepts senders with TLS only. Its handshake is part of the greeting, and of its time. An error in the files of `tls`
    /// is returned at once.
    ///
    /// The files are read again within a few seconds when they change, on a thread of its own.
    ///
    /// A peer whose certificate is refused is told so by an alert of TLS, and logged as a warning with the reason; a sender
    /// without TLS as well, and one with TLS at a listener that has none.
    pub fn tls(mut self, tls: Tls) -> Result<Listener, TlsError> {
        self.visitors.use_tls(WatchedTls::new(tls)?);
        Ok(self)
    }

    /// Returns the address, with the port that the system chose if the given one was 0.
    pub fn address(&self) -> &Address {
        self.socket.address()
    }

    /// Waits for a sender, for a destination without a journal that uses all features and allows 16 connections.
    /// [`Destination::accept`](crate::Destination::accept) waits on the terms of any destination.
    ///
    /// Other senders are refused until the migration with this one has ended, or [`Accepted`] is dropped. Those that come
    /// later wait for the next call.
    pub fn accept(&mut self, until: Until<'_>) -> Result<Accepted, WaitError> {
        self.accept_on(&Terms::default(), until)
    }

    pub(crate) fn accept_on(&mut self, terms: &Terms, until: Until<'_>) -> Result<Accepted, WaitError> {
        self.busy = Busy::default();
        // Peers of an earlier call may stay, except on other terms.
        self.visitors.refuse_outdated(terms);
        let known = loop {
            if let Some(known) = self.visitors.step(&self.socket, Policy::Choose(terms), until)? {
                break known;
            }
        };
        let Known { peer, sender, receiver, greeting } = known;
        let mut visitors = self.visitors.take();
        visitors.refuse_all();
        let joins = Joins::new();
        match Rejector::start(self.socket.clone(), visitors, joins.clone()) {
            Ok(rejector) => self.busy = Busy(Arc::new(Mutex::new(Some(rejector)))),
            // They wait then, without a reason.
            Err(error) => tracing::warn!(%error, "other senders cannot be refused"),
        }
        Ok(Accepted { greeting, peer, sender, receiver, joins, busy: self.busy.handle() })
    }
}

impl Rejector {
    fn start(socket: Arc<Bound>, mut visitors: Visitors, joins: Joins) -> io::Result<Rejector> {
        let stop = Interrupt::new()?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("listener".into()).spawn(move || {
            loop {
                match visitors.step(&socket, Policy::Join(&joins), Until::interrupted(&stopped)) {
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
