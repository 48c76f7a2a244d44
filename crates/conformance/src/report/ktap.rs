//! KTAP, which kernel CI reads (`Documentation/dev-tools/ktap.rst`).

use std::io::{self, Write};

use super::Reporter;
use crate::verdict::{CaseResult, Event, Verdict};

/// Writes KTAP version 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ktap {
    number: usize,
    /// The number of results to come, once the report has begun.
    planned: Option<usize>,
}

impl Reporter for Ktap {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        match event {
            Event::Begin(header) => {
                self.planned = Some(header.cases);
                writeln!(out, "KTAP version 1")?;
                writeln!(out, "# {} {}", header.suite, header.header)?;
                diagnostics(&format!("{}: {}", header.devices(), header.features.join(", ")), out)?;
                writeln!(out, "# seed {}", header.seed)?;
                // Without a case the plan has the reason, which only the end tells.
                if header.cases > 0 { writeln!(out, "1..{}", header.cases) } else { Ok(()) }
            }
            Event::Start { .. } => Ok(()),
            Event::Result(result) => {
                self.number += 1;
                self.result(result, out)
            }
            Event::Notice { text } => diagnostics(text, out),
            Event::End(summary) => match &summary.untestable {
                Some(why) if self.planned.unwrap_or_default() == 0 => {
                    if self.planned.is_none() {
                        writeln!(out, "KTAP version 1")?;
                    }
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
        result.notice.iter().try_for_each(|notice| diagnostics(&format!("{}: {notice}", result.id), out))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Header, Summary};

    fn begin(cases: usize) -> Event {
        Event::Begin(Header {
            suite: "0.1.0".to_string(),
            header: "a header".to_string(),
            subject: "a device".to_string(),
            second: None,
            kernel: None,
            driver: None,
            features: vec!["STOP_COPY".to_string()],
            seed: 1,
            cases,
        })
    }

    fn untestable() -> Event {
        Event::End(Summary { untestable: Some("for a reason".to_string()), ..Summary::default() })
    }

    fn written(events: &[Event]) -> String {
        let (mut format, mut out) = (Ktap::default(), Vec::new());
        events.iter().try_for_each(|event| format.event(event, &mut out)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_report_has_one_version_and_one_plan() {
        let skip = "1..0 # SKIP for a reason\n";
        assert_eq!(written(&[untestable()]), format!("KTAP version 1\n{skip}"));
        let head = "KTAP version 1\n# 0.1.0 a header\n# a device: STOP_COPY\n# seed 1\n";
        assert_eq!(written(&[begin(0), untestable()]), format!("{head}{skip}"));
        let end = "1..2\n# nothing could be tested: for a reason\n";
        assert_eq!(written(&[begin(2), untestable()]), format!("{head}{end}"));
    }
}
