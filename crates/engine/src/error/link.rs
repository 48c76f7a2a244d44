//! Errors of the link between the two sides.

use std::io;
use std::time::Duration;

use super::Error;
use crate::channel::{ChannelError, ConnectError, TlsError, WaitError, named};
use crate::proto::greeting::BUSY;

impl Error {
    /// Returns the error of a failed channel to `side`.
    pub(crate) fn of_channel(side: &'static str, timeout: Duration, error: ChannelError) -> Error {
        match error {
            ChannelError::Interrupted => Error::Interrupted,
            ChannelError::TimedOut => Error::Silent { side, waited: timeout },
            ChannelError::Closed => Error::Lost { side },
            ChannelError::Malformed(error) => Error::Malformed(error),
            ChannelError::Failed(error) => match error.downcast::<TlsError>() {
                Ok(error) => Error::Tls(error),
                Err(error) => Error::Link(error),
            },
        }
    }

    /// Returns an error that says the same of the link, for another operation that it ends.
    pub(crate) fn again(&self) -> Error {
        match self {
            Error::Lost { side } => Error::Lost { side },
            Error::Silent { side, waited } => Error::Silent { side, waited: *waited },
            Error::Link(error) => Error::Link(io::Error::new(error.kind(), named(error))),
            other => Error::Link(io::Error::other(other.to_string())),
        }
    }

    /// Returns whether the link to the other side is unusable.
    pub(crate) fn is_of_the_link(&self) -> bool {
        matches!(
            self,
            Error::Link(_)
                | Error::Tls(_)
                | Error::Silent { .. }
                | Error::Lost { .. }
                | Error::NotResumed { .. }
                | Error::Peer { .. }
        )
    }

    /// Returns whether the connection is broken, without a fault of the other side.
    pub(crate) const fn is_a_break(&self) -> bool {
        matches!(self, Error::Link(_) | Error::Silent { .. } | Error::Lost { .. })
    }

    /// Returns whether another attempt to open a connection may succeed: it was refused for now, or nobody has answered.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Error::Peer { reason, .. } => reason.starts_with(BUSY),
            Error::Connect(error) => is_passing(&**error),
            Error::Lane { error, .. } => error.is_passing(),
            error => error.is_a_break(),
        }
    }
}

/// Returns whether a connector may connect later. One with errors of its own says nothing of that.
fn is_passing(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable,
        NetworkUnreachable, NotFound, TimedOut, UnexpectedEof, WouldBlock,
    };
    if let Some(error) = error.downcast_ref::<ConnectError>() {
        return match error {
            ConnectError::TimedOut(_) => true,
            ConnectError::Failed { error, .. } => is_passing(error),
            _ => false,
        };
    }
    if let Some(error) = error.downcast_ref::<TlsError>() {
        return match error {
            TlsError::Wait(WaitError::TimedOut) => true,
            TlsError::Failed(error) => is_passing(error),
            _ => false,
        };
    }
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(
        kind,
        Some(
            BrokenPipe
                | ConnectionAborted
                | ConnectionRefused
                | ConnectionReset
                | HostUnreachable
                | NetworkUnreachable
                | NotFound
                | TimedOut
                | UnexpectedEof
                | WouldBlock
        )
    )
}
