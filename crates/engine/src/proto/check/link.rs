//! The measurement of a link by a check: a few round trips, then padding in rounds that grow while time is left.

use std::time::Duration;

use serde::Serialize;
use whimbrel_protocol::estimate::Bandwidth;

use crate::report::milliseconds;

/// The size of the first round in bytes: it takes no long time on a slow link.
const FIRST_ROUND: u64 = 16 << 10;
/// The maximum of padding in bytes, which a destination reads.
pub(crate) const MAX_PADDING: u64 = 32 << 20;
/// The time for the padding.
pub(crate) const TIME: Duration = Duration::from_secs(1);
/// The number of round trips that are measured.
pub(crate) const ROUND_TRIPS: u32 = 5;

/// A link, as a check has measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Link {
    /// The shortest of the measured round trips.
    pub round_trip_ms: f64,
    /// The longest of them.
    pub longest_round_trip_ms: f64,
    /// The throughput; `None` if it could not be measured.
    pub throughput_bytes_per_s: Option<f64>,
    /// Bytes sent to measure the throughput.
    pub padding_bytes: u64,
}

/// A measurement in progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurement {
    round_trips: Vec<Duration>,
    bandwidth: Bandwidth,
    last: u64,
    next: u64,
    sent: u64,
}

impl Measurement {
    /// Takes in the duration of a round trip.
    pub(crate) fn pong(&mut self, took: Duration) {
        self.round_trips.push(took);
    }

    /// Takes in the time from the first byte of a round until the destination had all of it.
    pub(crate) fn round(&mut self, bytes: u64, took: Duration) {
        let without_trip = took.saturating_sub(self.shortest());
        // A short round on a long link must not promise too much.
        let carrying = without_trip.max(took / 8).max(Duration::from_micros(1));
        self.bandwidth.sample(bytes, carrying);
        // One that was mostly a round trip says little.
        self.next = bytes * if without_trip < took / 2 { 8 } else { 2 };
        self.last = bytes;
        self.sent += bytes;
    }

    /// Returns the size of the next round, or `None` if enough is known or it would take too long. `elapsed` is the time since
    /// the first round began.
    pub(crate) fn next_round(&self, elapsed: Duration) -> Option<u64> {
        let next = if self.last == 0 { FIRST_ROUND } else { self.next.min(MAX_PADDING - self.sent) };
        let expected = self.bandwidth.bytes_per_second().map_or(0.0, |speed| next as f64 / speed);
        let fits = elapsed.as_secs_f64() + expected <= TIME.as_secs_f64();
        // A round that is smaller than the last one adds nothing.
        (fits && next >= self.last.max(1)).then_some(next)
    }

    fn shortest(&self) -> Duration {
        self.round_trips.iter().copied().min().unwrap_or_default()
    }

    /// Returns the link as it is known now.
    pub(crate) fn link(&self) -> Link {
        Link {
            round_trip_ms: milliseconds(self.shortest()),
            longest_round_trip_ms: milliseconds(self.round_trips.iter().copied().max().unwrap_or_default()),
            throughput_bytes_per_s: self.bandwidth.bytes_per_second(),
            padding_bytes: self.sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measures a link with this throughput and round trip. Returns it with the time taken.
    fn measure(bytes_per_second: f64, round_trip: Duration) -> (Link, Duration) {
        let mut measurement = Measurement::default();
        measurement.pong(round_trip);
        let mut elapsed = Duration::ZERO;
        while let Some(bytes) = measurement.next_round(elapsed) {
            let took = Duration::from_secs_f64(bytes as f64 / bytes_per_second) + round_trip;
            measurement.round(bytes, took);
            elapsed += took;
        }
        (measurement.link(), elapsed)
    }

    #[test]
    fn links_of_every_width_are_measured_in_about_a_second_and_never_too_well() {
        for (speed, round_trip) in
            [(20e3, 300), (1e6, 1), (1e6, 200), (125e6, 1), (125e6, 100), (1.25e9, 1), (12.5e9, 0)]
        {
            let (link, elapsed) = measure(speed, Duration::from_millis(round_trip));
            let measured = link.throughput_bytes_per_s.unwrap();
            assert!(measured <= speed * 1.01 && measured > speed / 4.0, "{speed}: {measured}");
            // The first round takes what it takes.
            assert!(elapsed <= Duration::from_millis(1300), "{speed}: {elapsed:?}");
            assert!(link.padding_bytes <= MAX_PADDING);
        }
    }

    #[test]
    fn a_fast_link_is_measured_with_much_and_a_slow_one_with_little() {
        assert!(measure(1.25e9, Duration::ZERO).0.padding_bytes > MAX_PADDING / 2);
        assert_eq!(measure(20e3, Duration::ZERO).0.padding_bytes, FIRST_ROUND);
    }

    #[test]
    fn without_a_round_the_throughput_is_unknown() {
        let mut measurement = Measurement::default();
        measurement.pong(Duration::from_millis(3));
        measurement.pong(Duration::from_millis(2));
        let link = measurement.link();
        assert_eq!((link.round_trip_ms, link.longest_round_trip_ms), (2.0, 3.0));
        assert_eq!(link.throughput_bytes_per_s, None);
    }
}
