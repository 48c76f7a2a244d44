//! The bytes of memory and state that a source has sent, also by operations that have not ended well.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::report::Report;

/// The sums, which all threads of a source add to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    memory: AtomicU64,
    /// The part of it that was zero.
    zero: AtomicU64,
    /// Both when the last round had arrived.
    arrived: Mutex<(u64, u64)>,
    /// The memory sent before the stop.
    before_stop: AtomicU64,
    /// Those of each device.
    devices: Mutex<Vec<State>>,
}

/// The bytes of a device's state.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    all: u64,
    /// The part of it that was sent after the stop.
    last: u64,
}

impl Tally {
    /// Adds memory.
    pub(super) fn memory(&self, bytes: u64, is_zero: bool) {
        self.memory.fetch_add(bytes, Ordering::Relaxed);
        if is_zero {
            self.zero.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Adds state of a device that was read for the first time.
    pub(super) fn state(&self, device: u32, bytes: u64, is_stopped: bool) {
        let (mut devices, index) = (self.devices.lock(), device as usize);
        if devices.len() <= index {
            devices.resize(index + 1, State::default());
        }
        devices[index].all += bytes;
        devices[index].last += if is_stopped { bytes } else { 0 };
    }

    /// Takes in that the memory of a round has arrived.
    pub(super) fn round_arrived(&self) {
        *self.arrived.lock() = self.both();
    }

    /// Takes in that the memory of a round was sent in vain.
    pub(super) fn round_lost(&self) {
        let (memory, zero) = *self.arrived.lock();
        self.memory.store(memory, Ordering::Relaxed);
        self.zero.store(zero, Ordering::Relaxed);
    }

    /// Takes in that everything has stopped.
    pub(super) fn stopped(&self) {
        self.before_stop.store(self.both().0, Ordering::Relaxed);
    }

    fn both(&self) -> (u64, u64) {
        (self.memory.load(Ordering::Relaxed), self.zero.load(Ordering::Relaxed))
    }

    /// Sets the sums in the report of a migration that has failed.
    pub(super) fn complete(&self, report: &mut Report) {
        (report.memory_bytes, report.zero_bytes) = self.both();
        let devices = self.devices.lock();
        for (of, state) in report.devices.iter_mut().zip(&*devices) {
            (of.device_bytes, of.final_bytes) = (state.all, state.last);
        }
        report.device_bytes = devices.iter().map(|state| state.all).sum();
        report.final_bytes = devices.iter().map(|state| state.last).sum();
        let before = self.before_stop.load(Ordering::Relaxed);
        if before > 0 && report.stopped_at_ms.is_some() {
            report.final_bytes += report.memory_bytes.saturating_sub(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::DeviceReport;

    fn report(tally: &Tally, stopped_at_ms: Option<f64>) -> Report {
        let devices = vec![DeviceReport::default(); 3];
        let mut report = Report { devices, stopped_at_ms, ..Report::default() };
        tally.complete(&mut report);
        report
    }

    #[test]
    fn everything_sent_counts_by_device_and_by_the_stop() {
        let tally = Tally::default();
        tally.memory(100, false);
        tally.memory(50, true);
        tally.state(2, 7, false);
        let before = report(&tally, None);
        assert_eq!((before.memory_bytes, before.zero_bytes, before.final_bytes), (150, 50, 0));
        tally.stopped();
        tally.state(2, 3, true);
        tally.state(0, 2, true);
        tally.memory(10, false);
        let after = report(&tally, Some(1.0));
        assert_eq!((after.memory_bytes, after.device_bytes, after.final_bytes), (160, 12, 15));
        let devices: Vec<_> = after.devices.iter().map(|of| (of.device_bytes, of.final_bytes)).collect();
        assert_eq!(devices, [(2, 2), (0, 0), (10, 3)]);
    }

    #[test]
    fn a_round_that_was_lost_with_its_connection_counts_once() {
        let tally = Tally::default();
        tally.memory(100, true);
        tally.round_arrived();
        tally.memory(30, true);
        tally.round_lost();
        tally.memory(40, false);
        let report = report(&tally, None);
        assert_eq!((report.memory_bytes, report.zero_bytes), (140, 100));
    }
}
