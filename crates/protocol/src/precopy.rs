//! A user's account of a device's pre-copy data between two queries.
//!
//! When to stop the device is the user's decision.

/// The answer of `VFIO_MIG_GET_PRECOPY_INFO`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the two counts of the header")]
pub struct PrecopyBytes {
    /// Data that should be transferred before the device is stopped: without it the switchover takes longer than
    /// necessary. The count falls as the data is read and never rises, unless the driver reports REINIT.
    pub initial: u64,
    /// State beyond the initial data that has changed or has not been read yet. The count rises and falls.
    pub dirty: u64,
}

impl PrecopyBytes {
    /// Returns all data that can be read now. The sum saturates, because a driver may report any numbers.
    pub const fn total(self) -> u64 {
        self.initial.saturating_add(self.dirty)
    }
}

/// The whole answer of `VFIO_MIG_GET_PRECOPY_INFO`, as a driver gives it and a user gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrecopyReport {
    /// The two counts.
    pub bytes: PrecopyBytes,
    /// The initial data starts over (VFIO_PRECOPY_INFO_REINIT). Reported to users that opted in.
    pub reinit: bool,
}

impl PrecopyReport {
    /// Returns a report of this much data, in bytes, that does not start over.
    pub const fn new(initial: u64, dirty: u64) -> PrecopyReport {
        PrecopyReport { bytes: PrecopyBytes { initial, dirty }, reinit: false }
    }

    /// Sets [`PrecopyReport::bytes`].
    #[must_use]
    pub const fn bytes(self, bytes: PrecopyBytes) -> PrecopyReport {
        PrecopyReport { bytes, ..self }
    }

    /// Sets [`PrecopyReport::reinit`].
    #[must_use]
    pub const fn reinit(self, reinit: bool) -> PrecopyReport {
        PrecopyReport { reinit, ..self }
    }
}

impl From<PrecopyBytes> for PrecopyReport {
    fn from(bytes: PrecopyBytes) -> PrecopyReport {
        PrecopyReport { bytes, reinit: false }
    }
}

/// The user's account of one device's pre-copy phase.
///
/// ```
/// use whimbrel_protocol::precopy::{PrecopyBytes, Progress};
///
/// let mut progress = Progress::default();
/// progress.report(PrecopyBytes { initial: 100, dirty: 0 }, false);
/// progress.read(60);
/// assert!(!progress.initial_done());
/// progress.read(40);
/// assert!(progress.initial_done());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    remaining: PrecopyBytes,
    reported: bool,
    total_read: u64,
}

impl Progress {
    /// Takes the device's current report. `reinit` is the driver's REINIT flag: the initial data starts over.
    ///
    /// Without REINIT the initial bytes may only fall. If a driver lets them rise, the lower figure counts, so that the
    /// driver cannot delay the switchover forever.
    pub fn report(&mut self, bytes: PrecopyBytes, reinit: bool) {
        let initial =
            if self.reported && !reinit { bytes.initial.min(self.remaining.initial) } else { bytes.initial };
        // Initial bytes beyond the accepted figure are still data to transfer.
        let dirty = bytes.dirty.saturating_add(bytes.initial - initial);
        self.remaining = PrecopyBytes { initial, dirty };
        self.reported = true;
    }

    /// Counts bytes read from the data fd: initial data first, as the header defines the order.
    pub fn read(&mut self, count: u64) {
        self.total_read = self.total_read.saturating_add(count);
        let initial = count.min(self.remaining.initial);
        self.remaining.initial -= initial;
        self.remaining.dirty = self.remaining.dirty.saturating_sub(count - initial);
    }

    /// Returns whether the device has reported and all of its initial data has been read.
    pub const fn initial_done(&self) -> bool {
        self.reported && self.remaining.initial == 0
    }

    /// Returns the data left to read, according to the last report and the reads since.
    pub const fn remaining(&self) -> PrecopyBytes {
        self.remaining
    }

    /// Returns the number of bytes read so far.
    pub const fn total_read(&self) -> u64 {
        self.total_read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(initial: u64, dirty: u64) -> Progress {
        let mut progress = Progress::default();
        progress.report(PrecopyBytes { initial, dirty }, false);
        progress
    }

    #[test]
    fn nothing_is_done_before_the_device_has_reported() {
        assert!(!Progress::default().initial_done());
    }

    #[test]
    fn reads_count_against_the_initial_data_first() {
        let mut progress = reported(24, 100);
        progress.read(30);
        assert_eq!(progress.remaining(), PrecopyBytes { initial: 0, dirty: 94 });
        assert!(progress.initial_done());
    }

    #[test]
    fn more_may_be_read_than_was_reported() {
        let mut progress = reported(10, 10);
        progress.read(u64::MAX);
        assert_eq!(progress.remaining().total(), 0);
        assert_eq!(progress.total_read(), u64::MAX);
    }

    #[test]
    fn initial_bytes_that_rise_without_reinit_become_dirty_bytes() {
        let mut progress = reported(10, 0);
        progress.read(10);
        progress.report(PrecopyBytes { initial: 50, dirty: 5 }, false);
        assert!(progress.initial_done());
        assert_eq!(progress.remaining(), PrecopyBytes { initial: 0, dirty: 55 });
    }

    #[test]
    fn reinit_arms_the_initial_data_again() {
        let mut progress = reported(10, 0);
        progress.read(10);
        progress.report(PrecopyBytes { initial: 50, dirty: 0 }, true);
        assert!(!progress.initial_done());
    }

    #[test]
    fn absurd_reports_saturate() {
        assert_eq!(reported(u64::MAX, u64::MAX).remaining().total(), u64::MAX);
    }
}
