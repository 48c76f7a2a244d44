//! The progress of a migration over time, thinned out so that its size is bounded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_engine::{Observer, Phase, Progress};

/// The maximum number of samples. Half of them are left out when it is reached.
const MAX_SAMPLES: usize = 2000;
/// The shortest time between two samples of a phase at first.
const EVERY: Duration = Duration::from_millis(5);

/// The progress at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Time since the beginning.
    pub(crate) at: Duration,
    pub(crate) progress: Progress,
}

impl Sample {
    /// Bytes that the phase has yet to send.
    pub(crate) fn left(&self) -> Option<u64> {
        match self.progress.phase {
            // Without a total it is not known yet.
            Phase::Round(_) | Phase::Switchover if self.progress.total > 0 => {
                Some(self.progress.total.saturating_sub(self.progress.done))
            }
            _ => None,
        }
    }
}

/// The samples of a migration.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    pub(crate) list: Vec<Sample>,
    every: Duration,
}

impl Samples {
    /// Adds a sample, unless the last one of its phase was just taken.
    fn add(&mut self, sample: Sample) {
        let every = self.every.max(EVERY);
        let is_due = self.list.last().is_none_or(|last| {
            last.progress.phase != sample.progress.phase || sample.at.saturating_sub(last.at) >= every
        });
        if !is_due {
            return;
        }
        self.list.push(sample);
        if self.list.len() >= MAX_SAMPLES {
            // Half of them, evenly over all the time: also of phases that were shorter than that.
            self.every = every.max(sample.at * 2 / MAX_SAMPLES as u32);
            let (mut last, every) = (None, self.every);
            self.list.retain(|sample| {
                let keep = last.is_none_or(|last| sample.at.saturating_sub(last) >= every);
                if keep {
                    last = Some(sample.at);
                }
                keep
            });
        }
    }
}

/// An observer that keeps samples, and passes the progress on.
pub(crate) struct Watching<O> {
    pub(crate) inner: O,
    pub(crate) samples: Arc<Mutex<Samples>>,
    pub(crate) began: Instant,
}

impl<O: Observer> Observer for Watching<O> {
    fn progress(&mut self, progress: &Progress) {
        self.samples.lock().add(Sample { at: self.began.elapsed(), progress: *progress });
        self.inner.progress(progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ms: u64, phase: Phase) -> Sample {
        Sample { at: Duration::from_millis(ms), progress: Progress::new(phase) }
    }

    #[test]
    fn a_long_migration_has_samples_of_all_its_time_and_of_each_phase() {
        let mut samples = Samples::default();
        for ms in 0..1_000_000 {
            samples.add(sample(ms, Phase::Round(u32::try_from(ms / 100_000).unwrap())));
        }
        assert!(samples.list.len() < MAX_SAMPLES);
        assert!(samples.list.windows(2).all(|pair| pair[1].at < pair[0].at + Duration::from_secs(2)));
        for round in 0..10 {
            assert!(
                samples.list.iter().any(|sample| sample.progress.phase == Phase::Round(round)),
                "{round}"
            );
        }
    }

    #[test]
    fn nothing_is_said_of_what_is_left_until_that_is_known() {
        let mut sample = sample(0, Phase::Round(1));
        assert_eq!(sample.left(), None);
        (sample.progress.total, sample.progress.done) = (7, 7);
        assert_eq!(sample.left(), Some(0));
    }

    #[test]
    fn any_number_of_phases_is_bounded() {
        let mut samples = Samples::default();
        for round in 0..100_000 {
            samples.add(sample(u64::from(round), Phase::Round(round)));
        }
        assert!(samples.list.len() < MAX_SAMPLES);
        assert!(samples.list.last().unwrap().at > Duration::from_secs(98));
    }
}
