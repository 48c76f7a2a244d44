//! The output of a trace, of `whimbrel trace` and of `whimbrel run --trace`: a line or an object for each event, or a summary
//! at the end.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use whimbrel_engine::channel::Interrupt;
use whimbrel_interpose::trace::{Event, Record, Summary};

use super::target::Target;
use crate::failure::Failure;
use crate::output::{self, Output, note};

/// The options of a trace's output.
#[derive(Debug, Args)]
#[group(id = "printing", multiple = true)]
pub(crate) struct Printing {
    /// Write the trace to this file instead of stderr
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print a table of calls, errors, time and bytes at the end, instead of the calls
    #[arg(long)]
    summary: bool,
    /// Show bytes of arguments, answers and transfers too, the first 256 of each
    #[arg(long)]
    pub(crate) hex: bool,
}

impl Printing {
    /// Returns whether the trace is written to stderr.
    pub(crate) fn is_to_stderr(&self) -> bool {
        self.output.is_none()
    }
}

/// The output of a trace. A failure to write it does not disturb the program, and is told at the end.
pub(crate) struct Printer {
    to: Box<dyn Write + Send>,
    name: String,
    json: bool,
    summary: Option<Summary>,
    has_seen: bool,
    failed: Option<io::Error>,
}

impl Printer {
    /// Opens the target of a trace. Once `signal` is set, no reader of it is waited for.
    pub(crate) fn open(printing: &Printing, output: Output, signal: &Interrupt) -> Result<Printer, Failure> {
        let (to, name): (Box<dyn Write + Send>, _) = match &printing.output {
            Some(path) => {
                let name = path.display().to_string();
                let file = File::create(path)
                    .map_err(|error| Failure::from_io(format!("cannot create {name}"), &error))?;
                (Box::new(Target::new(file, signal.clone())), name)
            }
            None => (Box::new(Target::new(io::stderr(), signal.clone())), "stderr".to_string()),
        };
        let summary = printing.summary.then(Summary::default);
        Ok(Printer { to, name, json: output.is_json(), summary, has_seen: false, failed: None })
    }

    /// Prints or counts an event.
    pub(crate) fn take(&mut self, event: &Event) {
        match event {
            Event::Record(record) => self.record(record),
            Event::NotTraced { process } => note(format_args!(
                "warning: process {process} runs a program for another architecture: its requests are not traced"
            )),
            _ => {}
        }
    }

    /// Returns whether there was a record.
    pub(crate) fn has_seen(&self) -> bool {
        self.has_seen
    }

    fn record(&mut self, record: &Record) {
        self.has_seen = true;
        match &mut self.summary {
            Some(summary) => summary.add(record),
            // Records always serialise.
            None if self.json => self.line(&serde_json::to_string(record).unwrap_or_default()),
            None => self.line(&record.to_string()),
        }
    }

    /// Writes a line at once, so that it is not torn apart from the program's own output.
    fn line(&mut self, line: &str) {
        if self.failed.is_none()
            && let Err(error) = self.to.write_all(format!("{line}\n").as_bytes())
        {
            self.failed = Some(error);
        }
    }

    /// Prints the summary, and returns the failure of a write, if one has failed.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        if let Some(summary) = self.summary.take() {
            let text = if self.json {
                serde_json::json!({ "summary": summary.sums() }).to_string()
            } else {
                table(&summary)
            };
            self.line(&text);
        }
        match self.failed.take() {
            // A reader that closes its end early has what it wanted.
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::from_io(format!("cannot write the trace to {}", self.name), &error))
            }
            _ => Ok(()),
        }
    }
}

fn table(summary: &Summary) -> String {
    let mut table = output::table(["CALL", "CALLS", "ERRORS", "TOTAL", "MAX", "BYTES"]);
    for sums in summary.sums() {
        table.add_row([
            sums.call,
            sums.calls.to_string(),
            sums.errors.to_string(),
            format!("{} us", sums.total.as_micros()),
            format!("{} us", sums.max.as_micros()),
            sums.bytes.to_string(),
        ]);
    }
    output::align_right(&mut table, 1..6);
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use whimbrel_interpose::trace::MAX_HEX;

    #[test]
    fn the_help_says_how_many_bytes_are_shown() {
        assert_eq!(MAX_HEX, 256);
    }
}
