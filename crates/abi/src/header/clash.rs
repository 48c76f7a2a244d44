//! Clashes of names in a header, and their messages. The readers of declarations and macros find them.

use std::fmt;

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// Two clashing uses of one name.
///
/// Its text is one sentence, without the line. It serializes with `kind`, `name`, `line` and `text`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clash {
    /// A macro that replaces the name where it is declared, so that a compiler reads the macro's text there.
    #[non_exhaustive]
    MacroBefore {
        /// The name of both.
        name: String,
        /// The line of the macro.
        defined: u32,
        /// The kind of declaration: `enumerator`, `structure`, `field` or `enumeration`.
        what: &'static str,
        /// The line of the declaration.
        line: u32,
        /// The value of an enumerator.
        value: Option<i64>,
    },
    /// A macro with the name of an earlier enumerator, which it replaces from there on.
    #[non_exhaustive]
    MacroAfter {
        /// The name of both.
        name: String,
        /// The line of the macro.
        defined: u32,
        /// The line and value of the enumerator.
        enumerator: (u32, i64),
        /// The value of the macro.
        value: String,
    },
    /// A macro that is redefined with another value, without an `#undef`.
    #[non_exhaustive]
    Redefined {
        /// The name of both.
        name: String,
        /// The line and value of the first definition.
        first: (u32, String),
        /// The line and value of the second definition.
        second: (u32, String),
    },
    /// An enumerator that is declared twice.
    #[non_exhaustive]
    EnumeratorTwice {
        /// The name of both.
        name: String,
        /// The line and value of the first declaration.
        first: (u32, i64),
        /// The line and value of the second declaration.
        second: (u32, i64),
    },
    /// A structure that is declared twice.
    #[non_exhaustive]
    StructureTwice {
        /// The name of both.
        name: String,
        /// The line of the first declaration.
        first: u32,
        /// The line of the second declaration.
        second: u32,
    },
}

impl Clash {
    /// Returns the name of both uses.
    pub fn name(&self) -> &str {
        match self {
            Clash::MacroBefore { name, .. }
            | Clash::MacroAfter { name, .. }
            | Clash::Redefined { name, .. }
            | Clash::EnumeratorTwice { name, .. }
            | Clash::StructureTwice { name, .. } => name,
        }
    }

    /// Returns the line where a compiler would notice the clash.
    pub fn line(&self) -> u32 {
        match self {
            Clash::MacroBefore { line, .. }
            | Clash::MacroAfter { defined: line, .. }
            | Clash::Redefined { second: (line, _), .. }
            | Clash::EnumeratorTwice { second: (line, _), .. }
            | Clash::StructureTwice { second: line, .. } => *line,
        }
    }

    /// Returns the variant's name in the JSON form, which is stable.
    pub fn kind(&self) -> &'static str {
        match self {
            Clash::MacroBefore { .. } => "macro_replaces_name",
            Clash::MacroAfter { .. } => "macro_hides_enumerator",
            Clash::Redefined { .. } => "macro_redefined",
            Clash::EnumeratorTwice { .. } => "enumerator_twice",
            Clash::StructureTwice { .. } => "structure_twice",
        }
    }
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clash::MacroBefore { name, defined, what, value, .. } => {
                write!(f, "the macro {name} of line {defined} replaces the name of this {what}")?;
                value.map_or(Ok(()), |value| write!(f, ", which is {value}"))?;
                write!(f, ": it does not compile, or means something else")
            }
            Clash::MacroAfter { name, enumerator: (line, own), value, .. } => {
                write!(f, "the macro {name} is {value} from here on; the enumerator of line {line} is {own}")
            }
            Clash::Redefined { name, first: (line, first), second: (_, second) } => {
                write!(f, "the macro {name} is {second} from here on; line {line} defines it as {first}")
            }
            Clash::EnumeratorTwice { name, first: (line, first), second: (_, second) } => {
                write!(
                    f,
                    "the enumerator {name} is {second} here and {first} in line {line}: it does not compile"
                )
            }
            Clash::StructureTwice { name, first, .. } => {
                write!(f, "the structure {name} is defined in line {first} already: it does not compile")
            }
        }
    }
}

impl Serialize for Clash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Clash", 4)?;
        object.serialize_field("kind", self.kind())?;
        object.serialize_field("name", self.name())?;
        object.serialize_field("line", &self.line())?;
        object.serialize_field("text", &self.to_string())?;
        object.end()
    }
}
