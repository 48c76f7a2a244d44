//! Reads a header of the kernel's user API as far as such headers go, without a C compiler: constants with
//! their values, structures with the places of their fields, and names that get in one another's way. It
//! knows nothing of VFIO, opens nothing (an `#include` is passed over), and takes any text: what it cannot
//! read it tells with the line.
//!
//! The libraries for C do other things: cexpr evaluates an expression but knows neither casts nor macros
//! with arguments, lang-c wants text that a preprocessor has gone through, in which no macro is left to
//! clash, and the others are whole compilers.
//!
//! Rooms: [`tokens`] from text to tokens, [`macros`] the preprocessor, [`expansion`] what macros make of a
//! text, [`expressions`] constant expressions and [`number`] what they are made of, [`declarations`]
//! structures and enumerations with their [`members`], by a [`cursor`], and [`layout`] where fields lie.

#[cfg(test)]
mod compiler_tests;
mod cursor;
mod declarations;
mod expansion;
mod expressions;
mod layout;
mod macros;
mod members;
mod number;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::rc::Rc;

pub(crate) use declarations::Elsewhere;
use declarations::Scope;
use expansion::{Budget, expand};
use expressions::Evaluator;
pub(crate) use layout::Field;
use macros::{END, Macro, Macros};
use tokens::{Kind, Token};

/// A structure or union with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Structure {
    pub(crate) name: Rc<str>,
    pub(crate) line: u32,
    /// In bytes.
    pub(crate) size: u64,
    /// In bytes.
    pub(crate) alignment: u64,
    /// Those of nested structures and unions without a name are among them.
    pub(crate) fields: Vec<Field>,
}

/// A name an enumeration gives to a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Enumerator {
    pub(crate) name: Rc<str>,
    pub(crate) line: u32,
    pub(crate) value: i64,
    /// The name of its enumeration, if it has one.
    pub(crate) enumeration: Option<Rc<str>>,
}

/// What a constant is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// As `(long long)` makes it.
    Number(i64),
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => fmt::Display::fmt(number, f),
            Value::Text(text) => write!(f, "\"{text}\""),
        }
    }
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) line: u32,
    pub(crate) why: String,
}

/// Two uses of one name that get in each other's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Clash {
    /// A macro replaces the name where it is declared: a compiler reads the macro's text there.
    MacroBefore {
        name: String,
        defined: u32,
        what: &'static str,
        line: u32,
        value: Option<i64>,
    },
    /// A macro has the name of an enumerator before it: from there on the name means the macro.
    MacroAfter {
        name: String,
        defined: u32,
        enumerator: (u32, i64),
        value: String,
    },
    /// A macro is defined again with another value, without an `#undef`: lines and values.
    Redefined {
        name: String,
        first: (u32, String),
        second: (u32, String),
    },
    EnumeratorTwice {
        name: String,
        first: (u32, i64),
        second: (u32, i64),
    },
    StructureTwice {
        name: String,
        first: u32,
        second: u32,
    },
}

impl Clash {
    pub(crate) fn name(&self) -> &str {
        match self {
            Clash::MacroBefore { name, .. }
            | Clash::MacroAfter { name, .. }
            | Clash::Redefined { name, .. }
            | Clash::EnumeratorTwice { name, .. }
            | Clash::StructureTwice { name, .. } => name,
        }
    }

    /// The line where a compiler would notice.
    pub(crate) fn line(&self) -> u32 {
        match self {
            Clash::MacroBefore { line, .. }
            | Clash::MacroAfter { defined: line, .. }
            | Clash::Redefined { second: (line, _), .. }
            | Clash::EnumeratorTwice { second: (line, _), .. }
            | Clash::StructureTwice { second: line, .. } => *line,
        }
    }
}

/// A macro as it is at the end of the header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defined<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: u32,
    /// Whether there is nothing behind the name, as in a guard.
    pub(crate) is_empty: bool,
}

/// What a header says.
pub(crate) struct Header {
    pub(crate) structures: Vec<Structure>,
    pub(crate) enumerators: Vec<Enumerator>,
    /// In the order of their lines.
    pub(crate) clashes: Vec<Clash>,
    /// In the order of their lines.
    pub(crate) unread: Vec<Unread>,
    macros: Macros,
    scope: Scope,
    budget: Budget,
}

/// Reads a header. Structures that it uses and does not define are asked of `elsewhere`.
pub(crate) fn read(text: &str, elsewhere: Elsewhere) -> Header {
    let budget = Budget::default();
    let (lines, unended) = tokens::lines(text);
    let mut preprocessed = macros::preprocess(&lines, &budget);
    let macros = preprocessed.macros;
    let (declared, scope) = declarations::declarations(&preprocessed.code, &macros, &budget, elsewhere);

    let mut unread = std::mem::take(&mut preprocessed.unread);
    unread.extend(unended.map(|line| Unread { line, why: "this comment has no end".into() }));
    unread.extend(declared.unread);
    unread.sort_by_key(|unread| unread.line);
    let mut header = Header {
        structures: declared.structures,
        enumerators: declared.enumerators,
        clashes: declared.clashes,
        unread,
        macros,
        scope,
        budget,
    };
    let redefined = preprocessed.redefined.iter().filter_map(|(name, first, second)| {
        macros::clash(name, [first, second], |of| Ok(header.value_of(&of.body)?.to_string()))
    });
    let mut clashes: Vec<Clash> = redefined.chain(header.macros_behind_enumerators()).collect();
    header.clashes.append(&mut clashes);
    header.clashes.sort_by_key(Clash::line);
    header
}

impl Header {
    /// The macros that are defined at the end.
    pub(crate) fn macros(&self) -> impl Iterator<Item = Defined<'_>> {
        self.macros.names.iter().filter_map(|name| {
            let found = self.macros.at(name, END)?;
            (!found.is_itself(name)).then_some(Defined {
                name,
                line: found.line,
                is_empty: found.body.is_empty() && found.parameters.is_none(),
            })
        })
    }

    /// What an expression comes to behind the header.
    pub(crate) fn value(&self, expression: &str) -> Result<Value, String> {
        self.value_of(&macros::expression(expression))
    }

    fn value_of(&self, tokens: &[Token]) -> Result<Value, String> {
        let expanded = expand(tokens, END, &self.macros, &self.budget)?;
        let texts = expanded.iter().map(|token| match &token.kind {
            Kind::Text(text) => Some(&**text),
            _ => None,
        });
        match texts.collect::<Option<Vec<&str>>>() {
            Some(texts) if !texts.is_empty() => Ok(Value::Text(texts.concat())),
            _ => Ok(Value::Number(Evaluator::new(&expanded, &self.scope).whole()?.value())),
        }
    }

    fn macros_behind_enumerators(&self) -> impl Iterator<Item = Clash> {
        self.enumerators.iter().filter_map(|enumerator| {
            let replaces = |found: &&Macro| found.parameters.is_none() && !found.is_itself(&enumerator.name);
            let behind = self.macros.definitions_from(&enumerator.name, enumerator.line);
            let found = behind.iter().find(replaces)?;
            let value = self.value_of(&found.body);
            Some(Clash::MacroAfter {
                name: enumerator.name.to_string(),
                defined: found.line,
                enumerator: (enumerator.line, enumerator.value),
                value: value.map_or_else(|_| "another text".into(), |value| value.to_string()),
            })
        })
    }
}
