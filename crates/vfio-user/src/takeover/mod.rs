//! Live update: a new server process takes the device of an old one, and continues to serve the same client, over the
//! same connection, at the same path. The client sees a pause.
//!
//! # Transferred state
//!
//! The device's state, by its own migration; its configuration space; the client with its socket, the bytes read from
//! it and not executed, the agreed version, memory, interrupts, ioeventfds, and the dirty log with its dirty pages;
//! and the socket that clients connect to. Signals of the client during the takeover stay in the eventfds' counters,
//! and its messages in the socket's buffer.
//!
//! A takeover is refused for a device that is being migrated, for one that cannot migrate, and for one whose client has
//! received a region's file, which refers to the old process's memory; and for one that the program serves to a client
//! through another handle to its backend.
//!
//! # Pre-copy
//!
//! The pause must not grow with the state. So the old server brings a device in RUNNING that supports PRE_COPY to that
//! state, and sends what it yields while the client works. It stops the device once almost nothing is left, several rounds
//! have left about as much as before, or ten minutes have passed; what is left then moves in the pause.
//!
//! The client sees RUNNING meanwhile. A request that would show or end pre-copy (a SET of the migration state or of
//! VFIO_PRECOPY_INFO_REINIT, low power, a reset) waits: the device is stopped at once, and the new server executes the
//! request. If the takeover fails, the old one does, in RUNNING. The pause of such a client counts from its request on. A
//! client that has hung up does not wait: its request ends pre-copy, is executed, and the takeover starts over.
//!
//! Without pre-copy everything moves in the pause: if the device does not support it, sleeps, or is not in RUNNING; if it
//! migrates through a region, which the client reads; and by version 1 of the protocol. A device that fails in pre-copy
//! starts over that way. In pre-copy nothing has been decided yet: if either server gives up or dies, the device is in
//! RUNNING again.
//!
//! # Ownership of the device
//!
//! The old server stops the device and sends everything; the new one loads it, prepares to run it, and sends READY.
//! Until then nothing is decided: if either server gives up, dies or times out, the old one resumes the device. With
//! HANDOVER the device belongs to the new server. These are the rules of [`whimbrel_protocol::handover`].
//!
//! A new server that fails after that resets its device, checks that it does not run with the transferred state, and
//! only then sends FAILED: the old server continues. If the reset is refused, or the state cannot be read after it,
//! the new server hangs up without a message ([`TakeoverError::Unsettled`]).
//!
//! An old server that has sent HANDOVER and gets no answer keeps the device stopped, accepts no connection, and
//! watches the new server's process by a pidfd (SO_PEERPIDFD; before Linux 6.5 the process that has the connection's
//! pid when it connects, at the risk that the device stays stopped for as long as an unrelated process lives). While
//! that process lives, a warning is logged once a minute. A late answer counts. Once the process is dead, so is the
//! device in it: the old server continues with the state from before, which may be older than the client has seen if
//! the new server did run the device. A new server whose RUNNING was not delivered leaves the files of the sockets in
//! place when it ends, so that clients still find the old one.
//!
//! # Timeouts
//!
//! On the old server a takeover has a separate thread, and only the client that is handed over waits for it. A
//! message has a timeout of ten seconds, the agreement twenty, pre-copy ten minutes, a request of the client before it
//! and the client's rest seven seconds each, and all work while the device is stopped, or a request of the client waits for
//! that, [`Server::takeover_pause`](crate::Server::takeover_pause) together: absolute deadlines, which a peer cannot extend
//! byte by byte. A call into a driver is not interrupted. Stopping the server ends everything.
//!
//! # Permission
//!
//! A process of the same user (SO_PEERCRED, which both sides check) may take over, if the server allows it: over the
//! clients' socket, or over a socket for takeovers only. The client's own process may not; it is known by the pid of
//! the connection. This prevents accidents, not attacks: a process of the same user can have another one connect for
//! it, or trace the server.
//!
//! # Wire format
//!
//! The new server connects as a client does, and sends REQUEST in place of VFIO_USER_VERSION: a message with the
//! header of vfio-user and the command 0x5754. All messages have this format. After the header come data, a JSON text
//! that begins with the kind of the message (`{"message": "request", ..}`), and the length of the text in four bytes.
//! Descriptors have their own messages and are numbered in the order sent, from 0, which is the socket that clients
//! connect to.
//!
//! | old | new |
//! |---|---|
//! | | request: the versions that it speaks, of which the old one chooses: 2, or 1, which lacks precopy and discard |
//! | offer: the version, what the device is, device and inode of the file of the clients' socket, and of that for takeovers with both paths if there is one; the device's maximum downtime | |
//! | | accept, or failed |
//! | with pre-copy: precopy: the device runs; state, any number of times; discard, if that state is void | failed, at any time |
//! | begin: the device is stopped, and was in this state | |
//! | state, any number of times, after that of pre-copy if it is valid; configuration; descriptors, any number of times | |
//! | interrupts, ioeventfds | |
//! | with a client: client, mappings, waiting (commands), unread (bytes), log, dirty | |
//! | end: the bytes of the state, and the number of the socket for takeovers | |
//! | | ready, or failed |
//! | handover | |
//! | | running, or failed |
//!
//! The end contains the number of messages before it, from the acceptance on. In place of each of its messages the old server
//! may send abort. Unknown keys are ignored. A peer's texts are made printable when they are received.

mod arrival;
mod attempt;
mod configuration;
mod describe;
mod dirty_log;
mod give;
mod link;
mod order;
mod outcome;
mod peer;
mod peer_text;
mod precopy;
mod records;
mod refusal;
mod rounds;
mod set_up;
mod stopped;
mod take;
mod wire;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use whimbrel_device::Errno;

pub(crate) use self::attempt::{Attempt, Outcome, busy, turn_down};
pub(crate) use self::describe::Description;
pub(crate) use self::give::{Offer, Transferred};
use self::link::Link;
pub use self::link::LinkError;
pub(crate) use self::refusal::Refusal;
pub(crate) use self::wire::{COMMAND, TakeoversRecord};
use self::wire::{Message, PRECOPY_TIMEOUT, PRECOPY_VERSION, REST_TIMEOUT, TIMEOUT, VERSIONS};
#[cfg(doc)]
use crate::server::Server;
use crate::server::backend::Backend;
use crate::server::listener::socket_file::{Listener, connect_now, has_identity};
use crate::server::session::serving::Serving;

/// Maximum downtime of a device in a takeover by default: a client may wait for a reply no longer than QEMU's, five seconds.
pub(crate) const PAUSE: Duration = Duration::from_secs(3);
/// That of an old server that does not say.
const UNTOLD_PAUSE: Duration = Duration::from_secs(30);
/// The upper bound of both.
pub(crate) const MAX_PAUSE: Duration = Duration::from_mins(10);

/// Number of requests to a server that answers as if the request came from a client: it may have been too busy to
/// look at it in time.
const TRIES: u32 = 5;

/// The reason why a device was not taken over. The old server continues to serve it, unless it has ended itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeoverError {
    /// Connecting failed.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The server runs as another user.
    #[error("the old server runs as uid {theirs}, this process as uid {own}")]
    User {
        /// The server's user id.
        theirs: u32,
        /// This process's user id.
        own: u32,
    },
    /// The path leads to the server by a socket other than its own.
    #[error("{} is not the socket that the old server created", .0.display())]
    Path(PathBuf),
    /// The server answered as if the request came from a client.
    #[error("the server does not support takeover: it replied {0}")]
    Unknown(Errno),
    /// The old server refuses.
    #[error("the old server refused the takeover: {0}")]
    Refused(String),
    /// The new server's device cannot replace this one.
    #[error("device '{device}' does not match the old server's: {what}")]
    Mismatch {
        /// Its name.
        device: String,
        /// The difference.
        what: String,
    },
    /// The data of the old server is invalid, or cannot be set up here.
    #[error("invalid data from the old server: {0}")]
    Wrong(String),
    /// The device refused the state.
    #[error(transparent)]
    Device(#[from] whimbrel_user::Error),
    /// Nothing was taken over, but it is uncertain whether the device here is stopped. The old server was not told,
    /// because both devices could run then: it continues once this process has ended.
    #[error("{cause}; the device here may still run: {why}")]
    Unsettled {
        /// The reason why it was not taken over.
        cause: Box<TakeoverError>,
        /// The reason why the device here may still run.
        why: String,
    },
    /// The connection between the two servers failed.
    #[error("connection to the other server failed: {0}")]
    Link(LinkError),
    /// A system call failed in this process.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<LinkError> for TakeoverError {
    fn from(error: LinkError) -> TakeoverError {
        TakeoverError::Link(error)
    }
}

impl TakeoverError {
    /// Returns advice for the operator.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            TakeoverError::Connect(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Some("no server is listening: start the server without --takeover")
            }
            TakeoverError::User { .. } => Some("start the new server as the same user as the old one"),
            TakeoverError::Path(_) => Some("give the path at which the old server was started"),
            TakeoverError::Unknown(_) => {
                Some("stop the old server once its client has disconnected, then start the new one")
            }
            TakeoverError::Refused(_) => {
                Some("the old server still serves the device: resolve this and try again")
            }
            TakeoverError::Mismatch { .. } | TakeoverError::Device(_) => Some(
                "start the new server with the old one's model and settings; the old server still serves the device",
            ),
            TakeoverError::Unsettled { .. } => {
                Some("end this process: the old server resumes the device once it has exited")
            }
            _ => None,
        }
    }
}

/// A takeover that the old server has agreed to; the device still runs.
///
/// A program that confines itself connects before, opens its device after, and then calls [`Takeover::finish`],
/// within ten seconds. The old server must allow takeovers ([`Server::allow_takeover`], [`Server::takeover_socket`]).
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use whimbrel_models::Model;
/// use whimbrel_vfio_user::{Backend, Client, ClientOptions, Server, Takeover};
/// use whimbrel_user::Device;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("accel");
/// let model: Model = "accel?state=1MiB".parse()?;
/// let first = model.open("accel 0")?;
/// let old = Server::bind(&path, Backend::new(first))?.allow_takeover();
/// let serving = std::thread::spawn(move || old.run());
/// let mut client = Client::connect(&path, &ClientOptions::default())?;
/// client.write_region(0, 0x40, &1u32.to_ne_bytes())?;
///
/// let takeover = Takeover::connect(&path)?;
/// let second = model.open("accel 0")?;
/// let new = takeover.finish(Backend::new(second))?;
/// let stopper = new.stopper();
/// let going_on = std::thread::spawn(move || new.run());
/// assert!(serving.join().expect("it does not panic")?.taken_over);
///
/// let mut value = [0; 4];
/// client.read_region(0, 0x40, &mut value)?;
/// assert_eq!(u32::from_ne_bytes(value), 1);
/// # drop(client);
/// # stopper.stop();
/// # going_on.join().expect("it does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Takeover {
    link: Link,
    clients: At,
    takeovers: Option<At>,
    offered: Description,
    /// The agreed version of the protocol.
    version: u32,
    pause: Duration,
}

/// A socket's path, and device and inode of its file.
type At = (PathBuf, (u64, u64));

impl Takeover {
    /// Requests the device of the server at a path: the clients' socket, or the socket for takeovers.
    pub fn connect(path: impl AsRef<Path>) -> Result<Takeover, TakeoverError> {
        let deadline = Instant::now() + TIMEOUT;
        // The socket's file goes away with the last server: it has to be found where it is.
        let path = path.as_ref().canonicalize().map_err(TakeoverError::Connect)?;
        let mut tries = 1..=TRIES;
        let (link, offer) = loop {
            let is_last = tries.next().is_none_or(|count| count == TRIES);
            match Takeover::ask(&path, deadline) {
                Err(TakeoverError::Unknown(_)) if !is_last => std::thread::sleep(Duration::from_millis(50)),
                other => break other?,
            }
        };
        let Message::Offer { version, device, socket, takeovers, pause_ms } = offer else {
            return Err(TakeoverError::Wrong(format!("unexpected {} in reply to the request", offer.kind())));
        };
        let from_bytes = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let here = |identity| has_identity(&path, identity);
        let (clients, takeovers) = match takeovers {
            None if here(socket) => ((path, socket), None),
            Some(record) if here(record.socket) || here(socket) => {
                ((from_bytes(&record.clients), socket), Some((from_bytes(&record.path), record.socket)))
            }
            _ => return Err(TakeoverError::Path(path)),
        };
        let pause = pause_ms.map_or(UNTOLD_PAUSE, Duration::from_millis).min(MAX_PAUSE);
        Ok(Takeover { link, clients, takeovers, offered: *device, version, pause })
    }

    fn ask(path: &Path, deadline: Instant) -> Result<(Link, Message), TakeoverError> {
        let stream = connect_before(path, deadline).map_err(TakeoverError::Connect)?;
        let theirs = peer::credentials(&stream)?.1;
        let mut link = Link::new(stream, deadline.saturating_duration_since(Instant::now()))?;
        // At once: a server does not wait long for the first message.
        let sent = link.send(&Message::Request { versions: VERSIONS.to_vec() });
        check_user(geteuid().as_raw(), theirs)?;
        match link.receive().map(|received| received.message) {
            Ok(Message::Abort { why, .. }) => Err(TakeoverError::Refused(why)),
            Ok(Message::Offer { version, .. }) if !VERSIONS.contains(&version) => {
                Err(TakeoverError::Wrong(format!("unsupported takeover version {version}")))
            }
            Ok(message) => Ok((link, message)),
            Err(LinkError::Answered(errno)) => {
                Err(TakeoverError::Unknown(Errno::try_from(errno).unwrap_or(Errno::EIO)))
            }
            // It may have answered before it was asked, as one does that has no time for a client.
            Err(error) => Err(sent.err().unwrap_or(error).into()),
        }
    }

    /// Returns the name of the device.
    pub fn device(&self) -> &str {
        &self.offered.name
    }

    /// Returns the path that clients connect to.
    pub fn path(&self) -> &Path {
        &self.clients.0
    }

    /// Loads the device into the backend's, and takes its client and the sockets.
    pub(crate) fn take_into(mut self, backend: &Backend) -> Result<TakenOver, TakeoverError> {
        let precopy = if self.version >= PRECOPY_VERSION { PRECOPY_TIMEOUT } else { Duration::ZERO };
        // One message to begin with, pre-copy, the client's rest, the pause, and one message to end with.
        self.link.limit(2 * TIMEOUT + precopy + REST_TIMEOUT + self.pause);
        let own = Description::of(backend.device())?;
        let terms = take::Terms {
            version: self.version,
            pause: self.pause,
            offered: &self.offered,
            own: &own,
            has_takeovers: self.takeovers.is_some(),
        };
        let taken = take::take(&mut self.link, terms, backend)?;
        let listener = |socket, (path, identity): At| {
            let listener = Listener::taken(socket, path, identity);
            if !taken.is_told {
                // The old server may need the file again, once this process has died.
                listener.leave_file();
            }
            listener
        };
        let takeovers = taken.takeovers.zip(self.takeovers).map(|(socket, at)| listener(socket, at));
        let clients = listener(taken.socket, self.clients);
        Ok(TakenOver { clients, takeovers, description: own, serving: taken.serving })
    }
}

/// The result of a takeover, to be served from now on.
#[derive(Debug)]
pub(crate) struct TakenOver {
    /// The socket that clients connect to.
    pub(crate) clients: Listener,
    /// The socket for takeovers only, if there is one.
    pub(crate) takeovers: Option<Listener>,
    pub(crate) description: Description,
    /// The client, if the old server had one.
    pub(crate) serving: Option<Serving>,
}

/// Connects, and waits while the queue of connections is full.
fn connect_before(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    loop {
        match connect_now(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Checks that the other server runs as the same user.
fn check_user(own: u32, theirs: u32) -> Result<(), TakeoverError> {
    if own == theirs { Ok(()) } else { Err(TakeoverError::User { theirs, own }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_users_server_is_not_taken_over_and_does_not_take_over() {
        assert!(check_user(1000, 1000).is_ok());
        for (own, theirs) in [(1000, 0), (0, 1000), (1000, 1001)] {
            let error = check_user(own, theirs).unwrap_err();
            assert!(matches!(error, TakeoverError::User { .. }), "{error}");
        }
    }
}
