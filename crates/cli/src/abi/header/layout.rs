//! Sizes, alignments and offsets, as the ABI of 64-bit Linux has them.

use std::rc::Rc;

use super::expressions::Names;
use super::number::Number;
use super::tokens::Token;

/// What a type takes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// In bytes.
    pub(super) size: u64,
    /// In bytes, a power of two.
    pub(super) alignment: u64,
    /// Of an integer.
    pub(super) signed: Option<bool>,
}

impl Shape {
    pub(super) const POINTER: Shape = Shape { size: 8, alignment: 8, signed: None };
    /// An enumeration.
    pub(super) const ENUMERATION: Shape = Shape::integer(4, false);

    const fn integer(size: u64, signed: bool) -> Shape {
        Shape { size, alignment: size, signed: Some(signed) }
    }

    /// So many of them.
    pub(super) fn times(self, count: u64) -> Result<Shape, String> {
        let size = self.size.checked_mul(count).filter(|size| *size <= LARGEST);
        Ok(Shape { size: size.ok_or("an array is too large")?, signed: None, ..self })
    }
}

/// Nothing in a header comes near it, and sums of two such sizes cannot overflow.
const LARGEST: u64 = 1 << 40;

/// Words that may stand in any order in the name of a type and change nothing.
pub(super) const QUALIFIERS: [&str; 2] = ["const", "volatile"];

/// A type of one word that `linux/types.h` or the language defines.
fn word(name: &str) -> Option<Shape> {
    let size = |name: &str| match name {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        _ => None,
    };
    let integer = |prefix: &str, suffix: &str, signed: bool| {
        let width = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
        size(width).map(|size| Shape::integer(size, signed))
    };
    let unsigned = ["__u", "__le", "__be", "u"].into_iter().find_map(|prefix| integer(prefix, "", false));
    unsigned
        .or_else(|| ["__s", "s"].into_iter().find_map(|prefix| integer(prefix, "", true)))
        .or_else(|| integer("uint", "_t", false))
        .or_else(|| integer("int", "_t", true))
        .or(match name {
            "__aligned_u64" | "__aligned_be64" | "__aligned_le64" | "size_t" | "uintptr_t" => {
                Some(Shape::integer(8, false))
            }
            "__aligned_s64" | "ssize_t" | "intptr_t" => Some(Shape::integer(8, true)),
            "_Bool" | "bool" => Some(Shape::integer(1, false)),
            _ => None,
        })
}

/// The words C makes integers of.
const INTEGERS: [&str; 7] = ["char", "short", "int", "long", "signed", "unsigned", "__signed__"];

/// Whether a type the language has begins with this word.
pub(super) fn begins_base(name: &str) -> bool {
    name == "void" || INTEGERS.contains(&name) || word(name).is_some()
}

/// The type that words of the language name. `void` has no size.
pub(super) fn base<'a>(words: impl Iterator<Item = &'a str>) -> Option<Shape> {
    let words: Vec<&str> = words.filter(|word| !QUALIFIERS.contains(word)).collect();
    if let [one] = words.as_slice() {
        if let Some(shape) = word(one) {
            return Some(shape);
        }
        if *one == "void" {
            return Some(Shape { size: 0, alignment: 1, signed: None });
        }
    }
    if words.is_empty() || !words.iter().all(|word| INTEGERS.contains(word)) {
        return None;
    }
    let count = |name: &str| words.iter().filter(|word| **word == name).count();
    let signed = count("unsigned") == 0;
    let size = match (count("char"), count("short"), count("long")) {
        (1, 0, 0) => 1,
        (0, 1, 0) => 2,
        (0, 0, 0) => 4,
        (0, 0, 1 | 2) => 8,
        _ => return None,
    };
    Some(Shape::integer(size, signed))
}

/// The types of the language, and no other names.
#[derive(Debug)]
pub(super) struct BaseTypes;

impl Names for BaseTypes {
    fn enumerator(&self, _: &str) -> Option<Number> {
        None
    }

    fn type_of(&self, words: &[Token]) -> Option<Shape> {
        let stars = words.iter().rev().take_while(|word| word.is_sign("*")).count();
        let before = words.get(..words.len() - stars)?;
        let names = before.iter().map(|word| word.name().map(|name| &**name)).collect::<Option<Vec<_>>>()?;
        let shape = base(names.into_iter())?;
        Some(if stars > 0 { Shape::POINTER } else { shape }).filter(|shape| shape.size > 0)
    }

    fn begins_type(&self, word: &Token) -> bool {
        word.name().is_some_and(|name| begins_base(name) || QUALIFIERS.contains(&&**name))
    }
}

/// What `__attribute__` says of a layout.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub(super) packed: bool,
    pub(super) aligned: Option<u64>,
}

impl Attributes {
    pub(super) fn and(self, other: Attributes) -> Attributes {
        Attributes { packed: self.packed || other.packed, aligned: self.aligned.max(other.aligned) }
    }
}

/// A field with a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Rc<str>,
    pub(crate) line: u32,
    /// Bytes from the start of the structure.
    pub(crate) offset: u64,
    /// In bytes; of a flexible array nothing.
    pub(crate) size: Option<u64>,
}

/// A member as it is declared.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Option<(Rc<str>, u32)>,
    pub(super) shape: Shape,
    /// Whether it is an array without a length.
    pub(super) flexible: bool,
    pub(super) attributes: Attributes,
    /// Of a structure or union without a name: its fields are ours.
    pub(super) inner: Vec<Field>,
}

/// Where the members of a structure or union come to lie.
pub(super) fn aggregate(
    members: &[Member],
    is_union: bool,
    attributes: Attributes,
) -> Result<(Shape, Vec<Field>), String> {
    let too_large = || "a structure is too large".to_owned();
    let mut end: u64 = 0;
    let mut largest: u64 = 0;
    let mut alignment = attributes.aligned.unwrap_or(1);
    let mut fields = Vec::new();
    for member in members {
        let own = member.attributes;
        let natural = if attributes.packed || own.packed { 1 } else { member.shape.alignment };
        let needed = natural.max(own.aligned.unwrap_or(1));
        alignment = alignment.max(needed);
        let behind = if is_union { 0 } else { end };
        let offset = behind.checked_next_multiple_of(needed).ok_or_else(too_large)?;
        end = offset.checked_add(member.shape.size).filter(|end| *end <= LARGEST).ok_or_else(too_large)?;
        largest = largest.max(end);
        if let Some((name, line)) = &member.name {
            let size = (!member.flexible).then_some(member.shape.size);
            fields.push(Field { name: Rc::clone(name), line: *line, offset, size });
        }
        fields.extend(
            member.inner.iter().map(|field| Field { offset: field.offset + offset, ..field.clone() }),
        );
    }
    let size = largest.checked_next_multiple_of(alignment).ok_or_else(too_large)?;
    Ok((Shape { size, alignment, signed: None }, fields))
}
