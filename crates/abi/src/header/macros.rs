//! The macros of a header, with the lines where each holds. The `preprocessor` fills it; `expansion` replaces macros in
//! a text.

use std::collections::HashMap;
use std::rc::Rc;

use super::tokens::Token;

/// One `#define`.
#[derive(Clone, Debug)]
pub(super) struct Macro {
    pub(super) line: u32,
    /// The line where it is undefined or redefined.
    until: Option<u32>,
    pub(super) parameters: Option<Vec<Rc<str>>>,
    pub(super) body: Vec<Token>,
}

impl Macro {
    pub(super) fn new(line: u32, parameters: Option<Vec<Rc<str>>>, body: Vec<Token>) -> Macro {
        Macro { line, until: None, parameters, body }
    }

    /// Returns whether the macro replaces its name where the name stands alone: a macro with parameters replaces only
    /// calls, and `#define A A` changes nothing.
    pub(super) fn replaces(&self, name: &str) -> bool {
        self.parameters.is_none() && !self.is_itself(name)
    }

    /// Returns whether the macro expands to its own name, as in `#define A A`.
    pub(super) fn is_itself(&self, name: &str) -> bool {
        self.parameters.is_none() && matches!(self.body.as_slice(), [only] if only.is_name(name))
    }
}

/// All definitions of one name, by line. Each ends the previous one.
#[derive(Debug, Default)]
struct Definitions {
    all: Vec<Macro>,
    /// The indices of those that replace the name. A header may have a hundred thousand that do not, and as many
    /// look-ups.
    replacing: Vec<usize>,
}

/// All macros of a header, with the lines where each holds.
#[derive(Debug, Default)]
pub(super) struct Macros {
    /// In the order of their first definition.
    pub(super) names: Vec<Rc<str>>,
    definitions: HashMap<Rc<str>, Definitions>,
}

/// The line after the last one.
pub(super) const END: u32 = u32::MAX;

impl Macros {
    /// Returns the macro with this name that holds at a line.
    pub(super) fn at(&self, name: &str, line: u32) -> Option<&Macro> {
        let all = &self.definitions.get(name)?.all;
        let last = all.partition_point(|definition| definition.line < line).checked_sub(1)?;
        all.get(last).filter(|definition| definition.until.is_none_or(|until| line <= until))
    }

    /// Returns the first macro, from a line on, that replaces the name where it stands alone.
    pub(super) fn first_replacing_from(&self, name: &str, line: u32) -> Option<&Macro> {
        let Definitions { all, replacing } = self.definitions.get(name)?;
        let first = replacing.partition_point(|at| all[*at].line < line);
        all.get(*replacing.get(first)?)
    }

    /// Ends the macro with this name.
    pub(super) fn end(&mut self, name: &str, line: u32) {
        if let Some(last) = self.definitions.get_mut(name).and_then(|definitions| definitions.all.last_mut())
        {
            last.until.get_or_insert(line);
        }
    }

    /// Adds a macro after all others, and ends the previous one with its name.
    pub(super) fn define(&mut self, name: &Rc<str>, definition: Macro) {
        self.end(name, definition.line);
        if !self.definitions.contains_key(name) {
            self.names.push(Rc::clone(name));
        }
        let Definitions { all, replacing } = self.definitions.entry(Rc::clone(name)).or_default();
        if definition.replaces(name) {
            replacing.push(all.len());
        }
        all.push(definition);
    }
}
