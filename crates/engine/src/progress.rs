//! What a migration tells while it goes on.

use std::time::Duration;

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Both ends agree on what is moved.
    Greeting,
    /// A pre-copy round, from 1.
    Round(u32),
    /// The device is stopped and the rest is carried.
    Switchover,
    /// It was given up, and the devices are brought back.
    Recovery,
    /// It is over.
    Done,
}

/// A moment of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Where it stands.
    pub phase: Phase,
    /// Bytes carried in this phase.
    pub done: u64,
    /// Bytes this phase is expected to carry. An estimate; it can be passed.
    pub total: u64,
    /// The downtime to expect, once there is an estimate.
    pub expected_downtime: Option<Duration>,
}

impl Progress {
    /// A phase in which nothing has been carried yet, and of which nothing is known.
    pub fn new(phase: Phase) -> Progress {
        Progress { phase, done: 0, total: 0, expected_downtime: None }
    }
}

/// Someone who watches. Called on the thread that migrates: it must be quick.
pub trait Observer: Send {
    /// Something has moved.
    fn progress(&mut self, progress: &Progress);
}

/// Nobody watches.
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
