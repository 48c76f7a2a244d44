//! The bounds of a migration at the destination.

use std::time::Duration;

use crate::proto::LONGEST;
use crate::proto::frame::MAX_PAYLOAD;
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
    /// The time to wait for the source on another connection, after the one with it was lost in pre-copy. Zero: the loss ends
    /// the migration. The smaller of both sides' times counts. Of several connections, all are replaced when one is lost.
    pub reconnect: Duration,
    /// The maximum of memory for data that has arrived and that no device has taken yet, in bytes, whatever the source does.
    /// Each connection needs little more than 3 MiB of it: with less than that for all, fewer connections are allowed. It does
    /// not include the state of the source's owner, of which there may be 64 MiB, and the memory that is migrated, which is
    /// received in its place. Compressed memory is decompressed beside its place, within this bound.
    pub receive_memory: u64,
}

/// The memory that a connection takes: the largest payload, the memory of a compressed frame with its decompressor, and what is
/// read ahead.
const LANE: u64 = 2 << 20;
/// The memory that a buffer of device state takes: the largest payload.
const BUFFER: u64 = MAX_PAYLOAD as u64;

impl Default for DestinationOptions {
    fn default() -> DestinationOptions {
        DestinationOptions {
            timeout: Duration::from_mins(1),
            call_timeout: Duration::from_secs(10),
            expected_inspection: Duration::ZERO,
            channels: MAX_CHANNELS,
            reconnect: Duration::ZERO,
            receive_memory: 64 << 20,
        }
    }
}

impl DestinationOptions {
    /// Returns the same options, with times that a clock can add, and as many connections as there is memory for.
    pub(crate) fn within_bounds(self) -> DestinationOptions {
        let by_memory = u32::try_from(self.receive_memory / (LANE + BUFFER)).unwrap_or(u32::MAX);
        DestinationOptions {
            channels: self.channels.min(by_memory).clamp(1, MAX_CHANNELS),
            timeout: self.timeout.min(LONGEST),
            call_timeout: self.call_timeout.min(LONGEST),
            expected_inspection: self.expected_inspection.min(LONGEST),
            reconnect: self.reconnect.min(LONGEST),
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

    /// Returns the number of buffers for device state of a migration with so many connections.
    pub(crate) fn buffers(&self, channels: u32) -> usize {
        let left = self.receive_memory.saturating_sub(u64::from(channels) * LANE);
        usize::try_from(left / BUFFER).unwrap_or(usize::MAX).max(1)
    }

    /// Sets [`DestinationOptions::receive_memory`].
    #[must_use]
    pub fn receive_memory(self, receive_memory: u64) -> DestinationOptions {
        DestinationOptions { receive_memory, ..self }
    }

    /// Sets [`DestinationOptions::channels`].
    #[must_use]
    pub fn channels(self, channels: u32) -> DestinationOptions {
        DestinationOptions { channels, ..self }
    }

    /// Sets [`DestinationOptions::reconnect`].
    #[must_use]
    pub fn reconnect(self, reconnect: Duration) -> DestinationOptions {
        DestinationOptions { reconnect, ..self }
    }

    /// Sets [`DestinationOptions::expected_inspection`].
    #[must_use]
    pub fn expected_inspection(self, expected_inspection: Duration) -> DestinationOptions {
        DestinationOptions { expected_inspection, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_connections_than_there_is_memory_for() {
        let channels = |memory, channels| {
            let options = DestinationOptions::default().receive_memory(memory).channels(channels);
            options.within_bounds().channels
        };
        assert_eq!(channels(64 << 20, 16), 16);
        assert_eq!(channels(64 << 20, 99), 16);
        assert_eq!(channels(64 << 20, 0), 1);
        assert_eq!(channels(13 << 20, 16), 4);
        assert_eq!(channels(0, 16), 1);
    }

    #[test]
    fn what_the_connections_leave_is_for_buffers() {
        for (memory, connections) in [(64 << 20, 1), (64 << 20, 16), (13 << 20, 4), (4 << 20, 1)] {
            let options = DestinationOptions::default().receive_memory(memory).within_bounds();
            let buffers = options.buffers(connections);
            let held = u64::from(connections) * LANE + buffers as u64 * BUFFER;
            assert!(buffers >= connections as usize && held <= memory, "{memory} {connections}: {buffers}");
        }
    }
}
