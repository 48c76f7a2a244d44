//! The settings of a run.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::case::{Case, Level};
use crate::hooks::{DmaWriter, RegisterProbe};
use crate::known_failures::KnownFailures;
use crate::pattern::Pattern;
use crate::suite;

/// The settings of a run. The default is for a device that the run may do anything to but hang, such as one that is made
/// for each case.
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// Allows cases to reset the device.
    pub allow_reset: bool,
    /// Also runs cases that may hang the driver or the kernel.
    pub allow_hang: bool,
    /// Runs only cases that match one of these; all if empty.
    pub only: Vec<Pattern>,
    /// Runs no case that matches one of these.
    pub exclude: Vec<Pattern>,
    /// Runs only cases of these levels; all if empty.
    pub levels: Vec<Level>,
    /// The seed of random numbers.
    pub seed: u64,
    /// The number of runs of each case, each with the next seed.
    pub repeat: u32,
    /// Timeout for one request of a case. One that has not returned by then has hung.
    pub timeout: Duration,
    /// Upper bound for all requests of one case together.
    pub case_timeout: Duration,
    /// Bytes of a state that a case may hold; with a larger state, cases that compare states are inconclusive.
    pub state_limit: u64,
    /// Failures that are expected.
    pub known_failures: KnownFailures,
    /// Makes the device write to memory.
    pub writer: Option<Arc<dyn DmaWriter>>,
    /// Changes and shows the device's state.
    pub registers: Option<Arc<dyn RegisterProbe>>,
    /// A state that an earlier version of the driver has saved.
    pub stream: Option<Arc<[u8]>>,
    /// Also tests a device in STOP, STOP_COPY or RESUMING, which may hold the only copy of a migrated device.
    pub force: bool,
    /// Ends the run after the case that runs, once it is set.
    pub stop: Arc<AtomicBool>,
    /// A file for the requests of the case that runs, which outlives a process that the case kills. [`Relay`](crate::Relay)
    /// reads it.
    pub requests: Option<Arc<File>>,
    /// Number of results that an earlier process of the same run has reported already, and that are left out.
    pub reported: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            allow_reset: true,
            allow_hang: false,
            only: Vec::new(),
            exclude: Vec::new(),
            levels: Vec::new(),
            seed: 1,
            repeat: 1,
            timeout: Duration::from_mins(1),
            case_timeout: Duration::from_mins(10),
            state_limit: 256 << 20,
            known_failures: KnownFailures::default(),
            writer: None,
            registers: None,
            stream: None,
            force: false,
            stop: Arc::default(),
            requests: None,
            reported: 0,
        }
    }
}

impl Config {
    /// Returns whether the settings select the case with this id.
    pub fn selects(&self, id: &str, level: Level) -> bool {
        let matches = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(id));
        (self.only.is_empty() || matches(&self.only))
            && !matches(&self.exclude)
            && (self.levels.is_empty() || self.levels.contains(&level))
    }

    /// Returns the runs of the selected cases in order, each with its seed.
    pub(crate) fn planned(&self) -> Vec<(&'static Case, u64)> {
        let selected: Vec<_> = suite::cases().filter(|case| self.selects(case.id(), case.level())).collect();
        let seeds = (0..u64::from(self.repeat.max(1))).map(|round| self.seed.wrapping_add(round));
        seeds.flat_map(|seed| selected.iter().map(move |case| (*case, seed))).collect()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("allow_reset", &self.allow_reset)
            .field("allow_hang", &self.allow_hang)
            .field("seed", &self.seed)
            .field("repeat", &self.repeat)
            .finish_non_exhaustive()
    }
}
