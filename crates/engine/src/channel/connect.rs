//! Connecting to an address, with retries until a listener exists.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, getpeername, getsockname, socket_with, sockopt,
};

use super::wait::retry;
use super::{Address, Interrupt, Readiness, Stream, Until, WaitError};

/// The time between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest attempt on one of several IP addresses of a name. One that does not answer leaves time for the others.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The reasons why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The interrupt was set.
    #[error("interrupted while connecting to {0}")]
    Interrupted(Address),
    /// The deadline has passed without an answer to any attempt.
    #[error("connecting to {0} timed out")]
    TimedOut(Address),
    /// The name has no IP address.
    #[error("cannot resolve {address}: {error}")]
    Resolve {
        /// The address.
        address: Address,
        /// The resolver's error.
        error: io::Error,
    },
    /// The last attempt failed.
    #[error("cannot connect to {address}: {error}")]
    Failed {
        /// The address.
        address: Address,
        /// Its error.
        error: io::Error,
    },
}

/// Connects, and retries while there is no listener, so that both sides may be started in any order.
///
/// ```
/// use std::time::Duration;
/// use whimbrel_engine::channel::{Address, Until, connect};
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let address: Address = listener.local_addr()?.to_string().parse()?;
/// let stream = connect(&address, Until::timeout(Duration::from_secs(10)))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn connect(address: &Address, until: Until<'_>) -> Result<Stream, ConnectError> {
    let told = |error| Attempt::Wait(error).told(address, None);
    let targets = targets(address, until)?;
    // The first attempt is made even when there is no time left.
    let mut last = None;
    loop {
        match attempt(address, &targets, until) {
            Ok(stream) => return Ok(stream),
            Err(Attempt::Failed(error)) if is_for_now(&error) => last = Some(error),
            Err(other) => return Err(other.told(address, last)),
        }
        match until.at_most(Instant::now() + PAUSE).sleep() {
            WaitError::TimedOut if until.left().is_none_or(|left| !left.is_zero()) => {}
            WaitError::TimedOut => return Err(Attempt::Wait(WaitError::TimedOut).told(address, last)),
            other => return Err(told(other)),
        }
    }
}

/// Connects if there is a listener, without retries. See [`connect`].
pub fn connect_once(address: &Address, until: Until<'_>) -> Result<Stream, ConnectError> {
    let targets = targets(address, until)?;
    attempt(address, &targets, until).map_err(|error| error.told(address, None))
}

/// The IP addresses of a name.
fn targets(address: &Address, until: Until<'_>) -> Result<Vec<SocketAddr>, ConnectError> {
    match address {
        Address::Tcp(text) => resolve(text, until).map_err(|error| match error {
            Attempt::Failed(error) => ConnectError::Resolve { address: address.clone(), error },
            waited @ Attempt::Wait(_) => waited.told(address, None),
        }),
        Address::Unix(_) => Ok(Vec::new()),
    }
}

fn attempt(address: &Address, targets: &[SocketAddr], until: Until<'_>) -> Result<Stream, Attempt> {
    match address {
        Address::Unix(path) => unix(path, until),
        Address::Tcp(_) => any_of(targets, until),
    }
}

/// The failure of an attempt.
enum Attempt {
    Wait(WaitError),
    Failed(io::Error),
}

impl Attempt {
    /// Returns the error to report, if an earlier attempt ended with `last`.
    fn told(self, address: &Address, last: Option<io::Error>) -> ConnectError {
        let address = address.clone();
        match (self, last) {
            (Attempt::Wait(WaitError::Interrupted), _) => ConnectError::Interrupted(address),
            (Attempt::Wait(WaitError::TimedOut), None) => ConnectError::TimedOut(address),
            (Attempt::Wait(WaitError::TimedOut), Some(error))
            | (Attempt::Wait(WaitError::Failed(error)) | Attempt::Failed(error), _) => {
                ConnectError::Failed { address, error }
            }
        }
    }
}

impl From<io::Error> for Attempt {
    fn from(error: io::Error) -> Attempt {
        Attempt::Failed(error)
    }
}

impl From<Errno> for Attempt {
    fn from(error: Errno) -> Attempt {
        Attempt::Failed(error.into())
    }
}

/// Returns whether a later attempt may succeed: the peer may not listen yet, or its queue may be full.
fn is_for_now(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound, TimedOut, WouldBlock};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | NotFound | WouldBlock | TimedOut)
}

/// Resolves a name. The system's resolver cannot be interrupted, so it runs on its own thread, which is left behind if
/// the wait ends first.
fn resolve(text: &str, until: Until<'_>) -> Result<Vec<SocketAddr>, Attempt> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let (answers, answer) = mpsc::channel();
    let (done, text) = (Interrupt::new()?, text.to_string());
    let is_done = done.clone();
    std::thread::Builder::new().name("resolver".into()).spawn(move || {
        // This fails if the wait has ended already.
        let _ = answers.send(text.to_socket_addrs().map(Vec::from_iter));
        is_done.set();
    })?;
    until.wait(done.as_fd(), Readiness::Readable).map_err(Attempt::Wait)?;
    let addresses = answer.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
    if addresses.is_empty() { Err(io::Error::from(io::ErrorKind::NotFound).into()) } else { Ok(addresses) }
}

fn any_of(targets: &[SocketAddr], until: Until<'_>) -> Result<Stream, Attempt> {
    let mut last = Attempt::Failed(io::ErrorKind::ConnectionRefused.into());
    for (index, target) in targets.iter().enumerate() {
        let is_last = index + 1 == targets.len();
        let attempt = if is_last { until } else { until.at_most(Instant::now() + ATTEMPT) };
        match tcp(target, attempt) {
            Err(Attempt::Wait(WaitError::TimedOut)) if !is_last => {
                last = Attempt::Failed(io::ErrorKind::TimedOut.into());
            }
            Err(Attempt::Failed(error)) => last = Attempt::Failed(error),
            other => return other,
        }
    }
    Err(last)
}

fn tcp(target: &SocketAddr, until: Until<'_>) -> Result<Stream, Attempt> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = finish(family, target, until)?;
    // A local port without a listener can be chosen for the connection itself, which then connects to itself.
    if getsockname(&socket)? == getpeername(&socket)?.ok_or(Errno::NOTCONN)? {
        return Err(Errno::CONNREFUSED.into());
    }
    Ok(Stream::try_from(socket)?)
}

fn unix(path: &Path, until: Until<'_>) -> Result<Stream, Attempt> {
    Ok(Stream::try_from(finish(AddressFamily::UNIX, &SocketAddrUnix::new(path)?, until)?)?)
}

/// Connects a new socket, and waits for the answer.
fn finish(family: AddressFamily, target: &impl SocketAddrArg, until: Until<'_>) -> Result<OwnedFd, Attempt> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, target) {
        Ok(()) => {}
        // After a signal the attempt continues as well.
        Err(Errno::INPROGRESS | Errno::INTR) => {
            until.wait(socket.as_fd(), Readiness::Writable).map_err(Attempt::Wait)?;
            retry(|| sockopt::socket_error(&socket))??;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(socket)
}
