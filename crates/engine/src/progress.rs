//! The progress of a running migration.

use std::time::Duration;

/// The phases of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Both sides agree on the devices and memory to migrate.
    Greeting,
    /// A pre-copy round, numbered from 1.
    Round(u32),
    /// The connection was lost in pre-copy, and is replaced. The devices continue at the source.
    Reconnecting,
    /// The devices are stopped and the rest is transferred.
    Switchover,
    /// The migration has failed, and the devices are returned to RUNNING.
    Recovery,
    /// The migration has ended.
    Done,
}

/// The memory or device that keeps a migration from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blame {
    /// Memory becomes dirty as fast as it is sent.
    Memory,
    /// The device with this number, from 0 in the order of the source, yields state as fast as it is sent, or has much of it
    /// that only its stop yields.
    Device(usize),
}

/// A part of the memory, and the data in it that became dirty in the last round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirtyRange {
    /// Guest physical address.
    pub start: u64,
    /// Size of the part in bytes.
    pub size: u64,
    /// Dirty data in it, in bytes.
    pub dirty: u64,
}

impl DirtyRange {
    /// Returns a part of the memory with so much dirty data.
    pub const fn new(start: u64, size: u64, dirty: u64) -> DirtyRange {
        DirtyRange { start, size, dirty }
    }
}

/// The progress of a migration at one moment. [`done`](Progress::done) and [`total`](Progress::total) are those of the current
/// phase, and start over with each round; only [`time_left`](Progress::time_left) is about the whole migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The current phase.
    pub phase: Phase,
    /// Bytes transferred in this phase.
    pub done: u64,
    /// Bytes that this phase is expected to transfer. An estimate, which can be exceeded.
    pub total: u64,
    /// The predicted downtime, once there is an estimate.
    pub expected_downtime: Option<Duration>,
    /// The downtime limit that holds now, which may have been raised. `None` at the destination.
    pub downtime_limit: Option<Duration>,
    /// The throughput of the link, in bytes per second, once it is known.
    pub throughput: Option<u64>,
    /// The rate at which data became dirty in the last round, in bytes per second.
    pub dirty_rate: Option<u64>,
    /// The memory or device that has most left to send, while the rounds get no better.
    pub blame: Option<Blame>,
    /// The part of the memory with most dirty data, at most 64 MiB, while memory is to blame and its writes are logged.
    pub dirtiest: Option<DirtyRange>,
    /// The estimated time until the devices run at the destination, in steps of 100 ms. The source estimates it from the
    /// data that is left, the throughput, and the rate at which memory and state become dirty. In the first round that
    /// rate is unknown and counts as zero: the time is then a lower bound. `None` before enough has been transferred,
    /// if the migration does not converge at these rates, and always at the destination.
    pub time_left: Option<Duration>,
}

impl Progress {
    /// Returns the progress at the start of a phase: nothing transferred, no estimates.
    pub fn new(phase: Phase) -> Progress {
        Progress {
            phase,
            done: 0,
            total: 0,
            expected_downtime: None,
            downtime_limit: None,
            throughput: None,
            dirty_rate: None,
            blame: None,
            dirtiest: None,
            time_left: None,
        }
    }
}

/// An observer of the progress. It is called on the thread that migrates, and must be quick.
pub trait Observer: Send {
    /// Called when the progress has changed.
    fn progress(&mut self, progress: &Progress);
}

/// An observer that ignores the progress.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to set")]
pub struct Silent;

impl Observer for Silent {
    fn progress(&mut self, _: &Progress) {}
}

impl<F: FnMut(&Progress) + Send> Observer for F {
    fn progress(&mut self, progress: &Progress) {
        self(progress);
    }
}
