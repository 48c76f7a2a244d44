//! Progress on a terminal: a bar on stderr, and nothing at all in a pipe.

use std::io::Read;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use whimbrel_engine::{Blame, Observer, Phase, Progress};

use crate::output::{self, Output};

/// Interval between the movements of a bar without figures.
const TICK: Duration = Duration::from_millis(120);

/// A progress bar. It is removed when dropped.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "it is one")]
pub(crate) struct Bar {
    bar: ProgressBar,
    /// The total is known, or estimated by a migration.
    has_total: bool,
    /// The phase of a migration that was shown last.
    shown: Option<Phase>,
}

impl Bar {
    /// A bar for an operation of unknown progress.
    pub(crate) fn waiting(output: Output, message: impl Into<String>) -> Bar {
        let bar = Bar::new(output, ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}");
        bar.bar.set_message(message.into());
        if !bar.bar.is_hidden() {
            bar.bar.enable_steady_tick(TICK);
        }
        bar
    }

    /// A bar that counts bytes, up to `total` if that is known.
    pub(crate) fn bytes(output: Output, message: impl Into<String>, total: Option<u64>) -> Bar {
        let template = match total {
            Some(_) => "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            None => "{spinner} {msg} {bytes}, {bytes_per_sec}",
        };
        let inner = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let bar = Bar::new(output, inner, template);
        bar.bar.set_message(message.into());
        bar
    }

    /// A bar for a migration at the source, as an [`Observer`].
    pub(crate) fn migration(output: Output) -> Bar {
        let template = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}";
        let mut bar = Bar::new(output, ProgressBar::new(0), template);
        bar.has_total = true;
        bar
    }

    /// A bar for a migration at the destination, as an [`Observer`]. Only the source knows how much is left.
    pub(crate) fn arrival(output: Output, what: impl Into<String>) -> Bar {
        let template = "{spinner} {prefix}: {msg}, {bytes}, {bytes_per_sec}";
        let bar = Bar::new(output, ProgressBar::new_spinner(), template);
        bar.bar.set_prefix(what.into());
        bar
    }

    /// A bar for the save of devices.
    pub(crate) fn saving(output: Output, what: impl Into<String>) -> Bar {
        let template = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        let mut bar = Bar::new(output, ProgressBar::new(0), template);
        bar.has_total = true;
        bar.bar.set_message(what.into());
        bar
    }

    /// A bar for the cases of a test suite.
    pub(crate) fn cases(output: Output) -> Bar {
        Bar::new(output, ProgressBar::new(0), "[{bar:30}] {pos} of {len}, {msg}")
    }

    fn new(output: Output, bar: ProgressBar, template: &str) -> Bar {
        let shown = output.shows_progress();
        let bar = if shown { bar } else { ProgressBar::hidden() };
        // The templates are fixed; should one be wrong, the default bar does.
        if shown && let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Bar { bar, has_total: false, shown: None }
    }

    /// Sets the number of bytes so far, and the expected total.
    pub(crate) fn set(&self, done: u64, total: u64) {
        // The total is an estimate that can be passed.
        self.bar.set_length(total.max(done));
        self.bar.set_position(done);
    }

    /// Sets the number of cases.
    pub(crate) fn expect(&self, cases: usize) {
        self.bar.set_length(cases as u64);
    }

    /// Counts a case.
    pub(crate) fn count(&self) {
        self.bar.inc(1);
    }

    /// Writes something else to the terminal meanwhile.
    pub(crate) fn suspend(&self, write: impl FnOnce()) {
        self.bar.suspend(write);
    }

    /// Sets the current message.
    pub(crate) fn message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Counts the bytes read.
    pub(crate) fn reading<R: Read>(&self, input: R) -> impl Read {
        self.bar.wrap_read(input)
    }
}

impl Observer for Bar {
    fn progress(&mut self, progress: &Progress) {
        let message = describe(progress);
        if self.bar.message() != message {
            self.bar.set_message(message);
        }
        if self.shown.replace(progress.phase) != Some(progress.phase) {
            // The throughput of one phase says nothing about the next one.
            self.bar.reset_eta();
        }
        if self.has_total {
            self.set(progress.done, progress.total);
        } else {
            self.bar.set_position(progress.done);
        }
    }
}

/// The phase with its estimates, such as `round 2, 12 seconds left, downtime 14.3 ms expected`.
fn describe(progress: &Progress) -> String {
    let mut parts = vec![match progress.phase {
        Phase::Greeting => "negotiating".to_string(),
        Phase::Round(number) => format!("round {number}"),
        Phase::Reconnecting => "connection lost, reconnecting".to_string(),
        Phase::Switchover => "switchover".to_string(),
        Phase::Recovery => "recovering".to_string(),
        _ => "done".to_string(),
    }];
    if let Some(left) = progress.time_left {
        // Nobody knows yet how much is going to be resent.
        let least = if progress.phase == Phase::Round(1) { "at least " } else { "" };
        // A second that has begun counts.
        let seconds = Duration::from_secs(left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX));
        parts.push(format!("{least}{} left", HumanDuration(seconds)));
    }
    if let Some(expected) = progress.expected_downtime {
        parts.push(format!("downtime {} expected", output::duration(expected)));
    }
    match progress.blame {
        Some(Blame::Memory) => match progress.dirtiest {
            Some(range) => parts.push(format!("held up by memory at {:#x}", range.start)),
            None => parts.push("held up by memory".to_string()),
        },
        Some(Blame::Device(number)) => parts.push(format!("held up by device {}", number + 1)),
        _ => {}
    }
    parts.join(", ")
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_the_phase_the_time_left_and_the_downtime() {
        let with = |phase, left: Option<u64>, downtime: Option<u64>| {
            let mut progress = Progress::new(phase);
            progress.time_left = left.map(Duration::from_millis);
            progress.expected_downtime = downtime.map(Duration::from_millis);
            describe(&progress)
        };
        assert_eq!(with(Phase::Greeting, None, None), "negotiating");
        assert_eq!(with(Phase::Round(1), Some(34_100), None), "round 1, at least 35 seconds left");
        assert_eq!(
            with(Phase::Round(2), Some(100), Some(14)),
            "round 2, 1 second left, downtime 14.0 ms expected"
        );
        assert_eq!(with(Phase::Round(3), None, Some(900)), "round 3, downtime 900.0 ms expected");
        assert_eq!(with(Phase::Round(3), Some(3_600_000), None), "round 3, 60 minutes left");
        assert_eq!(with(Phase::Reconnecting, None, None), "connection lost, reconnecting");
        assert_eq!(with(Phase::Recovery, None, None), "recovering");
    }
}
