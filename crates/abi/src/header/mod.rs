//! Reads headers of the kernel's user API without a C compiler: constants with their values, structures with the
//! offsets of their fields, and names that clash. It knows nothing of VFIO, opens no file (an `#include` is skipped),
//! and accepts any text: unreadable parts are listed with their lines.
//!
//! Existing libraries for C do not fit: cexpr evaluates expressions without casts or macros with arguments, lang-c
//! needs preprocessed text, in which no macro is left to clash, and the others are whole compilers.
//!
//! Rooms, from the ground up. Text: [`excerpt`], [`tokens`], [`lines`]. Numbers: [`shape`] types in memory, [`number`],
//! [`names`] what an expression may ask, [`expressions`]. Macros: [`macros`], [`budget`], [`expansion`],
//! [`preprocessor`]. Declarations: [`layout`] where members lie, [`declared`] what is found, [`scope`], [`cursor`],
//! [`reader`], [`attributes`], [`members`], [`declarations`]. What is told: [`value`], [`clash`], [`unread`].

mod attributes;
#[cfg(test)]
mod bounds_tests;
mod budget;
mod clash;
#[cfg(test)]
mod compiler_tests;
mod cursor;
mod declarations;
mod declared;
mod excerpt;
mod expansion;
mod expressions;
mod layout;
mod lines;
mod macros;
mod members;
mod names;
mod number;
mod preprocessor;
mod reader;
mod scope;
mod shape;
#[cfg(test)]
mod tests;
mod tokens;
mod unread;
mod value;

use budget::Budget;
pub use clash::Clash;
pub(crate) use declared::{Enumerator, Structure};
use expansion::expand;
use expressions::Evaluator;
#[cfg(test)]
use layout::Field;
use macros::{END, Macro, Macros};
use scope::{Elsewhere, Scope};
use tokens::{Kind, Token, tokens};
pub use unread::Unread;
pub(crate) use value::Value;

/// A macro that is defined at the end of the header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defined<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: u32,
    /// Set if the macro has no text, as an include guard.
    pub(crate) is_empty: bool,
}

/// The contents of a header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) structures: Vec<Structure>,
    pub(crate) enumerators: Vec<Enumerator>,
    /// Clashes, sorted by line.
    pub(crate) clashes: Vec<Clash>,
    /// Unreadable parts, sorted by line.
    pub(crate) unread: Vec<Unread>,
    macros: Macros,
    scope: Scope,
    budget: Budget,
}

/// Reads a header. `elsewhere` gives structures that the header uses and does not define.
pub(crate) fn read(text: &str, elsewhere: Elsewhere) -> Header {
    let budget = Budget::default();
    let (lines, unended) = lines::lines(text);
    let mut preprocessed = preprocessor::preprocess(&lines, &budget);
    let macros = preprocessed.macros;
    let (declared, scope) = declarations::declarations(&preprocessed.code, &macros, &budget, elsewhere);

    let mut unread = std::mem::take(&mut preprocessed.unread);
    unread.extend(unended.map(|line| Unread::new(line, "unterminated comment")));
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
    let redefined = preprocessed
        .redefined
        .iter()
        .filter_map(|(name, first, second)| header.redefinition(name, [first, second]));
    let mut clashes: Vec<Clash> = redefined.chain(header.macros_behind_enumerators()).collect();
    header.clashes.append(&mut clashes);
    header.clashes.sort_by_key(Clash::line);
    header
}

impl Header {
    /// Returns the macros that are defined at the end.
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

    /// Returns the value of an expression at the end of the header. All of them share the budget of the header.
    pub(crate) fn value(&self, expression: &str) -> Result<Value, String> {
        self.value_of(&tokens(expression, END))
    }

    /// Returns the value of an expression, or of strings one after the other.
    fn value_of(&self, expression: &[Token]) -> Result<Value, String> {
        let expanded = expand(expression, END, &self.macros, &self.budget)?;
        let texts = expanded.iter().map(|token| match &token.kind {
            Kind::Text(text) => Some(&**text),
            _ => None,
        });
        match texts.collect::<Option<Vec<&str>>>() {
            Some(texts) if !texts.is_empty() => {
                self.budget.spend(texts.iter().map(|text| text.len()).sum())?;
                Ok(Value::Text(texts.concat()))
            }
            _ => Ok(Value::Number(Evaluator::new(&expanded, &self.scope).whole()?.value())),
        }
    }

    /// Returns the text of a macro for messages.
    fn shown(&self, found: &Macro) -> Option<String> {
        self.value_of(&found.body).ok().map(|value| value.to_string())
    }

    /// Returns the clash of a macro that is defined twice, unless both have the same value.
    fn redefinition(&self, name: &str, [first, second]: [&Macro; 2]) -> Option<Clash> {
        let values = [self.shown(first), self.shown(second)];
        let are_plain = first.parameters.is_none() && second.parameters.is_none();
        if are_plain && matches!(&values, [Some(first), Some(second)] if first == second) {
            return None;
        }
        let [first_value, second_value] = values.map(|value| value.unwrap_or_else(|| ANOTHER_TEXT.into()));
        Some(Clash::Redefined {
            name: name.to_owned(),
            first: (first.line, first_value),
            second: (second.line, second_value),
        })
    }

    /// Returns the clashes of enumerators with later macros.
    fn macros_behind_enumerators(&self) -> impl Iterator<Item = Clash> {
        self.enumerators.iter().filter_map(|enumerator| {
            let found = self.macros.first_replacing_from(&enumerator.name, enumerator.line)?;
            Some(Clash::MacroAfter {
                name: enumerator.name.to_string(),
                defined: found.line,
                enumerator: (enumerator.line, enumerator.value),
                value: self.shown(found).unwrap_or_else(|| ANOTHER_TEXT.into()),
            })
        })
    }
}

/// The name in messages of a macro without a value.
const ANOTHER_TEXT: &str = "another text";
