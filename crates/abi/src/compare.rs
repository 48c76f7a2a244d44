//! The comparison of a header with Whimbrel's table. It has no I/O.

use whimbrel_uapi::table::{self, Form, Kind};

use crate::comparison::{Compared, Comparison, Difference, Lacks, Property};
use crate::header::{self, Value};
use crate::names::Names;

/// Maximum size of a header in bytes. The kernel's largest header has a tenth of it.
pub const MAX_BYTES: usize = 1 << 20;

/// The reason a text cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// The text is longer than [`MAX_BYTES`].
    #[error("the header is larger than 1 MiB")]
    TooLarge,
    /// The text has no name in common with Whimbrel's table.
    #[error("the header defines no name that Whimbrel knows")]
    NothingKnown,
}

/// Reads the text of a header and compares it with the names, numbers and layouts of `whimbrel-uapi`.
///
/// It accepts any bytes. Time and memory are bounded by the length of the text and, for macro expansion, by a budget;
/// parts beyond the budget are in [`Comparison::unread`] or have no value.
pub fn compare(header: impl AsRef<[u8]>) -> Result<Comparison, CompareError> {
    let bytes = header.as_ref();
    if bytes.len() > MAX_BYTES {
        return Err(CompareError::TooLarge);
    }
    // Comments may contain people's names in any encoding.
    let header = header::read(&String::from_utf8_lossy(bytes), |name| {
        table::structure(name).map(|known| (known.size as u64, known.alignment as u64))
    });
    let names = Names::of(&header);
    let which = names.recognised().ok_or(CompareError::NothingKnown)?;
    let mut comparison = Comparison {
        header: which,
        protocols: names.protocols(which),
        compared: Compared::default(),
        differences: Vec::new(),
        clashes: header.clashes.clone(),
        unread: header.unread.clone(),
        unknown: names.unknown(which),
        lacks: Lacks::default(),
    };
    comparison.structures(&names);
    comparison.constants(&names);
    comparison.differences.sort_by_key(|difference| difference.line);
    Ok(comparison)
}

impl Comparison {
    /// Compares the structures that both have.
    fn structures(&mut self, names: &Names<'_>) {
        for ours in names.known_structures(self.header) {
            let Some(theirs) = names.structures.get(ours.name) else {
                self.lacks.structures.push(ours.name);
                continue;
            };
            self.compared.structures += 1;
            let field = |name: &str| theirs.fields.iter().find(|field| *field.name == *name);
            let size = ours.size_without(|lack| lack.kind != Kind::Padding && field(lack.name).is_none());
            let mut differ = |kind: Property, name: &str, line: u32, header: u64, ours: usize| {
                if header != ours as u64 {
                    let (header, whimbrel) = (header.to_string(), ours.to_string());
                    let name = name.to_owned();
                    self.differences.push(Difference { kind, name, line, header, whimbrel });
                }
            };
            differ(Property::Size, ours.name, theirs.line, theirs.size, size);
            let mut lacks = Vec::new();
            for known in ours.named_fields() {
                let name = format!("{}.{}", ours.name, known.name);
                let Some(own) = field(known.name) else {
                    lacks.push(name);
                    continue;
                };
                self.compared.fields += 1;
                differ(Property::Offset, &name, own.line, own.offset, known.offset);
                if let (Some(size), true) = (own.size, known.kind != Kind::Tail) {
                    differ(Property::FieldSize, &name, own.line, size, known.size);
                }
            }
            // The alignment in C may come from a field the header lacks, or from the array after the structure.
            if lacks.is_empty() && ours.fields.iter().all(|field| field.kind != Kind::Tail) {
                differ(Property::Alignment, ours.name, theirs.line, theirs.alignment, ours.alignment);
            }
            self.lacks.fields.extend(lacks);
        }
    }

    /// Compares the constants that both have.
    fn constants(&mut self, names: &Names<'_>) {
        for ours in names.known_constants(self.header) {
            let name = ours.name().to_string();
            let Some(place) = names.place(ours, &name) else {
                // A macro with an argument appears more than once.
                if ours.form != Form::MacroBefore518 && self.lacks.constants.last() != Some(&name) {
                    self.lacks.constants.push(name);
                }
                continue;
            };
            self.compared.constants += 1;
            let expected = match ours.before {
                Some((counted, before)) if !names.has(counted) => before,
                _ => ours.value,
            };
            let expression = ours.expression().to_string();
            let value = match place.value {
                Some(value) => Ok(Value::Number(value)),
                None => names.header.value(&expression),
            };
            let is_same = match &value {
                Ok(Value::Number(number)) => expected.is(*number),
                Ok(Value::Text(text)) => matches!(expected, table::Value::Text(own) if own == text),
                Err(_) => false,
            };
            if !is_same {
                let header =
                    value.map_or_else(|why| format!("not a constant ({why})"), |value| value.to_string());
                self.differences.push(Difference {
                    kind: Property::Value,
                    name: expression,
                    line: place.line,
                    header,
                    whimbrel: shown(expected),
                });
            }
        }
    }
}

/// Returns a value of ours in the form of a header's values.
fn shown(ours: table::Value) -> String {
    match ours {
        table::Value::Number { value, .. } => value.to_string(),
        table::Value::Text(text) => Value::Text(text.to_owned()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_compared_up_to_its_largest_size_and_no_further() {
        let of = |length: usize| {
            let mut text = b"#define VFIO_API_VERSION 0\n".to_vec();
            text.resize(length, b' ');
            compare(text).map(|comparison| comparison.agrees())
        };
        assert_eq!(of(MAX_BYTES), Ok(true));
        assert_eq!(of(MAX_BYTES + 1), Err(CompareError::TooLarge));
    }

    #[test]
    fn a_text_without_a_name_of_ours_is_no_comparison() {
        for text in [&b""[..], b"\xff\x00\xfe", b"struct other { int x; };"] {
            assert_eq!(compare(text), Err(CompareError::NothingKnown), "{text:?}");
        }
    }

    #[test]
    fn comments_in_any_encoding_change_nothing() {
        let comparison = compare(b"/* J\xfcrgen */\n#define VFIO_API_VERSION 0").expect("a name is known");
        assert!(comparison.agrees());
        assert_eq!(comparison.compared.constants, 1);
    }

    #[test]
    fn a_large_structure_among_many_does_not_stall() {
        let (fields, structures) = (50_000, 20_000);
        let text = format!(
            "struct vfio_device_migration_info {{ {} }};\n{}",
            "__u8 a;".repeat(fields),
            (0..structures).map(|at| format!("struct a{at} {{}};\n")).collect::<String>()
        );
        let comparison = compare(text).expect("a name is known");
        // The fields have the same name, and so one place in the list.
        assert_eq!(comparison.unknown.len(), structures + 1);
    }
}
