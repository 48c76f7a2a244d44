//! The compression of what is sent: whether both sides use it, and how much smaller data becomes, which the prediction of the
//! downtime depends on.

use whimbrel_protocol::estimate::Remaining;

use super::Source;
use crate::proto::negotiate::Feature;
use crate::proto::operation::Sent;

/// The compression of a migration.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Compression {
    memory: Density,
    state: Density,
}

/// The part of some data that is left on the link.
#[derive(Clone, Copy, Debug, Default)]
struct Density {
    bytes: f64,
    wire: f64,
}

impl Density {
    /// Smaller samples say little of other data, so they are ignored once a better one exists.
    const MIN_BYTES: f64 = 65536.0;

    /// Takes in data that weighs as much as all before it together, as in
    /// [`Bandwidth`](whimbrel_protocol::estimate::Bandwidth): devices differ.
    fn sample(&mut self, bytes: u64, wire: u64) {
        if self.is_known_better(bytes) {
            return;
        }
        let (bytes, wire) = (bytes as f64, wire as f64);
        let keep = (bytes / self.bytes.max(bytes)).min(1.0);
        self.bytes = self.bytes * keep + bytes;
        self.wire = self.wire * keep + wire;
    }

    /// Takes in data that says more than all before it: what is written in a round is what was written in the last one.
    fn replace(&mut self, bytes: u64, wire: u64) {
        if !self.is_known_better(bytes) {
            *self = Density { bytes: bytes as f64, wire: wire as f64 };
        }
    }

    fn is_known_better(self, bytes: u64) -> bool {
        bytes == 0 || ((bytes as f64) < Self::MIN_BYTES && self.bytes >= Self::MIN_BYTES)
    }

    /// Returns the bytes on the link of so many bytes of such data. Without a sample they are as many.
    #[expect(clippy::cast_sign_loss, reason = "no size is below zero")]
    fn of(self, bytes: u64) -> u64 {
        if self.wire >= self.bytes {
            return bytes;
        }
        (bytes as f64 * (self.wire / self.bytes)) as u64
    }
}

impl Source {
    /// Returns whether memory and state are compressed.
    pub fn compresses(&self) -> bool {
        self.features.contains(&Feature::Zstd)
    }

    /// Takes in the features of ACCEPT.
    pub(super) fn agree_on_compression(&mut self) {
        self.report.compression = self.compresses();
        if self.plan.offer.features.contains(Feature::Zstd.name()) && !self.compresses() {
            self.warn("nothing is compressed: the destination cannot decompress".to_string());
        }
    }

    /// Takes in memory that was sent.
    pub(super) fn memory_was_sent(&mut self, sent: Sent) {
        self.report.memory_wire_bytes += sent.wire;
        if self.compresses() {
            self.compression.memory.replace(sent.bytes.saturating_sub(sent.zero), sent.wire);
        }
    }

    /// Takes in state of a device that was sent.
    pub(super) fn state_was_sent(&mut self, sent: Sent) {
        self.report.device_wire_bytes += sent.wire;
        if self.compresses() {
            self.compression.state.sample(sent.bytes, sent.wire);
        }
    }

    /// Returns the bytes on the link that data will take.
    pub(super) fn on_the_link(&self, data: Remaining) -> Remaining {
        let Compression { memory, state } = self.compression;
        Remaining::new(memory.of(data.memory), state.of(data.device))
    }

    /// Returns the bytes of memory and state that the link carries in a second.
    pub(super) fn data_per_second(&self) -> Option<f64> {
        let left = self.remaining();
        let speed = self.bandwidth.bytes_per_second()?;
        match self.on_the_link(left).total() {
            0 => Some(speed),
            wire => Some(speed * left.total() as f64 / wire as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_sample_data_stays_as_large_as_it_is() {
        assert_eq!(Density::default().of(12_345), 12_345);
    }

    #[test]
    fn the_newest_data_counts_half() {
        let mut density = Density::default();
        density.sample(1 << 20, 1 << 18);
        assert_eq!(density.of(4000), 1000);
        density.sample(1 << 20, 3 << 18);
        assert_eq!(density.of(4000), 2000);
        density.sample(100, 200);
        assert_eq!(density.of(4000), 2000, "too little data to say anything");
    }

    #[test]
    fn the_newest_memory_counts_alone() {
        let mut density = Density::default();
        density.replace(1 << 30, 1 << 29);
        density.replace(1 << 20, 1 << 18);
        assert_eq!(density.of(4000), 1000);
        density.replace(100, 200);
        density.replace(0, 40);
        assert_eq!(density.of(4000), 1000, "too little data to say anything");
    }

    #[test]
    fn frames_make_no_data_larger_than_it_is() {
        let mut density = Density::default();
        density.sample(100, 140);
        assert_eq!(density.of(1 << 40), 1 << 40);
    }
}
