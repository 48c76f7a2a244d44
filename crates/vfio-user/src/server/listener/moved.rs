//! The figures of a takeover: the state that has moved, and the pause of the device's client.

use std::time::Duration;

/// The device's state that has moved to another server, and the pause in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// Bytes of the device's state that moved while the device worked.
    pub precopy_bytes: u64,
    /// Bytes of the device's state that moved while the device was stopped.
    pub stopped_bytes: u64,
    /// The time in which no request of the client was executed, as the old server knows it.
    pub pause: Duration,
}
