//! Formats of a run's events, and all of them as one value.

mod json;
mod junit;
mod ktap;
mod text;

use std::fmt;
use std::io::{self, Write};

pub use self::json::Json;
pub use self::junit::Junit;
pub use self::ktap::Ktap;
pub use self::text::Text;
use crate::verdict::{CaseResult, Event, Header, Summary};

/// A format that is written as events happen.
pub trait Reporter {
    /// Writes what an event adds.
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()>;
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    header: Option<Header>,
    results: Vec<CaseResult>,
    notices: Vec<String>,
    summary: Summary,
}

impl Report {
    /// Adds an event of the run.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Begin(header) => self.header = Some(header.clone()),
            Event::Start { .. } => {}
            Event::Result(result) => self.results.push((**result).clone()),
            Event::Notice { text } => self.notices.push(text.clone()),
            Event::End(summary) => self.summary = summary.clone(),
        }
    }

    /// Returns what the run is about; `None` if nothing could be tested.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Returns the results, in order.
    pub fn results(&self) -> &[CaseResult] {
        &self.results
    }

    /// Returns the result of the case with this id, the last one if it was repeated.
    pub fn result(&self, id: &str) -> Option<&CaseResult> {
        self.results.iter().rev().find(|result| result.id == id)
    }

    /// Returns the numbers.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Returns whether something was tested and nothing failed.
    pub fn passed(&self) -> bool {
        self.summary.exit_status() == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for result in self.results.iter().filter(|result| result.verdict.is_failure()) {
            text::write_result(f, result)?;
        }
        write!(f, "{}", self.summary)
    }
}
