//! The bounds of a migration at the destination.

use std::time::Duration;

use crate::proto::LONGEST;
use crate::proto::join::MAX_CHANNELS;

/// The bounds of a migration at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationOptions {
    /// Timeout for each frame of the source, and for the handover.
    pub timeout: Duration,
    /// Timeout for a call into a driver, and for the owner's inspection.
    pub call_timeout: Duration,
    /// Time that the owner expects to need to load its blobs and to inspect the result. The source counts it in its
    /// prediction of the downtime.
    pub expected_inspection: Duration,
    /// The maximum number of connections in all that the source may use, 1 to 16.
    pub channels: u32,
}

impl Default for DestinationOptions {
    fn default() -> DestinationOptions {
        DestinationOptions {
            timeout: Duration::from_mins(1),
            call_timeout: Duration::from_secs(10),
            expected_inspection: Duration::ZERO,
            channels: MAX_CHANNELS,
        }
    }
}

impl DestinationOptions {
    /// Returns the same options, with times that a clock can add.
    pub(crate) fn within_clock(self) -> DestinationOptions {
        DestinationOptions {
            timeout: self.timeout.min(LONGEST),
            call_timeout: self.call_timeout.min(LONGEST),
            expected_inspection: self.expected_inspection.min(LONGEST),
            ..self
        }
    }

    /// Sets [`DestinationOptions::timeout`].
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> DestinationOptions {
        DestinationOptions { timeout, ..self }
    }

    /// Sets [`DestinationOptions::call_timeout`].
    #[must_use]
    pub fn call_timeout(self, call_timeout: Duration) -> DestinationOptions {
        DestinationOptions { call_timeout, ..self }
    }

    /// Sets [`DestinationOptions::channels`].
    #[must_use]
    pub fn channels(self, channels: u32) -> DestinationOptions {
        DestinationOptions { channels, ..self }
    }

    /// Sets [`DestinationOptions::expected_inspection`].
    #[must_use]
    pub fn expected_inspection(self, expected_inspection: Duration) -> DestinationOptions {
        DestinationOptions { expected_inspection, ..self }
    }
}
