//! The form of the table that is proven: structures with their fields, and constants, each beside the C name
//! it stands for. Sizes, offsets and values are taken from the Rust items themselves; nothing is written twice.
//! What stands in it is in [`contents`](super::contents).

use bitflags::Flags;

/// Which header an item is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Vfio,
    Iommufd,
    Ccw,
    Zdev,
}

impl Header {
    pub(crate) const ALL: [Header; 4] = [Header::Vfio, Header::Iommufd, Header::Ccw, Header::Zdev];

    /// Its path below an include folder.
    pub(crate) const fn path(self) -> &'static str {
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
pub(crate) enum Kind {
    /// A field of the same name.
    Own,
    /// A second C name for the place of another field, in a union.
    Alias,
    /// Padding whose C name, if it has one, is not the same in every version of the header. Not compared.
    Padding,
    /// The flexible array behind the structure.
    Tail,
}

pub(crate) struct Field {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

pub(crate) struct Structure {
    pub(crate) header: Header,
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) alignment: usize,
    pub(crate) fields: Vec<Field>,
}

#[derive(Clone, Copy)]
pub(crate) enum Value {
    /// A number and the width in bits of its Rust type; C's value is compared modulo that width.
    Number(u64, u32),
    Text(&'static str),
}

pub(crate) struct Constant {
    pub(crate) header: Header,
    /// The name; of a macro with an argument, a use of it.
    pub(crate) name: String,
    pub(crate) value: Value,
    /// The C enumeration without which the name means something else.
    pub(crate) enumeration: Option<&'static str>,
    /// A count grows with what it counts: in a header without the constant of this name it has this value.
    pub(crate) before: Option<(&'static str, Value)>,
}

/// Everything the crate says of the headers.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) structures: Vec<Structure>,
    pub(crate) constants: Vec<Constant>,
}

/// An integer that a flag type or constant is made of.
pub(crate) trait Integer: Copy {
    fn value(self) -> Value;
}

macro_rules! integers {
    ($($type:ty),*) => {
        $(impl Integer for $type {
            fn value(self) -> Value {
                Value::Number(u64::from(self), <$type>::BITS)
            }
        })*
    };
}

integers!(u8, u16, u32, u64);

impl Integer for i32 {
    fn value(self) -> Value {
        Value::Number(u64::from(self.cast_unsigned()), i32::BITS)
    }
}

impl Integer for usize {
    fn value(self) -> Value {
        Value::Number(self as u64, u64::BITS)
    }
}

impl Integer for bool {
    fn value(self) -> Value {
        Value::Number(u64::from(self), u64::BITS)
    }
}

impl Table {
    pub(crate) fn flags<F: Flags<Bits: Integer>>(&mut self, header: Header, prefix: &str) {
        for flag in F::FLAGS {
            self.constant(header, format!("{prefix}{}", flag.name()), flag.value().bits());
        }
    }

    pub(crate) fn constant(&mut self, header: Header, name: impl Into<String>, value: impl Integer) {
        self.constants.push(Constant {
            header,
            name: name.into(),
            value: value.value(),
            enumeration: None,
            before: None,
        });
    }

    pub(crate) fn text(&mut self, name: &str, value: &'static str) {
        self.constants.push(Constant {
            header: Header::Vfio,
            name: name.to_owned(),
            value: Value::Text(value),
            enumeration: None,
            before: None,
        });
    }
}

/// The size of the field that `get` picks, without a value of the structure.
pub(crate) fn size_of_field<S, F>(_get: impl FnOnce(&S) -> &F) -> usize {
    size_of::<F>()
}

/// Adds structures: `c_name = Type { fields }`, then what the C structure has besides. The pattern with every
/// field makes a forgotten one an error of the compiler.
macro_rules! structures {
    ($table:ident, $header:ident; $(
        $c:ident = $rust:ident { $($field:ident),* $(,)? }
        $(padding $padding:ident)? $(alias $alias:ident = $of:ident)? $(tail $tail:ident)?;
    )*) => {
        $({
            let $rust { $($field: _,)* $($padding: _)? } = <$rust as Default>::default();
            let field = |kind, name: &'static str, offset, size| {
                Field { kind, name: name.trim_start_matches("r#"), offset, size }
            };
            let fields = vec![
                $(field(
                    Kind::Own,
                    stringify!($field),
                    offset_of!($rust, $field),
                    size_of_field(|s: &$rust| &s.$field)
                ),)*
                $(field(
                    Kind::Padding,
                    stringify!($padding),
                    offset_of!($rust, $padding),
                    size_of_field(|s: &$rust| &s.$padding)
                ),)?
                $(field(
                    Kind::Alias, stringify!($alias), offset_of!($rust, $of), size_of_field(|s: &$rust| &s.$of)
                ),)?
                $(field(Kind::Tail, stringify!($tail), size_of::<$rust>(), 0),)?
            ];
            $table.structures.push(Structure {
                header: Header::$header,
                name: stringify!($c),
                size: size_of::<$rust>(),
                alignment: align_of::<$rust>(),
                fields,
            });
        })*
    };
}

/// Adds constants that have the header's name.
macro_rules! constants {
    ($table:ident, $header:ident, $module:ident; $($name:ident),* $(,)?) => {
        $($table.constant(Header::$header, stringify!($name), $module::$name);)*
    };
}

pub(crate) use {constants, structures};
