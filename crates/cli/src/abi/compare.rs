//! A header against the table of what Whimbrel uses. No I/O, no printing.

use std::collections::{HashMap, HashSet};

use whimbrel_uapi::table::{self, Constant, Form, Header as Which, Kind};

use super::header::{self, Clash, Header, Structure, Unread};

/// What of migration a header has names for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// The region of 2019's draft, which answers for dirty pages too.
    Draft,
    /// Macros for the bits of `device_state`, as from 5.8 to 5.17.
    V1,
    /// The enumeration of states, since 5.18.
    V2,
}

/// One thing that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) what: What,
    /// The constant; the structure; or `structure.field`.
    pub(super) name: String,
    pub(super) line: u32,
    /// What the header has.
    pub(super) header: String,
    /// What Whimbrel has.
    pub(super) ours: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Value,
    /// In bytes.
    Size,
    /// In bytes.
    Alignment,
    /// In bytes from the start of the structure.
    Offset,
    /// In bytes.
    FieldSize,
}

/// How much was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    pub(super) structures: usize,
    pub(super) fields: usize,
    pub(super) constants: usize,
}

/// What a header is, beside ours. Every list with lines is in their order.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) which: Which,
    pub(super) protocols: Vec<Protocol>,
    pub(super) compared: Compared,
    pub(super) differences: Vec<Difference>,
    pub(super) clashes: Vec<Clash>,
    pub(super) unread: Vec<Unread>,
    /// Names that only the header has, and their lines.
    pub(super) unknown: Vec<(String, u32)>,
    /// Names that only we have.
    pub(super) lacks: Lacks,
}

/// What a header lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lacks {
    pub(super) structures: Vec<&'static str>,
    /// `structure.field`, of structures that it has.
    pub(super) fields: Vec<String>,
    pub(super) constants: Vec<String>,
}

impl Lacks {
    pub(super) fn count(&self) -> usize {
        self.structures.len() + self.fields.len() + self.constants.len()
    }
}

impl Comparison {
    /// Reads a header and compares it; nothing if it has no name that we have.
    pub(super) fn of(text: &str) -> Option<Comparison> {
        let header = header::read(text, |name| {
            table::structure(name).map(|known| (known.size as u64, known.alignment as u64))
        });
        let names = Names::of(&header);
        let which = names.recognised()?;
        let mut comparison = Comparison {
            which,
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
        Some(comparison)
    }

    fn structures(&mut self, names: &Names<'_>) {
        for ours in names.known_structures(self.which) {
            let Some(theirs) = names.structures.get(ours.name) else {
                self.lacks.structures.push(ours.name);
                continue;
            };
            self.compared.structures += 1;
            let field = |name: &str| theirs.fields.iter().find(|field| *field.name == *name);
            let size = ours.size_without(|lack| lack.kind != Kind::Padding && field(lack.name).is_none());
            let mut differ = |what: What, name: &str, line: u32, header: u64, ours: usize| {
                if header != ours as u64 {
                    let (header, ours) = (header.to_string(), ours.to_string());
                    self.differences.push(Difference { what, name: name.to_owned(), line, header, ours });
                }
            };
            differ(What::Size, ours.name, theirs.line, theirs.size, size);
            let mut lacks = Vec::new();
            for known in ours.named_fields() {
                let name = format!("{}.{}", ours.name, known.name);
                let Some(own) = field(known.name) else {
                    lacks.push(name);
                    continue;
                };
                self.compared.fields += 1;
                differ(What::Offset, &name, own.line, own.offset, known.offset);
                if let (Some(size), true) = (own.size, known.kind != Kind::Tail) {
                    differ(What::FieldSize, &name, own.line, size, known.size);
                }
            }
            // What C aligns a structure for may be a field it lacks, or the array behind it.
            if lacks.is_empty() && ours.fields.iter().all(|field| field.kind != Kind::Tail) {
                differ(What::Alignment, ours.name, theirs.line, theirs.alignment, ours.alignment);
            }
            self.lacks.fields.extend(lacks);
        }
    }

    fn constants(&mut self, names: &Names<'_>) {
        for ours in names.known_constants(self.which) {
            let name = ours.name().to_string();
            let Some(place) = names.place(ours, &name) else {
                // A macro with an argument comes more than once.
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
                Some(value) => Ok(header::Value::Number(value)),
                None => names.header.value(&expression),
            };
            let is_same = match &value {
                Ok(header::Value::Number(number)) => expected.is(*number),
                Ok(header::Value::Text(text)) => matches!(expected, table::Value::Text(own) if own == text),
                Err(_) => false,
            };
            if !is_same {
                let header =
                    value.map_or_else(|why| format!("no constant ({why})"), |value| value.to_string());
                let (line, ours) = (place.line, shown(expected));
                self.differences.push(Difference { what: What::Value, name: expression, line, header, ours });
            }
        }
    }
}

/// As the header's own values are shown.
fn shown(ours: table::Value) -> String {
    match ours {
        table::Value::Number { value, .. } => value.to_string(),
        table::Value::Text(text) => header::Value::Text(text.to_owned()).to_string(),
    }
}

/// Where something is in a header.
struct Place {
    line: u32,
    /// Where that is not what its name comes to.
    value: Option<i64>,
}

/// The names of a header.
struct Names<'a> {
    header: &'a Header,
    structures: HashMap<&'a str, &'a Structure>,
    /// Those that are more than a guard, with their lines.
    macros: HashMap<&'a str, u32>,
    enumerators: HashMap<&'a str, &'a header::Enumerator>,
}

impl Names<'_> {
    fn of(header: &Header) -> Names<'_> {
        Names {
            header,
            structures: header.structures.iter().map(|own| (&*own.name, own)).collect(),
            macros: header.macros().filter(|own| !own.is_empty).map(|own| (own.name, own.line)).collect(),
            enumerators: header.enumerators.iter().map(|own| (&*own.name, own)).collect(),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.macros.contains_key(name) || self.enumerators.contains_key(name)
    }

    /// Whether the structure that v1 took from the draft is still the draft's.
    fn is_draft(&self) -> bool {
        table::draft_structures().any(|draft| {
            let fields = self.structures.get(draft.name).map_or(&[][..], |own| own.fields.as_slice());
            let last = draft.fields.last().map(|field| field.name);
            fields.iter().any(|field| Some(&*field.name) == last)
        })
    }

    /// The structures the header may have, one for each name.
    fn known_structures(&self, which: Which) -> impl Iterator<Item = &'static table::Structure> {
        let is_draft = which == Which::Vfio && self.is_draft();
        let of_draft =
            |own: &table::Structure| table::draft_structures().find(|draft| draft.name == own.name);
        table::structures()
            .filter(move |own| own.header == which)
            .map(move |own| if is_draft { of_draft(own).unwrap_or(own) } else { own })
    }

    /// The constants the header may have.
    fn known_constants(&self, which: Which) -> impl Iterator<Item = &'static Constant> {
        let is_draft = which == Which::Vfio && self.is_draft();
        let of_draft = table::draft_constants().filter(move |_| is_draft);
        table::constants().filter(move |own| own.header == which).chain(of_draft)
    }

    /// Where the header has what `ours` means by its name.
    fn place(&self, ours: &Constant, name: &str) -> Option<Place> {
        let by_macro = || self.macros.get(name).map(|line| Place { line: *line, value: None });
        let enumerator = || self.enumerators.get(name);
        match ours.form {
            // A macro of the same name would stand before it.
            Form::EnumeratorOf(enumeration) => enumerator()
                .filter(|own| own.enumeration.as_deref() == Some(enumeration))
                .map(|own| Place { line: own.line, value: Some(own.value) }),
            Form::MacroBefore518 => by_macro(),
            Form::Any => by_macro().or_else(|| enumerator().map(|own| Place { line: own.line, value: None })),
        }
    }

    /// Which header it is: the one with which it has most in common.
    fn recognised(&self) -> Option<Which> {
        let common = |which: Which| {
            let structures = table::structures().filter(|own| self.structures.contains_key(own.name));
            let constants = table::constants().filter(|own| self.has(&own.name().to_string()));
            structures.filter(|own| own.header == which).count()
                + constants.filter(|own| own.header == which).count()
        };
        let counted = Which::ALL.map(|which| (common(which), which));
        let (count, which) = counted.into_iter().max_by_key(|(count, _)| *count)?;
        (count > 0).then_some(which)
    }

    fn protocols(&self, which: Which) -> Vec<Protocol> {
        let has = |meant: fn(Form) -> bool| {
            table::constants()
                .filter(|own| own.header == which && meant(own.form))
                .any(|own| self.place(own, &own.name().to_string()).is_some())
        };
        let region = if self.is_draft() { Protocol::Draft } else { Protocol::V1 };
        let v1 = has(|form| form == Form::MacroBefore518).then_some(region);
        let v2 = has(|form| matches!(form, Form::EnumeratorOf(_))).then_some(Protocol::V2);
        v1.into_iter().chain(v2).collect()
    }

    /// The names that are neither in the table nor left out of it on purpose.
    fn unknown(&self, which: Which) -> Vec<(String, u32)> {
        let known: HashSet<String> = self.known_constants(which).map(|own| own.name().to_string()).collect();
        let enumerators = self.enumerators.values().map(|own| (&*own.name, own.line));
        let mut unknown: Vec<(String, u32)> = self
            .macros
            .iter()
            .map(|(name, line)| (*name, *line))
            .chain(enumerators)
            .filter(|(name, _)| !known.contains(*name))
            .map(|(name, line)| (name.to_owned(), line))
            .collect();
        for own in self.structures.values() {
            let Some(ours) = self.known_structures(which).find(|ours| *ours.name == *own.name) else {
                unknown.push((own.name.to_string(), own.line));
                continue;
            };
            let fields = own.fields.iter().filter(|field| ours.field(&field.name).is_none());
            unknown.extend(fields.map(|field| (format!("{}.{}", own.name, field.name), field.line)));
        }
        unknown.retain(|(name, _)| table::left_out(name).is_none());
        unknown.sort_by(|(name, line), (other, at)| (line, name).cmp(&(at, other)));
        unknown.dedup();
        unknown
    }
}
