//! The definitions of the headers as data: each structure with its size and fields, and each constant with its
//! value, beside their C names. Sizes, offsets and values are taken from this crate's own items; none is written
//! twice.
//!
//! The table serves comparisons of this crate with a header: the test `layout`, which asks a C compiler, and the
//! crate `whimbrel-abi`, which reads the header itself. The table itself reads nothing.
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

/// A header of the kernel's user API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// Every header.
    pub const ALL: [Header; 4] = [Header::Vfio, Header::Iommufd, Header::Ccw, Header::Zdev];

    /// Returns its path below an include folder.
    pub const fn path(self) -> &'static str {
        match self {
            Header::Vfio => "linux/vfio.h",
            Header::Iommufd => "linux/iommufd.h",
            Header::Ccw => "linux/vfio_ccw.h",
            Header::Zdev => "linux/vfio_zdev.h",
        }
    }
}

/// The kind of a field in the C structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a comparison must know every kind")]
pub enum Kind {
    /// A field of the same name.
    Own,
    /// A second C name for another field's place, in a union.
    Alias,
    /// Padding, which is not compared: its C name, if it has one, differs between versions of the header.
    Padding,
    /// The flexible array behind the structure. Its size here is 0.
    Tail,
}

/// A field of a [`Structure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// The kind of field.
    pub kind: Kind,
    /// The C name.
    pub name: &'static str,
    /// Offset in bytes from the start of the structure.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// A structure of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Structure {
    /// The header that defines it.
    pub header: Header,
    /// The C name, without `struct`.
    pub name: &'static str,
    /// Size in bytes, with every field this crate knows.
    pub size: usize,
    /// Alignment in bytes.
    pub alignment: usize,
    /// Fields by offset, then aliases and the tail.
    pub fields: &'static [Field],
}

impl Structure {
    /// Returns the field with this name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Returns the fields that have the same C name in every header.
    pub fn named_fields(&self) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().filter(|field| field.kind != Kind::Padding)
    }

    /// Returns the size in bytes of the C structure in a header without the fields that `lacks` picks. A header
    /// that ends the structure earlier is older and correct; a header that lacks a field further in has the same
    /// size.
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

/// The value of a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a comparison must know every kind")]
pub enum Value {
    /// A number. Compare it with C's value modulo its width: the header writes the same constant as `-1` and as
    /// `0xffffffff`.
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
    /// Returns whether C's integer `c`, extended to 64 bits according to its type, is this value.
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

/// The kind of definition that gives a name its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a comparison must know every kind")]
pub enum Form {
    /// Any definition: the name means the same in all of them.
    Any,
    /// Only an enumerator of this enumeration: `VFIO_DEVICE_STATE_RUNNING` as 2.
    EnumeratorOf(&'static str),
    /// Only a macro of a header before Linux 5.18: `VFIO_DEVICE_STATE_RUNNING` as bit 0.
    MacroBefore518,
}

/// A constant of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    /// The header that defines it.
    pub header: Header,
    /// The value.
    pub value: Value,
    /// The kind of definition.
    pub form: Form,
    /// The value in a header without the constant of this name: a count grows with its members.
    pub before: Option<(&'static str, Value)>,
    prefix: &'static str,
    stem: &'static str,
    argument: Option<u32>,
}

impl Constant {
    /// Returns the C name, without the argument of a macro.
    pub const fn name(&self) -> Name {
        Name { prefix: self.prefix, stem: self.stem, argument: None }
    }

    /// Returns the C expression with this value: the name, or a use of the macro with its argument.
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

/// Returns every structure of this crate that a header defines.
pub fn structures() -> impl Iterator<Item = &'static Structure> {
    structures::ALL.iter()
}

/// Returns the structure with this C name.
pub fn structure(name: &str) -> Option<&'static Structure> {
    structures().find(|structure| structure.name == name)
}

/// Returns the structures of the migration region as drafted in 2019. [`structures`] has others with the same
/// names.
pub fn draft_structures() -> impl Iterator<Item = &'static Structure> {
    structures::DRAFT.iter()
}

/// Returns the constants that only the draft of 2019 has.
pub fn draft_constants() -> impl Iterator<Item = &'static Constant> {
    constants::DRAFT.iter()
}

/// Returns every constant of this crate that a header defines. A macro with an argument appears once for each
/// argument compared.
pub fn constants() -> impl Iterator<Item = &'static Constant> {
    constants::ALL.iter().chain(constants::FLAGS).copied().flatten()
}
