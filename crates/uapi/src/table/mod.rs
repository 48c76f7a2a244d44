//! What the headers define, as data: each structure with its size and its fields, each constant with its
//! value, beside the C names they have there. Sizes, offsets and values are those of this crate's own items;
//! nothing is written twice.
//!
//! This is for whoever compares the crate with a header: the test `layout`, which asks a C compiler, and
//! the crate `whimbrel-abi`, which reads the header itself. Nothing here reads anything.
//!
//! ```
//! use whimbrel_uapi::table::{self, Value};
//!
//! let region = table::structure("vfio_region_info").expect("a structure of the header");
//! assert_eq!(region.size, 32);
//! assert_eq!(region.field("offset").map(|field| field.offset), Some(24));
//!
//! let feature = table::constants().find(|c| c.name().to_string() == "VFIO_DEVICE_FEATURE").expect("known");
//! assert_eq!(feature.value, Value::Number { value: 0x3b75, bits: 32 });
//! ```

mod constants;
mod left_out;
mod structures;

use core::fmt;

pub use left_out::left_out;

/// Which header an item is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Header {
    /// `linux/vfio.h`.
    Vfio,
    /// `linux/iommufd.h`, in the part VFIO needs.
    Iommufd,
    /// `linux/vfio_ccw.h`.
    Ccw,
    /// `linux/vfio_zdev.h`.
    Zdev,
}

impl Header {
    /// All of them.
    pub const ALL: [Header; 4] = [Header::Vfio, Header::Iommufd, Header::Ccw, Header::Zdev];

    /// Its path below an include folder.
    pub const fn path(self) -> &'static str {
        match self {
            Header::Vfio => "linux/vfio.h",
            Header::Iommufd => "linux/iommufd.h",
            Header::Ccw => "linux/vfio_ccw.h",
            Header::Zdev => "linux/vfio_zdev.h",
        }
    }
}

/// What a field is to the C structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A field of the same name.
    Own,
    /// A second C name for the place of another field, in a union.
    Alias,
    /// Padding whose C name, if it has one, is not the same in every version of the header; not compared.
    Padding,
    /// The flexible array behind the structure. Its size here is 0.
    Tail,
}

/// A field of a [`Structure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// What it is to the C structure.
    pub kind: Kind,
    /// The C name.
    pub name: &'static str,
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// In bytes.
    pub size: usize,
}

/// A structure of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Where it is defined.
    pub header: Header,
    /// The C name, without `struct`.
    pub name: &'static str,
    /// In bytes, with every field this crate knows.
    pub size: usize,
    /// In bytes.
    pub alignment: usize,
    /// In the order of their offsets, then aliases and the tail.
    pub fields: &'static [Field],
}

impl Structure {
    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The fields that have one C name in every header.
    pub fn named_fields(&self) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().filter(|field| field.kind != Kind::Padding)
    }

    /// How large C's structure is, in bytes, in a header without the fields that `lacks` picks: a header that
    /// ends the structure earlier is older and right, one that lacks a field further in has the same size.
    pub fn size_without(&self, lacks: impl Fn(&Field) -> bool) -> usize {
        let own = || self.fields.iter().filter(|field| matches!(field.kind, Kind::Own | Kind::Padding));
        let last = own().filter(|field| !lacks(field)).map(|field| field.offset).max();
        own()
            .filter(|field| lacks(field) && Some(field.offset) > last)
            .map(|field| field.offset.next_multiple_of(self.alignment))
            .min()
            .unwrap_or(self.size)
    }
}

/// What a constant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number. C's value is to be compared modulo its width: the header writes one and the same constant
    /// as `-1` and as `0xffffffff`.
    Number {
        /// The number, never wider than `bits`.
        value: u64,
        /// The width of its Rust type.
        bits: u32,
    },
    /// A C string, without its terminator.
    Text(&'static str),
}

impl Value {
    /// Whether C's integer `c`, extended to 64 bits as its type says, is this value.
    pub const fn is(self, c: i64) -> bool {
        match self {
            Value::Number { value, bits } => c.cast_unsigned() & (u64::MAX >> (u64::BITS - bits)) == value,
            Value::Text(_) => false,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number { value, .. } => fmt::Display::fmt(value, f),
            Value::Text(text) => f.pad(text),
        }
    }
}

/// How a header defines a name, where that says what the name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It means the same however it is defined.
    Any,
    /// Only an enumerator of this enumeration is meant. `VFIO_DEVICE_STATE_RUNNING` is 2 so.
    EnumeratorOf(&'static str),
    /// Only a macro is meant, of a header before Linux 5.18. `VFIO_DEVICE_STATE_RUNNING` is the bit 0 so.
    MacroBefore518,
}

/// A constant of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    /// Where it is defined.
    pub header: Header,
    /// What it is.
    pub value: Value,
    /// How it is defined.
    pub form: Form,
    /// A count grows with what it counts: in a header without the constant of this name it has this value.
    pub before: Option<(&'static str, Value)>,
    prefix: &'static str,
    stem: &'static str,
    argument: Option<u32>,
}

impl Constant {
    /// The C name; for a macro with an argument, without it.
    pub const fn name(&self) -> Name {
        Name { prefix: self.prefix, stem: self.stem, argument: None }
    }

    /// What C evaluates to the value: the name, or for a macro with an argument a use of it.
    pub const fn expression(&self) -> Name {
        Name { argument: self.argument, ..self.name() }
    }
}

/// A name of C, or the use of a macro.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    prefix: &'static str,
    stem: &'static str,
    argument: Option<u32>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.prefix, self.stem)?;
        self.argument.map_or(Ok(()), |argument| write!(f, "({argument})"))
    }
}

/// Every structure of this crate that a header defines.
pub fn structures() -> impl Iterator<Item = &'static Structure> {
    structures::ALL.iter()
}

/// The structure of this C name.
pub fn structure(name: &str) -> Option<&'static Structure> {
    structures().find(|structure| structure.name == name)
}

/// The structures of the migration region as drafted in 2019. They have names of [`structures`] and are not among
/// them.
pub fn draft_structures() -> impl Iterator<Item = &'static Structure> {
    structures::DRAFT.iter()
}

/// The constants that only the draft of 2019 has.
pub fn draft_constants() -> impl Iterator<Item = &'static Constant> {
    constants::DRAFT.iter()
}

/// Every constant of this crate that a header defines. A macro with an argument comes once for each argument
/// that is compared.
pub fn constants() -> impl Iterator<Item = &'static Constant> {
    constants::ALL.iter().chain(constants::FLAGS).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_compared_modulo_its_width() {
        let narrow = Value::Number { value: 0xffff_ffff, bits: 32 };
        let wide = Value::Number { value: 0xffff_ffff, bits: 64 };
        assert!(narrow.is(-1) && narrow.is(0xffff_ffff) && !narrow.is(0xffff_fffe));
        assert!(wide.is(0xffff_ffff) && !wide.is(-1));
    }

    #[test]
    fn a_structure_that_ends_earlier_is_smaller_and_one_with_a_gap_is_not() {
        let info = structure("vfio_device_info").expect("it is there");
        assert_eq!(info.size_without(|_| false), 24);
        assert_eq!(info.size_without(|field| field.name == "pad"), 20);
        assert_eq!(info.size_without(|field| ["cap_offset", "pad"].contains(&field.name)), 16);
        assert_eq!(info.size_without(|field| field.name == "num_irqs"), 24);
    }

    #[test]
    fn the_drafts_structure_is_another_one_of_the_same_name() {
        for draft in draft_structures() {
            assert!(structure(draft.name).is_some_and(|v1| v1.size < draft.size), "{}", draft.name);
        }
        assert!(draft_structures().count() > 0 && draft_constants().count() > 0);
    }

    #[test]
    fn no_name_stands_twice_in_one_form() {
        for (at, constant) in constants().enumerate() {
            let again = constants().skip(at + 1).find(|other| {
                other.expression() == constant.expression()
                    && other.form == constant.form
                    && other.header == constant.header
            });
            assert_eq!(again, None);
        }
        for (at, structure) in structures().enumerate() {
            assert!(
                structures().skip(at + 1).all(|other| other.name != structure.name),
                "{}",
                structure.name
            );
        }
    }
}
