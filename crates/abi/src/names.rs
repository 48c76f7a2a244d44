//! The names of a header, matched with ours. `compare` compares their definitions.

use std::collections::{HashMap, HashSet};

use whimbrel_uapi::table::{self, Constant, Form, Header as Which};

use crate::comparison::{Protocol, UnknownName};
use crate::header::{Enumerator, Header, Structure};

/// The place of a name in a header.
pub(crate) struct Place {
    pub(crate) line: u32,
    /// The value, if it differs from that of the name.
    pub(crate) value: Option<i64>,
}

/// The names of a header.
pub(crate) struct Names<'a> {
    pub(crate) header: &'a Header,
    pub(crate) structures: HashMap<&'a str, &'a Structure>,
    /// The macros except include guards, with their lines.
    macros: HashMap<&'a str, u32>,
    enumerators: HashMap<&'a str, &'a Enumerator>,
    /// Set if the structure that v1 took from the draft is still the draft's.
    is_draft: bool,
}

impl Names<'_> {
    pub(crate) fn of(header: &Header) -> Names<'_> {
        let structures: HashMap<&str, &Structure> =
            header.structures.iter().map(|own| (&*own.name, own)).collect();
        let is_draft = table::draft_structures().any(|draft| {
            let fields = structures.get(draft.name).map_or(&[][..], |own| own.fields.as_slice());
            let last = draft.fields.last().map(|field| field.name);
            fields.iter().any(|field| Some(&*field.name) == last)
        });
        Names {
            header,
            structures,
            macros: header.macros().filter(|own| !own.is_empty).map(|own| (own.name, own.line)).collect(),
            enumerators: header.enumerators.iter().map(|own| (&*own.name, own)).collect(),
            is_draft,
        }
    }

    /// Returns whether the header defines a constant with this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.macros.contains_key(name) || self.enumerators.contains_key(name)
    }

    /// Returns the structures that the header may have, one for each name.
    pub(crate) fn known_structures(&self, which: Which) -> impl Iterator<Item = &'static table::Structure> {
        let is_draft = which == Which::Vfio && self.is_draft;
        let of_draft =
            |own: &table::Structure| table::draft_structures().find(|draft| draft.name == own.name);
        table::structures()
            .filter(move |own| own.header == which)
            .map(move |own| if is_draft { of_draft(own).unwrap_or(own) } else { own })
    }

    /// Returns the constants that the header may have.
    pub(crate) fn known_constants(&self, which: Which) -> impl Iterator<Item = &'static Constant> {
        let is_draft = which == Which::Vfio && self.is_draft;
        let of_draft = table::draft_constants().filter(move |_| is_draft);
        table::constants().filter(move |own| own.header == which).chain(of_draft)
    }

    /// Returns the place where the header defines `ours`.
    pub(crate) fn place(&self, ours: &Constant, name: &str) -> Option<Place> {
        let by_macro = || self.macros.get(name).map(|line| Place { line: *line, value: None });
        let enumerator = || self.enumerators.get(name);
        match ours.form {
            // A macro with the same name would replace it.
            Form::EnumeratorOf(enumeration) => enumerator()
                .filter(|own| own.enumeration.as_deref() == Some(enumeration))
                .map(|own| Place { line: own.line, value: Some(own.value) }),
            Form::MacroBefore518 => by_macro(),
            Form::Any => by_macro().or_else(|| enumerator().map(|own| Place { line: own.line, value: None })),
        }
    }

    /// Returns the kernel header with which it has most names in common.
    pub(crate) fn recognised(&self) -> Option<Which> {
        let structures =
            table::structures().filter(|own| self.structures.contains_key(own.name)).map(|own| own.header);
        let constants =
            table::constants().filter(|own| self.has(&own.name().to_string())).map(|own| own.header);
        let common: Vec<Which> = structures.chain(constants).collect();
        let counted = Which::ALL.map(|which| (common.iter().filter(|own| **own == which).count(), which));
        let (count, which) = counted.into_iter().max_by_key(|(count, _)| *count)?;
        (count > 0).then_some(which)
    }

    /// Returns the migration protocols for which the header has names.
    pub(crate) fn protocols(&self, which: Which) -> Vec<Protocol> {
        let has = |meant: fn(Form) -> bool| {
            table::constants()
                .filter(|own| own.header == which && meant(own.form))
                .any(|own| self.place(own, &own.name().to_string()).is_some())
        };
        let region = if self.is_draft { Protocol::Draft } else { Protocol::V1 };
        let v1 = has(|form| form == Form::MacroBefore518).then_some(region);
        let v2 = has(|form| matches!(form, Form::EnumeratorOf(_))).then_some(Protocol::V2);
        v1.into_iter().chain(v2).collect()
    }

    /// Returns the names that are neither in the table nor left out on purpose.
    pub(crate) fn unknown(&self, which: Which) -> Vec<UnknownName> {
        let known: HashSet<String> = self.known_constants(which).map(|own| own.name().to_string()).collect();
        let enumerators = self.enumerators.values().map(|own| (&*own.name, own.line));
        let mut unknown: Vec<UnknownName> = self
            .macros
            .iter()
            .map(|(name, line)| (*name, *line))
            .chain(enumerators)
            .filter(|(name, _)| !known.contains(*name))
            .map(|(name, line)| UnknownName { line, name: name.to_owned() })
            .collect();
        for own in self.structures.values() {
            let Some(ours) = self.known_structures(which).find(|ours| *ours.name == *own.name) else {
                unknown.push(UnknownName { line: own.line, name: own.name.to_string() });
                continue;
            };
            let fields = own.fields.iter().filter(|field| ours.field(&field.name).is_none());
            unknown.extend(fields.map(|field| {
                let name = format!("{}.{}", own.name, field.name);
                UnknownName { line: field.line, name }
            }));
        }
        unknown.retain(|own| table::left_out(&own.name).is_none());
        unknown.sort();
        unknown.dedup();
        unknown
    }
}
