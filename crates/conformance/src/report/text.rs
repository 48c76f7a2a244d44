//! Text for people: failures with all their requests, then the numbers.

use std::fmt;
use std::io::{self, Write};

use super::Reporter;
use crate::verdict::{CaseResult, Event, Verdict};

/// Writes text for people.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// Also names the cases that passed or were skipped without a notice.
    all: bool,
}

impl Text {
    /// Returns the format with failures only, or with all cases.
    pub fn new(all: bool) -> Text {
        Text { all }
    }
}

impl Reporter for Text {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        match event {
            Event::Begin(header) => {
                writeln!(out, "{} (features: {})", header.devices(), header.features.join(", "))?;
                writeln!(out, "suite {}, sentences of {}, seed {}", header.suite, header.header, header.seed)
            }
            Event::Start { .. } => Ok(()),
            Event::Result(result) => {
                let is_plain = matches!(result.verdict, Verdict::Pass | Verdict::Skip);
                if is_plain && !self.all && result.notice.is_none() {
                    return Ok(());
                }
                write!(out, "{}", Shown(result))
            }
            Event::Notice { text } => writeln!(out, "note: {text}"),
            Event::End(summary) => writeln!(out, "{summary}"),
        }
    }
}

struct Shown<'a>(&'a CaseResult);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_result(f, self.0)
    }
}

/// Writes a result: a line for one that passed, all that is known for one that did not.
pub(super) fn write_result(f: &mut fmt::Formatter<'_>, result: &CaseResult) -> fmt::Result {
    let CaseResult { id, level, verdict, sentence, expected, found, known, notice, requests, replay, .. } =
        result;
    let note =
        |f: &mut fmt::Formatter<'_>| notice.iter().try_for_each(|notice| writeln!(f, "  note      {notice}"));
    if matches!(verdict, Verdict::Pass | Verdict::Skip | Verdict::NotRun) {
        write!(f, "{verdict:<12} {id}")?;
        found.iter().try_for_each(|why| write!(f, ": {why}"))?;
        writeln!(f)?;
        return note(f);
    }
    writeln!(f, "{verdict:<12} {id}")?;
    writeln!(f, "  {:<9} {sentence}", level.name())?;
    expected.iter().try_for_each(|expected| writeln!(f, "  expected  {expected}"))?;
    let heads = std::iter::once("found").chain(std::iter::repeat(""));
    let lines = found.iter().flat_map(|found| found.lines());
    lines.zip(heads).try_for_each(|(line, head)| writeln!(f, "  {head:<9} {line}"))?;
    known.iter().try_for_each(|known| writeln!(f, "  known     {known}"))?;
    note(f)?;
    if !verdict.is_failure() {
        return Ok(());
    }
    let heads = std::iter::once("requests").chain(std::iter::repeat(""));
    requests.iter().zip(heads).try_for_each(|(request, head)| writeln!(f, "  {head:<9} {request}"))?;
    replay.iter().try_for_each(|command| writeln!(f, "  replay    {command}"))
}
