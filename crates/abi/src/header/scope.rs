//! The names declared so far: structures and enumerators. Macros are in `macros`.

use std::collections::HashMap;
use std::rc::Rc;

use super::names::{BaseTypes, Names};
use super::number::Number;
use super::shape::Shape;
use super::tokens::Token;

/// Returns the size and alignment, in bytes, of a structure that another header defines.
pub(crate) type Elsewhere = fn(&str) -> Option<(u64, u64)>;

/// The names of declarations, each with its line.
#[derive(Debug)]
pub(super) struct Scope {
    structures: HashMap<Rc<str>, (Shape, u32)>,
    enumerators: HashMap<Rc<str>, (Number, u32)>,
    elsewhere: Elsewhere,
}

impl Scope {
    pub(super) fn new(elsewhere: Elsewhere) -> Scope {
        Scope { structures: HashMap::new(), enumerators: HashMap::new(), elsewhere }
    }

    /// Returns the shape of a structure or union with this tag, here or in another header.
    pub(super) fn structure(&self, tag: &str) -> Option<Shape> {
        let elsewhere = || {
            let (size, alignment) = (self.elsewhere)(tag)?;
            Some(Shape { size, alignment, signed: None })
        };
        self.structures.get(tag).map(|(shape, _)| *shape).or_else(elsewhere)
    }

    /// Adds a structure, and returns the line of an earlier one with the same tag.
    pub(super) fn add_structure(&mut self, tag: &Rc<str>, shape: Shape, line: u32) -> Option<u32> {
        self.structures.insert(Rc::clone(tag), (shape, line)).map(|(_, line)| line)
    }

    /// Adds an enumerator, and returns an earlier one with the same name, and its line.
    pub(super) fn add_enumerator(
        &mut self,
        name: &Rc<str>,
        value: Number,
        line: u32,
    ) -> Option<(Number, u32)> {
        self.enumerators.insert(Rc::clone(name), (value, line))
    }
}

impl Names for Scope {
    fn enumerator(&self, name: &str) -> Option<Number> {
        self.enumerators.get(name).map(|(value, _)| *value)
    }

    fn type_of(&self, words: &[Token]) -> Option<Shape> {
        match words {
            [keyword, tag] if keyword.is_name("struct") || keyword.is_name("union") => {
                self.structure(tag.name()?)
            }
            [keyword, _] if keyword.is_name("enum") => Some(Shape::ENUMERATION),
            [first, .., star] if star.is_sign("*") => self.begins_type(first).then_some(Shape::POINTER),
            _ => BaseTypes.type_of(words),
        }
    }

    fn begins_type(&self, word: &Token) -> bool {
        ["struct", "union", "enum"].into_iter().any(|keyword| word.is_name(keyword))
            || BaseTypes.begins_type(word)
    }
}
