//! The rate at which a program lets its device write memory.

use std::time::Instant;

/// An allowance of bytes that grows with time.
pub(super) struct Pace {
    bytes: f64,
    /// Bytes per second.
    rate: f64,
    /// The most bytes that are saved up.
    most: f64,
    last: Instant,
}

impl Pace {
    /// Returns a pace of `rate` bytes per second for work that writes `portion` bytes at a time.
    pub(super) fn new(rate: u64, portion: u64) -> Pace {
        let rate = rate as f64;
        // After a delay, at most a twentieth of a second is made up for; at a low rate, enough is saved for a portion.
        let most = (rate / 20.0).max(portion as f64);
        Pace { bytes: 0.0, rate, most, last: Instant::now() }
    }

    /// Grows the allowance by the time that has passed.
    pub(super) fn earn(&mut self) {
        let now = Instant::now();
        self.bytes = (self.bytes + self.rate * (now - self.last).as_secs_f64()).min(self.most);
        self.last = now;
    }

    /// Takes bytes from the allowance, if it has that many.
    pub(super) fn spend(&mut self, bytes: u64) -> bool {
        let is_enough = self.bytes >= bytes as f64;
        if is_enough {
            self.bytes -= bytes as f64;
        }
        is_enough
    }

    /// Forgets the time of a pause, which does not count as work.
    pub(super) fn resume(&mut self) {
        self.last = Instant::now();
    }
}
