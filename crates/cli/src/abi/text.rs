//! A comparison as text for people. `whimbrel-abi` makes it.

use std::fmt;
use std::path::Path;

use whimbrel_abi::{Comparison, Difference, Protocol, UnknownName};

use crate::output;

/// Returns the number of problems in one line; `None` without any.
pub(super) fn verdict(comparison: &Comparison) -> Option<String> {
    let counts = [
        (comparison.differences.len(), "difference"),
        (comparison.clashes.len(), "name that clashes"),
        (comparison.unread.len(), "place that cannot be read"),
    ];
    let wrong = counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| counted(count, what));
    let wrong: Vec<String> = wrong.collect();
    (!wrong.is_empty()).then(|| wrong.join(", "))
}

/// Returns a count with its noun.
fn counted(count: usize, what: &str) -> String {
    match (count, what) {
        (1, _) => format!("1 {what}"),
        (_, "name that clashes") => format!("{count} names that clash"),
        (_, "place that cannot be read") => format!("{count} places that cannot be read"),
        _ => format!("{count} {what}s"),
    }
}

/// A comparison, for people.
#[derive(Debug)]
pub(super) struct Text<'a> {
    pub(super) path: &'a Path,
    pub(super) comparison: &'a Comparison,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.comparison;
        writeln!(f, "{}: {}", self.path.display(), own.header.path())?;
        if own.header == whimbrel_uapi::table::Header::Vfio {
            writeln!(f, "Migration: {}", spoken(&own.protocols))?;
        }
        writeln!(
            f,
            "Compared: {}, {}, {}",
            counted(own.compared.structures, "structure"),
            counted(own.compared.fields, "field"),
            counted(own.compared.constants, "constant")
        )?;
        if !own.differences.is_empty() {
            let mut table = output::table(["LINE", "NAME", "WHAT", "HEADER", "WHIMBREL"]);
            for Difference { kind, name, line, header, whimbrel, .. } in &own.differences {
                table.add_row([&line.to_string(), name, &kind.to_string(), header, whimbrel]);
            }
            writeln!(f, "\nDifferences:\n{}", table.trim_fmt())?;
        }
        if !own.clashes.is_empty() {
            writeln!(f, "\nNames that clash:")?;
            for clash in &own.clashes {
                writeln!(f, "line {}: {clash}", clash.line())?;
            }
        }
        if !own.unread.is_empty() {
            writeln!(f, "\nNot read, and not compared:")?;
            for unread in &own.unread {
                writeln!(f, "line {}: {}", unread.line, unread.why)?;
            }
        }
        if !own.unknown.is_empty() {
            writeln!(f, "\nWhimbrel does not know:")?;
            for UnknownName { line, name, .. } in &own.unknown {
                writeln!(f, "line {line}: {name}")?;
            }
        }
        let lacks = &own.lacks;
        if !lacks.is_empty() {
            writeln!(
                f,
                "\nThe header lacks what other versions have (--json names it): {}, {}, {}",
                counted(lacks.structures.len(), "structure"),
                counted(lacks.fields.len(), "field"),
                counted(lacks.constants.len(), "constant")
            )?;
        }
        match verdict(own) {
            None => write!(f, "\nThe header and Whimbrel agree in all that both have."),
            Some(_) => Ok(()),
        }
    }
}

/// Returns the protocols of a vfio.h, in words.
fn spoken(protocols: &[Protocol]) -> &'static str {
    match protocols {
        [] => "none; it has names of neither v1 nor v2",
        [Protocol::V1] => "v1; VFIO_DEVICE_STATE_RUNNING is a bit, as from 5.8 to 5.17",
        [Protocol::V2] => "v2; VFIO_DEVICE_STATE_RUNNING is a state, as since 5.18",
        [Protocol::Draft] => {
            "the draft of 2019; VFIO_DEVICE_STATE_RUNNING is a bit, and the region has dirty pages"
        }
        [Protocol::Draft, ..] => "the draft of 2019 and v2 under the same names",
        _ => "v1 and v2 under the same names",
    }
}
