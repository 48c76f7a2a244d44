//! KTAP, which kernel CI reads (`Documentation/dev-tools/ktap.rst`).

use std::io::{self, Write};

use super::Reporter;
use crate::verdict::{CaseResult, Event, Verdict};

/// Writes KTAP version 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ktap {
    number: usize,
}

impl Reporter for Ktap {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        match event {
            Event::Begin(header) => {
                writeln!(out, "KTAP version 1")?;
                writeln!(out, "# {} {}", header.suite, header.header)?;
                let second = header.second.iter().map(|second| format!(" and {second}")).collect::<String>();
                let kernel =
                    header.kernel.iter().map(|kernel| format!(" on Linux {kernel}")).collect::<String>();
                let features = header.features.join(", ");
                diagnostics(&format!("{}{second}{kernel}: {features}", header.subject), out)?;
                writeln!(out, "# seed {}", header.seed)?;
                writeln!(out, "1..{}", header.cases)
            }
            Event::Start { .. } => Ok(()),
            Event::Result(result) => {
                self.number += 1;
                self.result(result, out)
            }
            Event::Notice { text } => diagnostics(text, out),
            Event::End(summary) => match &summary.untestable {
                Some(why) if self.number == 0 => {
                    writeln!(out, "KTAP version 1")?;
                    writeln!(out, "1..0 # SKIP {}", one_line(why))
                }
                _ => diagnostics(&summary.to_string(), out),
            },
        }
    }
}

impl Ktap {
    fn result(self, result: &CaseResult, out: &mut dyn Write) -> io::Result<()> {
        let ok = if result.verdict.is_failure() { "not ok" } else { "ok" };
        let why =
            || result.found.as_deref().unwrap_or_default().lines().next().unwrap_or_default().to_string();
        let directive = match result.verdict {
            Verdict::Skip => format!(" # SKIP {}", why()),
            Verdict::Inconclusive => format!(" # SKIP inconclusive: {}", why()),
            Verdict::Xfail => format!(" # XFAIL {}", one_line(result.known.as_deref().unwrap_or_default())),
            Verdict::Hung => " # TIMEOUT".to_string(),
            Verdict::NotRun => format!(" # ERROR not run: {}", why()),
            Verdict::Pass | Verdict::Fail | Verdict::Xpass => String::new(),
        };
        if matches!(result.verdict, Verdict::Fail | Verdict::Hung | Verdict::Xpass) {
            diagnostics(&format!("{}: {}", result.level, result.sentence), out)?;
            if let Some(known) = &result.known {
                diagnostics(&format!("passes, but is a known failure: {known}"), out)?;
            }
            result.expected.iter().try_for_each(|text| diagnostics(&format!("expected: {text}"), out))?;
            result.found.iter().try_for_each(|text| diagnostics(&format!("found: {text}"), out))?;
            result.requests.iter().try_for_each(|request| diagnostics(&format!("  {request}"), out))?;
            result.replay.iter().try_for_each(|command| diagnostics(&format!("replay: {command}"), out))?;
        }
        writeln!(out, "{ok} {} {}{directive}", self.number, result.id)
    }
}

/// Joins the lines of a text: a second one would be a result of its own.
fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ")
}

fn diagnostics(text: &str, out: &mut dyn Write) -> io::Result<()> {
    text.lines().try_for_each(|line| writeln!(out, "# {line}"))
}
