//! The connection between the two sides of a migration.
//!
//! [`Channel`] is a byte stream over any transport that the owner of a migration provides. [`Stream`] is one over TCP,
//! a Unix socket or any other connected stream socket. [`connect`] and [`Listener`] create such streams, and [`Tls`] makes
//! encrypted ones of them. [`Sender`] and [`Receiver`] transfer frames over any channel.
//!
//! A migration may use further connections: [`Connect`] opens them at the source, and [`Joins`] takes them in at the
//! destination.
//!
//! Every wait is bounded: it takes an [`Until`], which is an absolute deadline, an [`Interrupt`], or both.

mod address;
mod bound;
mod checks;
mod connect;
mod connector;
mod error;
mod input;
mod joins;
mod listener;
mod low_water;
mod receiver;
mod sender;
mod stream;
mod tls;
mod visitor_stream;
mod visitors;
mod wait;
mod warnings;

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

pub use address::{Address, AddressError};
pub use connect::{ConnectError, connect, connect_once};
pub use connector::{Connect, Connector, ConnectorError};
pub use error::ChannelError;
pub(crate) use error::named;
pub(crate) use joins::{Further, new_secret};
pub use joins::{JoinError, Joins};
pub use listener::{Accepted, Listener};
pub use receiver::{MemoryData, Received, Receiver};
pub use sender::Sender;
pub use stream::Stream;
pub use tls::{Tls, TlsError, TlsStream};
pub use wait::{Interrupt, Readiness, Until, WaitError};

/// A connected, reliable byte stream in both directions.
///
/// A read and a write may happen at the same time on different threads. Neither blocks: both fail with
/// [`WouldBlock`](io::ErrorKind::WouldBlock) instead.
pub trait Channel: Send + Sync + Debug {
    /// Reads some bytes; 0 at the end of the stream.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes some bytes of the buffers, in order. A channel may keep them until [`Channel::try_flush`].
    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends the written bytes that the channel still keeps.
    ///
    /// Does nothing by default, for a channel that keeps none.
    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Returns the descriptor to poll after [`WouldBlock`](io::ErrorKind::WouldBlock), for reading or for writing.
    fn readiness_fd(&self) -> BorrowedFd<'_>;

    /// Announces that the reader is about to poll for at least `bytes` more bytes, which the peer is going to send. A
    /// channel may become readable later for that, when more of them have arrived, but not if the peer sends no more: it
    /// ends the stream, or waits until the reader reads.
    ///
    /// Does nothing by default.
    fn expect(&self, bytes: usize) {
        let _ = bytes;
    }

    /// Returns bytes that identify the peer, such as its certificate: those of all connections of a migration have to be
    /// equal.
    ///
    /// `None` by default, for a channel that does not know its peer.
    fn peer_identity(&self) -> Option<Vec<u8>> {
        None
    }

    /// Ends the outbound stream. The peer reads the bytes written so far and then the end.
    fn shutdown_write(&self) -> io::Result<()>;
}

#[cfg(test)]
mod tests;
