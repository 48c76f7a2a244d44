//! The names in an expression: enumerators and types. `expansion` has replaced the macros; `scope` has the
//! declared names.

use super::number::Number;
use super::shape::{self, QUALIFIERS, Shape};
use super::tokens::Token;

/// Names that are neither macros nor keywords.
pub(super) trait Names {
    /// Returns the value of an enumerator.
    fn enumerator(&self, name: &str) -> Option<Number>;
    /// Returns the type that these words name, including stars; `None` if the first word does not begin a
    /// type.
    fn type_of(&self, words: &[Token]) -> Option<Shape>;
    /// Returns whether the word begins a type.
    fn begins_type(&self, word: &Token) -> bool;
}

/// The names of an `#if`: none.
#[derive(Debug)]
pub(super) struct NoNames;

impl Names for NoNames {
    fn enumerator(&self, _: &str) -> Option<Number> {
        Some(Number::int(0))
    }
    fn type_of(&self, _: &[Token]) -> Option<Shape> {
        None
    }
    fn begins_type(&self, _: &Token) -> bool {
        false
    }
}

/// The names of the language itself: its types.
#[derive(Debug)]
pub(super) struct BaseTypes;

impl Names for BaseTypes {
    fn enumerator(&self, _: &str) -> Option<Number> {
        None
    }

    fn type_of(&self, words: &[Token]) -> Option<Shape> {
        let stars = words.iter().rev().take_while(|word| word.is_sign("*")).count();
        let before = words.get(..words.len() - stars)?;
        let names = before.iter().map(|word| word.name().map(|name| &**name)).collect::<Option<Vec<_>>>()?;
        let shape = shape::base(names.into_iter())?;
        Some(if stars > 0 { Shape::POINTER } else { shape }).filter(|shape| shape.size > 0)
    }

    fn begins_type(&self, word: &Token) -> bool {
        word.name().is_some_and(|name| shape::begins_base(name) || QUALIFIERS.contains(&&**name))
    }
}
