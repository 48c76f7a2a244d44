//! The text form of a single field and of a whole structure.

use core::fmt;

use bitflags::Flags;

/// Text form of a field's value.
#[derive(Clone, Copy)]
pub(super) enum Show {
    /// A count, an index, an id, or the size of a structure.
    Decimal,
    /// A file descriptor, which may be -1.
    Fd,
    /// An address, a length, a set of page sizes.
    Hex,
    /// Bits that have names.
    Flags(fn(u64, &mut fmt::Formatter<'_>) -> fmt::Result),
    /// A number that may have a name.
    Named(fn(u64) -> Option<&'static str>),
    /// Reserved: should be 0, and is shown only if it is not.
    Reserved,
    /// Written by the driver side.
    Out(&'static Show),
    /// Set by the user, and written by the driver side; of a feature that is got, only the latter.
    InOut(&'static Show),
}

impl Show {
    /// Returns `value`, read from `size` bytes, in a form that implements `Display`.
    pub(super) const fn of(self, value: u64, size: usize) -> Shown {
        Shown { show: self, value, size }
    }
}

/// A value and its text form.
pub(super) struct Shown {
    show: Show,
    value: u64,
    size: usize,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value;
        match self.show {
            Show::Decimal | Show::Reserved => write!(f, "{value}"),
            Show::Fd if self.size == 4 => write!(f, "{}", (value as u32).cast_signed()),
            Show::Fd => write!(f, "{}", value.cast_signed()),
            Show::Hex => write!(f, "{value:#x}"),
            Show::Flags(flags) => flags(value, f),
            Show::Named(name) => match name(value) {
                Some(name) => write!(f, "{value} {name}"),
                None => write!(f, "{value}"),
            },
            Show::Out(show) | Show::InOut(show) => write!(f, "{}", show.of(value, self.size)),
        }
    }
}

/// Writes the names of the bits of `F` that are set, `READ|WRITE`, and the others as a number.
pub(super) fn flags<F>(bits: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result
where
    F: Flags,
    F::Bits: Into<u64>,
{
    let mut left = bits;
    for flag in F::FLAGS {
        let bit: u64 = flag.value().bits().into();
        if bit != 0 && left & bit == bit {
            f.write_str(if left == bits { "" } else { "|" })?;
            f.write_str(flag.name())?;
            left &= !bit;
        }
    }
    match left {
        0 if bits != 0 => Ok(()),
        0 => f.write_str("0"),
        _ => write!(f, "{}{left:#x}", if left == bits { "" } else { "|" }),
    }
}

/// Returns the number of `size` bytes at `offset`, if all of its bytes are present.
pub(super) fn number(bytes: &[u8], offset: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(offset..)?.get(..size)?;
    match *bytes {
        [a] => Some(u64::from(a)),
        [a, b] => Some(u64::from(u16::from_ne_bytes([a, b]))),
        // Three bytes are reserved ones, of which it only matters that they are 0.
        [a, b, c] => Some(u64::from(u32::from_le_bytes([a, b, c, 0]))),
        [a, b, c, d] => Some(u64::from(u32::from_ne_bytes([a, b, c, d]))),
        _ => bytes.try_into().ok().map(u64::from_ne_bytes),
    }
}

/// Takes the values of a request, one after the other.
pub(super) trait Sink {
    /// Takes a value. One whose text does not need its name is `plain`.
    fn take(&mut self, name: &dyn fmt::Display, plain: bool, value: fmt::Arguments<'_>) -> fmt::Result;
}

/// The comma-separated list between the parentheses.
pub(super) struct Text<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    is_empty: bool,
}

impl<'a, 'f> Text<'a, 'f> {
    pub(super) fn new(f: &'a mut fmt::Formatter<'f>) -> Self {
        Self { f, is_empty: true }
    }
}

impl Sink for Text<'_, '_> {
    fn take(&mut self, name: &dyn fmt::Display, plain: bool, value: fmt::Arguments<'_>) -> fmt::Result {
        if !self.is_empty {
            self.f.write_str(", ")?;
        }
        self.is_empty = false;
        if plain { self.f.write_fmt(value) } else { write!(self.f, "{name} {value}") }
    }
}

/// The values of a request that are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All.
    Whole,
    /// Those that the user sets.
    Question,
    /// Those that the user sets, of a feature that is got.
    QuestionOfGet,
    /// Those that the driver side writes.
    Answer,
}

/// The values of a request, or a part of them, on their way to a [`Sink`].
pub(super) struct List<'a> {
    sink: &'a mut dyn Sink,
    part: Part,
}

impl<'a> List<'a> {
    pub(super) fn new(part: Part, sink: &'a mut dyn Sink) -> Self {
        Self { sink, part }
    }

    /// Notes that the request gets a feature.
    pub(super) fn gets(&mut self) {
        if self.part == Part::Question {
            self.part = Part::QuestionOfGet;
        }
    }

    /// Adds a value of the user.
    pub(super) fn asked(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        if self.part == Part::Answer { Ok(()) } else { self.sink.take(&name, false, value) }
    }

    /// Adds a value that the driver side writes.
    pub(super) fn written(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        if matches!(self.part, Part::Whole | Part::Answer) {
            self.sink.take(&name, false, value)
        } else {
            Ok(())
        }
    }

    /// Adds a value of the user whose text does not need its name.
    pub(super) fn plain(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        if self.part == Part::Answer { Ok(()) } else { self.sink.take(&name, true, value) }
    }

    /// Notes that the argument ended early, after these bytes.
    pub(super) fn cut(&mut self, bytes: &[u8]) -> fmt::Result {
        if bytes.is_empty() {
            return self.plain("cut", format_args!("cannot be read"));
        }
        self.plain("cut", format_args!("cut after {} bytes", bytes.len()))
    }

    /// Returns whether a field belongs to the part that is shown.
    fn has(&self, show: Show) -> bool {
        match self.part {
            Part::Whole => true,
            Part::Question => !matches!(show, Show::Out(_)),
            Part::QuestionOfGet => !matches!(show, Show::Out(_) | Show::InOut(_)),
            Part::Answer => matches!(show, Show::Out(_) | Show::InOut(_)),
        }
    }
}

/// One field of a structure.
pub(super) struct Field {
    /// Its name; a Rust keyword may still carry its `r#`.
    pub(super) name: &'static str,
    pub(super) offset: usize,
    pub(super) size: usize,
    pub(super) show: Show,
}

/// A structure: its size and all of its fields, in order.
pub(super) struct Structure {
    pub(super) size: usize,
    pub(super) fields: &'static [Field],
}

impl Structure {
    /// Returns whether the fields follow each other without a gap, from the first byte to the last.
    pub(super) const fn shows_every_byte(&self) -> bool {
        let (mut end, mut at) = (0, 0);
        while at < self.fields.len() {
            if self.fields[at].offset != end {
                return false;
            }
            end += self.fields[at].size;
            at += 1;
        }
        end == self.size
    }

    /// Returns the length that the argument gives for itself in its first field, if it has such a
    /// field.
    fn length(&self, bytes: &[u8]) -> Option<usize> {
        let first = self.fields.first().filter(|field| matches!(field.name, "argsz" | "size"))?;
        number(bytes, first.offset, first.size).map(|size| usize::try_from(size).unwrap_or(usize::MAX))
    }

    /// Returns the bytes within the length that the argument gives for itself, at least its first
    /// field.
    pub(super) fn said<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        let length = self.length(bytes).unwrap_or(bytes.len()).max(size_of::<u32>());
        bytes.get(..length).unwrap_or(bytes)
    }

    /// Returns the number of bytes needed to show the structure, or the part of it that its user
    /// knows.
    pub(super) fn expected(&self, bytes: &[u8]) -> usize {
        self.length(bytes).unwrap_or(self.size).min(self.size)
    }

    /// Shows each field that lies completely within `bytes`.
    pub(super) fn show(&self, bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
        for field in self.fields {
            match number(bytes, field.offset, field.size) {
                Some(0) if matches!(field.show, Show::Reserved) => {}
                Some(value) if list.has(field.show) => {
                    let value = field.show.of(value, field.size);
                    list.sink.take(&Name(field.name), false, format_args!("{value}"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name of a field as C has it.
struct Name(&'static str);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.split("r#").try_for_each(|part| f.write_str(part))
    }
}

/// The size of the field that `get` picks.
pub(super) const fn size_of_field<S, F>(_get: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// Makes a [`Structure`] from its type and the text form of each field.
macro_rules! structure {
    ($type:ident { $($first:ident $(. $rest:ident)*: $show:expr),* $(,)? }) => {
        Structure {
            size: size_of::<$type>(),
            fields: &[$(Field {
                name: concat!(stringify!($first) $(, ".", stringify!($rest))*),
                offset: offset_of!($type, $first $(. $rest)*),
                size: size_of_field(|s: &$type| &s.$first $(. $rest)*),
                show: $show,
            }),*],
        }
    };
}
pub(super) use structure;
