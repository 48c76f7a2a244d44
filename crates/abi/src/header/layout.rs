//! Where the members of a structure or union come to lie, as the ABI of 64-bit Linux has it. How they are declared is
//! for `members`.

use std::rc::Rc;

use super::shape::{MAX_SIZE, Shape};

/// The attributes that change a layout.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub(super) packed: bool,
    /// The least alignment, in bytes.
    pub(super) aligned: Option<u64>,
}

impl Attributes {
    /// Returns both together.
    pub(super) fn and(self, other: Attributes) -> Attributes {
        Attributes { packed: self.packed || other.packed, aligned: self.aligned.max(other.aligned) }
    }
}

/// A field with a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Rc<str>,
    pub(crate) line: u32,
    /// The bytes before it in the structure.
    pub(crate) offset: u64,
    /// The size in bytes; nothing for a flexible array.
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
    /// The fields of a structure or union without a name, which are fields of what it stands in.
    pub(super) inner: Vec<Field>,
}

/// Returns the shape of a structure or union, and where its members lie.
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
