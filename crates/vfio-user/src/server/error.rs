//! The reasons why a client is no longer served.

use std::io;

use whimbrel_device::dma::DmaSpace;

use crate::capabilities::NegotiationError;
use crate::message::Command;
use crate::socket::SocketError;

/// Why a client is no longer served. The device is as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The connection ended in the middle of a message, or with what is no message.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The first message was not a valid VFIO_USER_VERSION.
    #[error("the client began with command {0}, and not with a valid VFIO_USER_VERSION")]
    NoVersion(u16),
    /// Client and server cannot work together.
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
    /// The client did not answer in time. What the device wanted of its memory was a fault.
    #[error("the client did not answer {0} within {timeout:?}", timeout = DmaSpace::REMOTE_TIMEOUT)]
    NoAnswer(Command),
    /// The client sent more than can be kept, while the device waited for its memory.
    #[error(
        "the client went on after {commands} commands ({bytes} bytes) while its own answer was waited for"
    )]
    Flood {
        /// Commands that waited.
        commands: usize,
        /// Bytes that they had.
        bytes: usize,
    },
    /// The client sent a command over the twin socket.
    #[error("the client sent command {0} over the twin socket, which is for its answers alone")]
    CommandOverTwin(u16),
    /// Another client has the device. This one was told EBUSY.
    #[error("another client has the device")]
    Busy,
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> ServeError {
        SocketError::System(error).into()
    }
}
