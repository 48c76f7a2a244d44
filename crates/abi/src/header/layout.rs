//! The layout of structures and unions by the ABI of 64-bit Linux. `members` reads the declarations.

use std::rc::Rc;

use super::shape::{MAX_SIZE, Shape};

/// The attributes that change a layout.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub(super) packed: bool,
    /// The minimum alignment, in bytes.
    pub(super) aligned: Option<u64>,
}

impl Attributes {
    /// Returns the combination of both.
    pub(super) fn and(self, other: Attributes) -> Attributes {
        Attributes { packed: self.packed || other.packed, aligned: self.aligned.max(other.aligned) }
    }
}

/// A field and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Rc<str>,
    pub(crate) line: u32,
    /// The offset in the structure, in bytes.
    pub(crate) offset: u64,
    /// The size in bytes; `None` for a flexible array.
    pub(crate) size: Option<u64>,
}

/// A declared member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Option<(Rc<str>, u32)>,
    pub(super) shape: Shape,
    /// Set for an array without a length.
    pub(super) flexible: bool,
    pub(super) attributes: Attributes,
    /// The fields of a structure or union without a name, which belong to the enclosing one.
    pub(super) inner: Vec<Field>,
}

/// Returns the shape of a structure or union, and its fields.
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
        end = offset.checked_add(member.shape.size).filter(|end| *end <= MAX_SIZE).ok_or_else(too_large)?;
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
