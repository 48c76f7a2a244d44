//! The errors of sending and receiving.

use std::io;

use whimbrel_user::Errno;

use super::WaitError;
use crate::proto::problem::StreamError;

/// The reasons why a frame was not sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The interrupt was set. The stream is intact, and a later call continues it.
    #[error("interrupted")]
    Interrupted,
    /// The deadline has passed. The stream is intact, and a later call continues it.
    #[error("timed out")]
    TimedOut,
    /// The peer has closed the connection, or its process ended.
    #[error("the peer closed the connection")]
    Closed,
    /// The connection is broken.
    #[error("the connection failed: {0}")]
    Failed(io::Error),
    /// The peer sent bytes that are not a stream of frames.
    #[error(transparent)]
    Malformed(StreamError),
}

impl ChannelError {
    /// Returns whether a later call may succeed, because the connection still works.
    pub fn is_wait(&self) -> bool {
        matches!(self, ChannelError::Interrupted | ChannelError::TimedOut)
    }
}

impl From<WaitError> for ChannelError {
    fn from(error: WaitError) -> ChannelError {
        match error {
            WaitError::Interrupted => ChannelError::Interrupted,
            WaitError::TimedOut => ChannelError::TimedOut,
            WaitError::Failed(error) => ChannelError::Failed(error),
        }
    }
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> ChannelError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match error.kind() {
            BrokenPipe | ConnectionReset | ConnectionAborted => ChannelError::Closed,
            _ => ChannelError::Failed(error),
        }
    }
}

/// An error of the system, with its errno by name.
pub(crate) fn named(error: &io::Error) -> String {
    Errno::from_io_error(error).map_or_else(|| error.to_string(), |errno| errno.to_string())
}
