//! The figures that a downtime is predicted from: the throughput of a link, and the data that is left.
//!
//! This module reads no clock: the caller measures and passes durations in.

use std::time::Duration;

/// A running estimate of the link's end-to-end throughput.
///
/// Each sample covers a period of sending up to the moment the other side confirmed that it had everything, so buffers
/// on the way do not count as throughput. Newer samples weigh as much as all older ones together, by bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bandwidth {
    bytes: f64,
    seconds: f64,
}

impl Bandwidth {
    /// Smaller samples tell more about latency than about throughput, so they are ignored once a better one exists.
    const MIN_BYTES: f64 = 65536.0;

    /// Adds a sample: `bytes` transferred in `elapsed`.
    pub fn sample(&mut self, bytes: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let bytes = bytes as f64;
        let better_known = bytes < Self::MIN_BYTES && self.bytes >= Self::MIN_BYTES;
        if seconds <= 0.0 || bytes <= 0.0 || better_known {
            return;
        }
        let keep = (bytes / self.bytes.max(bytes)).min(1.0);
        self.bytes = self.bytes * keep + bytes;
        self.seconds = self.seconds * keep + seconds;
    }

    /// Returns the throughput in bytes per second, or `None` before the first sample.
    pub fn bytes_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.bytes / self.seconds)
    }
}

/// The data left to transfer once the device is stopped, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remaining {
    /// Dirty memory.
    pub memory: u64,
    /// Device state that STOP_COPY will still yield, as the device reports it.
    pub device: u64,
}

impl Remaining {
    /// Returns this much dirty memory and device state.
    pub const fn new(memory: u64, device: u64) -> Remaining {
        Remaining { memory, device }
    }
}

impl Remaining {
    /// Returns the sum of memory and device state.
    pub const fn total(self) -> u64 {
        self.memory.saturating_add(self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bandwidth(bytes: u64, elapsed: Duration) -> Bandwidth {
        let mut bandwidth = Bandwidth::default();
        bandwidth.sample(bytes, elapsed);
        bandwidth
    }

    #[test]
    fn the_first_sample_is_the_speed() {
        let speed = bandwidth(1_000_000, Duration::from_secs(2)).bytes_per_second().unwrap();
        assert!((speed - 500_000.0).abs() < 1e-6);
    }

    #[test]
    fn an_empty_round_does_not_change_the_speed() {
        let mut after = bandwidth(1_000_000, Duration::from_secs(1));
        let before = after.bytes_per_second();
        after.sample(0, Duration::from_secs(5));
        after.sample(4096, Duration::from_secs(5));
        assert_eq!(after.bytes_per_second(), before);
    }

    #[test]
    fn after_a_small_first_sample_small_ones_count_until_there_is_a_larger_one() {
        let mut speed = bandwidth(100, Duration::from_secs(1));
        speed.sample(300, Duration::from_secs(1));
        assert!((speed.bytes_per_second().unwrap() - 200.0).abs() < 1e-6);
    }

    #[test]
    fn a_newer_sample_of_the_same_size_weighs_half() {
        let mut speed = bandwidth(1_000_000, Duration::from_secs(1));
        speed.sample(1_000_000, Duration::from_secs(3));
        assert!((speed.bytes_per_second().unwrap() - 500_000.0).abs() < 1e-6);
    }

    #[test]
    fn a_large_old_sample_does_not_drown_a_newer_one() {
        let mut speed = bandwidth(1_000_000_000, Duration::from_secs(1));
        speed.sample(1_000_000, Duration::from_secs(1));
        assert!(speed.bytes_per_second().unwrap() < 3_000_000.0);
    }
}
