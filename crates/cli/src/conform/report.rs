//! The report of `whimbrel conform`: in a format to stdout or a file, as text to stderr beside it, and a progress bar.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::ValueEnum;
use whimbrel_conformance::report::{Json, Junit, Ktap, Reporter, Text};
use whimbrel_conformance::{CaseResult, Event};

use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;

/// The format of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Failures with all their requests, for people.
    Text,
    /// Kernel Test Anything Protocol, for kernel CI.
    Ktap,
    /// An object a line.
    Json,
    /// JUnit's XML.
    Junit,
}

/// The outputs of a run's events.
pub(super) struct Report {
    reporter: Box<dyn Reporter>,
    out: Out,
    /// Text to stderr, with a report in a file.
    beside: Option<Text>,
    bar: Bar,
    replay: Replay,
    /// The first error of a write.
    error: Option<Failure>,
}

/// The command that runs a single case, around the options for its id and seed.
pub(super) struct Replay {
    pub(super) before: String,
    pub(super) after: String,
}

/// The place of the report.
enum Out {
    Stdout,
    File(File, String),
    /// It cannot be written any more, or its reader has had enough.
    Closed,
}

impl Report {
    pub(super) fn new(
        format: Format,
        all: bool,
        path: Option<&Path>,
        replay: Replay,
        output: Output,
    ) -> Result<Report, Failure> {
        let out = match path {
            None => Out::Stdout,
            Some(path) => {
                let file = File::create(path)
                    .map_err(|error| Failure::from_io(format!("cannot create {}", path.display()), &error))?;
                Out::File(file, path.display().to_string())
            }
        };
        let reporter: Box<dyn Reporter> = match format {
            Format::Text => Box::new(Text::new(all)),
            Format::Ktap => Box::new(Ktap::default()),
            Format::Json => Box::new(Json::default()),
            Format::Junit => Box::new(Junit::default()),
        };
        let beside = path.map(|_| Text::new(all));
        let bar = Bar::cases(output);
        Ok(Report { reporter, out, beside, bar, replay, error: None })
    }

    /// Reports an event.
    pub(super) fn event(&mut self, event: &Event) {
        let replayed;
        let event = match event {
            Event::Result(result) if result.verdict.is_failure() => {
                replayed = Event::Result(Box::new(self.with_replay(result)));
                &replayed
            }
            event => event,
        };
        let mut text = Vec::new();
        // Writing to memory cannot fail.
        let _ = self.reporter.event(event, &mut text);
        let mut beside = Vec::new();
        if let Some(reporter) = &mut self.beside {
            let _ = reporter.event(event, &mut beside);
        }
        let Report { out, bar, error, .. } = self;
        bar.suspend(|| {
            // A closed stderr must not stop the run.
            let _ = io::stderr().lock().write_all(&beside);
            if let Err(failure) = out.write(&text) {
                error.get_or_insert(failure);
            }
        });
        match event {
            Event::Begin(header) => self.bar.expect(header.cases),
            Event::Start { id } => self.bar.message(id.clone()),
            Event::Result(_) => self.bar.count(),
            _ => {}
        }
    }

    fn with_replay(&self, result: &CaseResult) -> CaseResult {
        let mut result = result.clone();
        let Replay { before, after } = &self.replay;
        result.replay = Some(format!("{before} --only {} --seed {}{after}", result.id, result.seed));
        result
    }

    /// Returns the error of a report that could not be written.
    pub(super) fn finish(self) -> Result<(), Failure> {
        self.error.map_or(Ok(()), Err)
    }
}

impl Out {
    fn write(&mut self, text: &[u8]) -> Result<(), Failure> {
        if text.is_empty() {
            return Ok(());
        }
        let written = match self {
            Out::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text).and_then(|()| stdout.flush())
            }
            Out::File(file, _) => file.write_all(text),
            Out::Closed => Ok(()),
        };
        let Err(error) = written else { return Ok(()) };
        match std::mem::replace(self, Out::Closed) {
            // The reader has what it wanted. The run goes on, for its exit status.
            Out::Stdout if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Out::File(_, path) => Err(Failure::from_io(format!("cannot write {path}"), &error)),
            _ => Err(Failure::from_io(output::STDOUT_FAILED, &error)),
        }
    }
}
