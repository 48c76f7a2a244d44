//! The reasons why the service of a client ended.

use std::io;

use whimbrel_device::dma::DmaSpace;

use crate::capabilities::NegotiationError;
use crate::message::Command;
use crate::socket::SocketError;

/// The reason why the service of a client ended. The device is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The connection ended in the middle of a message, or with an invalid one.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The first message was not a valid VFIO_USER_VERSION.
    #[error("the client's first message must be a valid VFIO_USER_VERSION, received command {0}")]
    NoVersion(u16),
    /// Client and server are incompatible.
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
    /// The client did not answer in time. The device's access to its memory was a fault.
    #[error("timed out: no reply from the client to {0} for {timeout:?}", timeout = DmaSpace::REMOTE_TIMEOUT)]
    NoAnswer(Command),
    /// The client sent more than the server stores while the device waits for its memory.
    #[error(
        "the client sent more than {commands} commands ({bytes} bytes) while the server waited for its reply"
    )]
    Flood {
        /// Commands in the queue.
        commands: usize,
        /// Bytes in the queue.
        bytes: usize,
    },
    /// The client sent a command over the twin socket.
    #[error("the client sent command {0} over the twin socket, which accepts replies only")]
    CommandOverTwin(u16),
    /// Another client uses the device. This one got EBUSY.
    #[error("another client uses the device")]
    Busy,
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> ServeError {
        SocketError::System(error).into()
    }
}
