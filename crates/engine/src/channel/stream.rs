//! Stream sockets as channels: TCP, Unix and others.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketType, getpeername, recv, send,
    sendmsg, shutdown, sockopt,
};

use super::Channel;
use super::low_water::LowWater;
use super::wait::retry;

/// A connected stream socket: TCP, Unix, one end of a socket pair, or any other, such as vsock, by its descriptor.
///
/// ```
/// use std::io::IoSlice;
/// use std::os::unix::net::UnixStream;
/// use whimbrel_engine::channel::{Channel, Readiness, Stream, Until};
///
/// let (left, right) = UnixStream::pair()?;
/// let (left, right) = (Stream::from(left), Stream::from(right));
/// left.try_write(&[IoSlice::new(b"hello")])?;
/// Until::now().wait(right.readiness_fd(), Readiness::Readable).unwrap_err();
/// let mut buffer = [0; 16];
/// assert_eq!(right.try_read(&mut buffer)?, 5);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Stream {
    /// Its mode (O_NONBLOCK) is never changed, because another process may share it. Each call is made non-blocking
    /// instead.
    socket: OwnedFd,
    /// For TCP.
    low_water: Option<LowWater>,
}

/// The size to ask for a Unix socket's buffer, which does not grow by itself. The system may allow less.
const UNIX_BUFFER: usize = 4 << 20;

/// The idle time after which TCP probes whether the peer's host is alive.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
/// The time between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The number of unanswered probes after which the connection is lost.
const KEEPALIVE_PROBES: u32 = 6;

impl Stream {
    /// Returns the peer's IP address if this is a TCP connection.
    pub fn peer(&self) -> Option<SocketAddr> {
        getpeername(&self.socket).ok().flatten().and_then(|address| SocketAddr::try_from(address).ok())
    }

    fn tuned(socket: OwnedFd) -> Stream {
        // Best effort: without these, latency or throughput is lost, or a dead peer is found at a deadline only.
        let mut low_water = None;
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => {
                let _ = sockopt::set_tcp_nodelay(&socket, true);
                let _ = sockopt::set_socket_keepalive(&socket, true);
                let _ = sockopt::set_tcp_keepidle(&socket, KEEPALIVE_AFTER);
                let _ = sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL);
                let _ = sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES);
                low_water = Some(LowWater::default());
            }
            Ok(AddressFamily::UNIX) => {
                let _ = sockopt::set_socket_send_buffer_size(&socket, UNIX_BUFFER);
            }
            _ => {}
        }
        Stream { socket, low_water }
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Stream {
        Stream::tuned(socket.into())
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Stream {
        Stream::tuned(socket.into())
    }
}

/// Converts any connected stream socket. Others fail with EINVAL, ENOTCONN or ENOTSOCK.
impl TryFrom<OwnedFd> for Stream {
    type Error = io::Error;

    fn try_from(socket: OwnedFd) -> io::Result<Stream> {
        if sockopt::socket_type(&socket)? != SocketType::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a stream socket"));
        }
        getpeername(&socket)?;
        Ok(Stream::tuned(socket))
    }
}

impl Channel for Stream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(retry(|| recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT))?.0)
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(match data {
            [only] => retry(|| send(&self.socket, only, flags))?,
            several => retry(|| sendmsg(&self.socket, several, &mut SendAncillaryBuffer::default(), flags))?,
        })
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn expect(&self, bytes: usize) {
        if let Some(low_water) = &self.low_water {
            low_water.set(self.socket.as_fd(), bytes);
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match shutdown(&self.socket, Shutdown::Write) {
            // The peer has already ended it.
            Err(Errno::NOTCONN) => Ok(()),
            other => Ok(other?),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> OwnedFd {
        stream.expect(1);
        stream.socket
    }
}
