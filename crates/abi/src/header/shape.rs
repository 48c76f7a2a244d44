//! Types in memory: size, alignment and sign by the ABI of 64-bit Linux, for the types of the language and of
//! `linux/types.h`. `layout` has structures.

/// The size, alignment and sign of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The size in bytes.
    pub(super) size: u64,
    /// The alignment in bytes, a power of two.
    pub(super) alignment: u64,
    /// Set if an integer is signed; `None` for other types.
    pub(super) signed: Option<bool>,
}

impl Shape {
    /// A pointer to anything.
    pub(super) const POINTER: Shape = Shape { size: 8, alignment: 8, signed: None };
    /// An enumeration.
    pub(super) const ENUMERATION: Shape = Shape::integer(4, false);

    /// Returns an integer of `size` bytes.
    const fn integer(size: u64, signed: bool) -> Shape {
        Shape { size, alignment: size, signed: Some(signed) }
    }

    /// Returns an array of `count` elements.
    pub(super) fn times(self, count: u64) -> Result<Shape, String> {
        let size = self.size.checked_mul(count).filter(|size| *size <= MAX_SIZE);
        Ok(Shape { size: size.ok_or("an array is too large")?, signed: None, ..self })
    }
}

/// Maximum size of a type. No type of a header comes near it, and the sum of two such sizes cannot overflow.
pub(super) const MAX_SIZE: u64 = 1 << 40;

/// Words that may appear anywhere in the name of a type and do not change it.
pub(super) const QUALIFIERS: [&str; 2] = ["const", "volatile"];

/// Returns the type with this one-word name in `linux/types.h` or the language.
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

/// The words of C's integer types.
const INTEGERS: [&str; 7] = ["char", "short", "int", "long", "signed", "unsigned", "__signed__"];

/// Returns whether a type of the language begins with this word.
pub(super) fn begins_base(name: &str) -> bool {
    name == "void" || INTEGERS.contains(&name) || word(name).is_some()
}

/// Returns the type that words of the language name. `void` has no size.
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
