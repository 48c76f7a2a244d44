//! One connection between the two sides.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use super::Address;

/// A connected stream. Reading and writing are independent of each other.
#[derive(Debug)]
pub struct Link {
    stream: Stream,
    /// No read of this handle goes on past it.
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Does the same with whichever stream it is.
macro_rules! each {
    ($link:expr, $stream:ident => $result:expr) => {
        match &$link.stream {
            Stream::Tcp($stream) => $result,
            Stream::Unix($stream) => $result,
        }
    };
}

impl From<TcpStream> for Link {
    fn from(stream: TcpStream) -> Link {
        // Only latency is lost without it.
        let _ = stream.set_nodelay(true);
        Link { stream: Stream::Tcp(stream), deadline: None }
    }
}

impl From<UnixStream> for Link {
    fn from(stream: UnixStream) -> Link {
        Link { stream: Stream::Unix(stream), deadline: None }
    }
}

impl Link {
    /// Connects. While nobody listens there, it is tried again for `patience`, so that the two sides may be started in
    /// any order.
    pub fn connect(address: &Address, patience: Duration) -> io::Result<Link> {
        let until = Instant::now() + patience;
        loop {
            let result = match address {
                Address::Tcp(address) => TcpStream::connect(address).map(Link::from),
                Address::Unix(path) => UnixStream::connect(path).map(Link::from),
            };
            match result {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
                        && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return other,
            }
        }
    }

    /// Another handle to the same connection.
    pub fn try_clone(&self) -> io::Result<Link> {
        let stream = match &self.stream {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        };
        Ok(Link { stream, deadline: None })
    }

    /// How long one read or write may make no progress at all.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        each!(self, stream => {
            stream.set_read_timeout(timeout)?;
            stream.set_write_timeout(timeout)
        })
    }

    /// When reads of this handle end, however much comes byte by byte until then. Takes the place of the timeout for
    /// reads.
    pub(crate) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Whether a read would return at once: with data, at the end, or with an error.
    pub fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits for the first byte, or for `patience`. `false` if the other side is gone without having sent one.
    pub(crate) fn has_a_speaker(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        // A patience that no timespec holds has no end.
        let patience = Timespec::try_from(patience).ok();
        if !poll(&mut fds, patience.as_ref()).is_ok_and(|ready| ready > 0) {
            return true;
        }
        let mut byte = [0];
        recv(self, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok_and(|(count, _)| count > 0)
    }

    /// Says that no more is going to be written, and reads what the other side still sends until it does the same, or
    /// for `patience`. Closing with unread data would make the other side lose what it has not read yet.
    pub fn close_gently(mut self, patience: Duration) {
        let until = Instant::now() + patience;
        if each!(self, stream => stream.shutdown(Shutdown::Write)).is_err() {
            return;
        }
        let mut scrap = vec![0; 64 << 10];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.set_timeout(Some(left)).is_err() {
                return;
            }
            match self.read(&mut scrap) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(self, stream => stream.as_fd())
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            each!(self, stream => stream.set_read_timeout(Some(left)))?;
        }
        each!(self, stream => { let mut stream = stream; stream.read(buffer) })
    }
}

impl Write for Link {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        each!(self, stream => { let mut stream = stream; stream.write(data) })
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        each!(self, stream => { let mut stream = stream; stream.write_vectored(data) })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
