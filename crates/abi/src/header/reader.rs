//! The state of a reading of declarations: place, names and findings. The files for declarations, members and
//! attributes share it and have the grammar.

use std::rc::Rc;

use super::budget::Budget;
use super::clash::Clash;
use super::cursor::{Cursor, Result};
use super::declared::Declared;
use super::expansion::expand;
use super::expressions::Evaluator;
use super::layout::Field;
use super::macros::Macros;
use super::number::Number;
use super::scope::{Elsewhere, Scope};
use super::shape::Shape;
use super::tokens::Token;
use super::unread::Unread;

/// The state of a reading of declarations.
pub(super) struct Reader<'a> {
    pub(super) cursor: Cursor<'a>,
    /// The number of structures around this place.
    pub(super) depth: usize,
    macros: &'a Macros,
    budget: &'a Budget,
    pub(super) scope: Scope,
    pub(super) declared: Declared,
}

/// A structure, union or enumeration as a type.
pub(super) struct Tagged {
    /// The shape, or the name of an incomplete type.
    pub(super) shape: std::result::Result<Shape, String>,
    /// The fields of a structure or union that has no name of its own.
    pub(super) inner: Option<Vec<Field>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        code: &'a [Token],
        macros: &'a Macros,
        budget: &'a Budget,
        elsewhere: Elsewhere,
    ) -> Reader<'a> {
        Reader {
            cursor: Cursor::new(code),
            depth: 0,
            macros,
            budget,
            scope: Scope::new(elsewhere),
            declared: Declared::default(),
        }
    }

    /// Takes the expression before one of these signs, outside of brackets, and returns its value.
    pub(super) fn evaluated(&mut self, ends: &[&str]) -> Result<Number> {
        let line = self.cursor.line();
        let tokens = self.cursor.before(ends);
        expand(tokens, line, self.macros, self.budget)
            .and_then(|expanded| Evaluator::new(&expanded, &self.scope).whole())
            .map_err(|why| Unread::new(line, why))
    }

    /// Records a clash with a macro that replaces the declared name.
    pub(super) fn clash_with_macro(
        &mut self,
        name: &Rc<str>,
        line: u32,
        what: &'static str,
        value: Option<i64>,
    ) {
        let Some(found) = self.macros.at(name, line).filter(|found| found.replaces(name)) else { return };
        let clash = Clash::MacroBefore { name: name.to_string(), defined: found.line, what, line, value };
        self.declared.clashes.push(clash);
    }
}
