//! A comparison as text for people and as an object for scripts.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

use super::compare::{Comparison, Difference, Protocol, What};
use super::header::Clash;
use crate::output;

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Draft => "draft",
            Protocol::V1 => "v1",
            Protocol::V2 => "v2",
        }
    }
}

impl What {
    fn key(self) -> &'static str {
        match self {
            What::Value => "value",
            What::Size => "size",
            What::Alignment => "alignment",
            What::Offset => "offset",
            What::FieldSize => "field_size",
        }
    }

    fn text(self) -> &'static str {
        match self {
            What::Value => "value",
            What::Size | What::FieldSize => "size in bytes",
            What::Alignment => "alignment in bytes",
            What::Offset => "offset in bytes",
        }
    }
}

/// One sentence, without a line before it.
impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clash::MacroBefore { name, defined, what, value, .. } => {
                write!(f, "the macro {name} of line {defined} replaces the name of this {what}")?;
                value.map_or(Ok(()), |value| write!(f, ", which is {value}"))?;
                write!(f, ": it does not compile, or means something else")
            }
            Clash::MacroAfter { name, enumerator: (line, own), value, .. } => {
                write!(f, "the macro {name} is {value} from here on; the enumerator of line {line} is {own}")
            }
            Clash::Redefined { name, first: (line, first), second: (_, second) } => {
                write!(f, "the macro {name} is {second} from here on; line {line} defines it as {first}")
            }
            Clash::EnumeratorTwice { name, first: (line, first), second: (_, second) } => {
                write!(
                    f,
                    "the enumerator {name} is {second} here and {first} in line {line}: it does not compile"
                )
            }
            Clash::StructureTwice { name, first, .. } => {
                write!(f, "the structure {name} is defined in line {first} already: it does not compile")
            }
        }
    }
}

fn clash_kind(clash: &Clash) -> &'static str {
    match clash {
        Clash::MacroBefore { .. } => "macro_replaces_name",
        Clash::MacroAfter { .. } => "macro_hides_enumerator",
        Clash::Redefined { .. } => "macro_redefined",
        Clash::EnumeratorTwice { .. } => "enumerator_twice",
        Clash::StructureTwice { .. } => "structure_twice",
    }
}

/// The object for scripts.
pub(super) fn json(path: &Path, comparison: &Comparison) -> Value {
    let difference = |own: &Difference| {
        json!({
            "kind": own.what.key(),
            "name": own.name,
            "line": own.line,
            "header": own.header,
            "whimbrel": own.ours,
        })
    };
    let clash = |own: &Clash| {
        json!({
            "kind": clash_kind(own),
            "name": own.name(),
            "line": own.line(),
            "text": own.to_string(),
        })
    };
    let Comparison { compared, lacks, .. } = comparison;
    json!({
        "path": path.display().to_string(),
        "header": comparison.which.path(),
        "protocols": comparison.protocols.iter().map(|own| own.name()).collect::<Vec<_>>(),
        "compared": {
            "structures": compared.structures,
            "fields": compared.fields,
            "constants": compared.constants,
        },
        "differences": comparison.differences.iter().map(difference).collect::<Vec<_>>(),
        "clashes": comparison.clashes.iter().map(clash).collect::<Vec<_>>(),
        "unread": comparison.unread.iter()
            .map(|own| json!({ "line": own.line, "why": own.why }))
            .collect::<Vec<_>>(),
        "unknown": comparison.unknown.iter()
            .map(|(name, line)| json!({ "name": name, "line": line }))
            .collect::<Vec<_>>(),
        "lacks": {
            "structures": lacks.structures,
            "fields": lacks.fields,
            "constants": lacks.constants,
        },
    })
}

/// What is wrong, in one line; nothing if nothing is.
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

/// A number of things.
fn counted(count: usize, what: &str) -> String {
    match (count, what) {
        (1, _) => format!("1 {what}"),
        (_, "name that clashes") => format!("{count} names that clash"),
        (_, "place that cannot be read") => format!("{count} places that cannot be read"),
        _ => format!("{count} {what}s"),
    }
}

/// The same for people.
#[derive(Debug)]
pub(super) struct Text<'a> {
    pub(super) path: &'a Path,
    pub(super) comparison: &'a Comparison,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.comparison;
        writeln!(f, "{}: {}", self.path.display(), own.which.path())?;
        if own.which == whimbrel_uapi::table::Header::Vfio {
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
            for Difference { what, name, line, header, ours } in &own.differences {
                table.add_row([&line.to_string(), name, what.text(), header, ours]);
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
            for (name, line) in &own.unknown {
                writeln!(f, "line {line}: {name}")?;
            }
        }
        let lacks = &own.lacks;
        if lacks.count() > 0 {
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

/// Which protocol a vfio.h speaks.
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
