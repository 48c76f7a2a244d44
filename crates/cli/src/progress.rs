//! Progress on a terminal: a bar on stderr, and nothing at all in a pipe.

use std::io::{Read, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use whimbrel_engine::{Observer, Phase, Progress};

use crate::output::{self, Output};

/// Interval between the movements of a bar without figures.
const TICK: Duration = Duration::from_millis(120);

/// A progress bar. It is removed when dropped.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
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
            Some(_) => "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}",
            None => "{spinner} {msg} {bytes}, {bytes_per_sec}",
        };
        let inner = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let bar = Bar::new(output, inner, template);
        bar.bar.set_message(message.into());
        bar
    }

    /// A bar for a migration at the source, as an [`Observer`].
    pub(crate) fn migration(output: Output) -> Bar {
        Bar::new(output, ProgressBar::new(0), "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}")
    }

    fn new(output: Output, bar: ProgressBar, template: &str) -> Bar {
        if !output.shows_progress() {
            return Bar { bar: ProgressBar::hidden() };
        }
        // The templates above are fixed; should one be wrong, the default bar does.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Bar { bar }
    }

    /// Sets the current message.
    pub(crate) fn message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Counts the bytes read.
    pub(crate) fn reading<R: Read>(&self, input: R) -> impl Read {
        self.bar.wrap_read(input)
    }

    /// Counts the bytes written.
    pub(crate) fn writing<W: Write>(&self, output: W) -> impl Write {
        self.bar.wrap_write(output)
    }
}

impl Observer for Bar {
    fn progress(&mut self, progress: &Progress) {
        let phase = match progress.phase {
            Phase::Greeting => "negotiating".to_string(),
            Phase::Round(number) => format!("round {number}"),
            Phase::Switchover => "switchover".to_string(),
            _ => "done".to_string(),
        };
        let message = match progress.expected_downtime {
            Some(expected) => format!("{phase}, downtime {} expected", output::duration(expected)),
            None => phase,
        };
        if self.bar.message() != message {
            self.bar.set_message(message);
            self.bar.reset_eta();
        }
        // The total is an estimate that can be passed.
        self.bar.set_length(progress.total.max(progress.done));
        self.bar.set_position(progress.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
