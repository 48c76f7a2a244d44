//! Enumerations, structures and unions: what they declare, and the names that clash with theirs. Nothing else
//! stands in a header of the user API; what does is told and passed over.

use std::collections::HashMap;
use std::rc::Rc;

use super::cursor::{Cursor, Result};
use super::expansion::{Budget, expand};
use super::expressions::{Evaluator, Names};
use super::layout::{self, Attributes, Member, Shape};
use super::macros::Macros;
use super::number::Number;
use super::tokens::Token;
use super::{Clash, Enumerator, Structure, Unread};

/// How deep structures may stand in one another.
const DEEPEST: usize = 32;

/// After so many declarations that cannot be read the text is taken for no header.
const MOST_UNREAD: usize = 100;

/// The size and alignment, in bytes, of a structure that another header defines.
pub(crate) type Elsewhere = fn(&str) -> Option<(u64, u64)>;

/// The names that declarations have made so far.
pub(super) struct Scope {
    structures: HashMap<Rc<str>, (Shape, u32)>,
    enumerators: HashMap<Rc<str>, (Number, u32)>,
    elsewhere: Elsewhere,
}

impl Scope {
    pub(super) fn structure(&self, tag: &str) -> Option<Shape> {
        let elsewhere = || {
            let (size, alignment) = (self.elsewhere)(tag)?;
            Some(Shape { size, alignment, signed: None })
        };
        self.structures.get(tag).map(|(shape, _)| *shape).or_else(elsewhere)
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
            _ => layout::BaseTypes.type_of(words),
        }
    }

    fn begins_type(&self, word: &Token) -> bool {
        ["struct", "union", "enum"].into_iter().any(|keyword| word.is_name(keyword))
            || layout::BaseTypes.begins_type(word)
    }
}

/// What the declarations of a header are.
#[derive(Debug, Default)]
pub(super) struct Declared {
    pub(super) structures: Vec<Structure>,
    pub(super) enumerators: Vec<Enumerator>,
    pub(super) clashes: Vec<Clash>,
    pub(super) unread: Vec<Unread>,
}

/// Reads them all. The scope is that of the header's end.
pub(super) fn declarations(
    code: &[Token],
    macros: &Macros,
    budget: &Budget,
    elsewhere: Elsewhere,
) -> (Declared, Scope) {
    let scope = Scope { structures: HashMap::new(), enumerators: HashMap::new(), elsewhere };
    let mut reader =
        Reader { cursor: Cursor::new(code), depth: 0, macros, budget, scope, declared: Declared::default() };
    while !reader.cursor.is_at_end() {
        if reader.declared.unread.len() == MOST_UNREAD {
            let unread =
                reader.cursor.unread("too much before cannot be read: nothing from here on is looked at");
            reader.declared.unread.push(unread);
            break;
        }
        let start = reader.cursor.place();
        let heading = heading(&code[start..]);
        if let Err(Unread { line, why }) = reader.external() {
            let why = heading.map_or(why.clone(), |heading| format!("{heading}: {why}"));
            reader.declared.unread.push(Unread { line, why });
            reader.cursor.pass_over(start);
        }
    }
    (reader.declared, reader.scope)
}

/// How the declaration that begins here is called in a message.
fn heading(code: &[Token]) -> Option<String> {
    let [keyword, tag, ..] = code else { return None };
    let (keyword, tag) = (keyword.name()?, tag.name()?);
    ["struct", "union", "enum"].contains(&&**keyword).then(|| format!("{keyword} {tag}"))
}

pub(super) struct Reader<'a> {
    pub(super) cursor: Cursor<'a>,
    depth: usize,
    pub(super) macros: &'a Macros,
    budget: &'a Budget,
    pub(super) scope: Scope,
    declared: Declared,
}

/// A structure, union or enumeration as a type.
pub(super) struct Tagged {
    /// Nothing if the type is not complete, with how it is called.
    pub(super) shape: std::result::Result<Shape, String>,
    /// The fields of a structure or union that has no name of its own.
    pub(super) inner: Option<Vec<layout::Field>>,
}

impl Reader<'_> {
    /// One declaration outside of all others.
    fn external(&mut self) -> Result<()> {
        if self.cursor.next_is_sign(";") {
            return Ok(());
        }
        if self.tagged()?.is_none() {
            return Err(self
                .cursor
                .unread(format!("{} begins no struct, union or enum", self.cursor.seen())));
        }
        self.cursor.expect(";")
    }

    /// A structure, union or enumeration, if one stands here.
    pub(super) fn tagged(&mut self) -> Result<Option<Tagged>> {
        let before = self.attributes()?;
        if self.cursor.next_is_name("struct") {
            self.aggregate(false, before).map(Some)
        } else if self.cursor.next_is_name("union") {
            self.aggregate(true, before).map(Some)
        } else if self.cursor.next_is_name("enum") {
            self.enumeration()?;
            Ok(Some(Tagged { shape: Ok(Shape::ENUMERATION), inner: None }))
        } else {
            Ok(None)
        }
    }

    /// A structure or union, behind its keyword.
    fn aggregate(&mut self, is_union: bool, before: Attributes) -> Result<Tagged> {
        let keyword = if is_union { "union" } else { "struct" };
        let mut attributes = before.and(self.attributes()?);
        if !self.cursor.is_sign("{") {
            let (tag, line) = self.cursor.name_of("a structure")?;
            if !self.cursor.is_sign("{") {
                let shape = self.scope.structure(&tag).ok_or_else(|| format!("{keyword} {tag}"));
                return Ok(Tagged { shape, inner: None });
            }
            let (shape, fields) = self.body(is_union, &mut attributes)?;
            self.declare_structure(tag, line, shape, fields);
            return Ok(Tagged { shape: Ok(shape), inner: None });
        }
        let (shape, fields) = self.body(is_union, &mut attributes)?;
        Ok(Tagged { shape: Ok(shape), inner: Some(fields) })
    }

    /// What is in braces, and the attributes behind them.
    fn body(&mut self, is_union: bool, attributes: &mut Attributes) -> Result<(Shape, Vec<layout::Field>)> {
        self.cursor.expect("{")?;
        if self.depth == DEEPEST {
            return Err(self
                .cursor
                .unread(format!("structures stand in one another more than {DEEPEST} deep")));
        }
        self.depth += 1;
        let members = self.members();
        self.depth -= 1;
        let members: Vec<Member> = members?;
        for (name, line) in members.iter().filter_map(|member| member.name.as_ref()) {
            self.clash_with_macro(name, *line, "field", None);
        }
        *attributes = attributes.and(self.attributes()?);
        layout::aggregate(&members, is_union, *attributes).map_err(|why| self.cursor.unread(why))
    }

    fn declare_structure(&mut self, name: Rc<str>, line: u32, shape: Shape, fields: Vec<layout::Field>) {
        self.clash_with_macro(&name, line, "structure", None);
        if let Some((_, first)) = self.scope.structures.insert(Rc::clone(&name), (shape, line)) {
            let clash = Clash::StructureTwice { name: name.to_string(), first, second: line };
            self.declared.clashes.push(clash);
        }
        self.declared.structures.push(Structure {
            name,
            line,
            size: shape.size,
            alignment: shape.alignment,
            fields,
        });
    }

    /// An enumeration, behind its keyword.
    fn enumeration(&mut self) -> Result<()> {
        let tag = self.cursor.word();
        if !self.cursor.next_is_sign("{") {
            return Ok(());
        }
        if let Some((tag, line)) = &tag {
            self.clash_with_macro(tag, *line, "enumeration", None);
        }
        let mut next = Some(Number::int(0));
        while !self.cursor.next_is_sign("}") {
            let (name, line) = self.cursor.name_of("an enumerator")?;
            if self.cursor.next_is_sign("=") {
                next = Some(self.evaluated(&[",", "}"])?);
            }
            let value = next.filter(|value| value.is_of_an_enumeration());
            let value =
                value.ok_or_else(|| Unread { line, why: format!("{name} is larger than an enumerator") })?;
            self.clash_with_macro(&name, line, "enumerator", Some(value.value()));
            if let Some((first, at)) = self.scope.enumerators.insert(Rc::clone(&name), (value, line)) {
                self.declared.clashes.push(Clash::EnumeratorTwice {
                    name: name.to_string(),
                    first: (at, first.value()),
                    second: (line, value.value()),
                });
            }
            let enumeration = tag.as_ref().map(|(tag, _)| Rc::clone(tag));
            self.declared.enumerators.push(Enumerator { name, line, value: value.value(), enumeration });
            next = value.successor();
            if !self.cursor.is_sign("}") {
                self.cursor.expect(",")?;
            }
        }
        Ok(())
    }

    /// The value of what stands before one of these, outside of brackets.
    pub(super) fn evaluated(&mut self, ends: &[&str]) -> Result<Number> {
        let line = self.cursor.unread("").line;
        let tokens = self.cursor.before(ends);
        expand(tokens, line, self.macros, self.budget)
            .and_then(|expanded| Evaluator::new(&expanded, &self.scope).whole())
            .map_err(|why| Unread { line, why })
    }

    /// Notes a macro that replaces the name of what is declared.
    fn clash_with_macro(&mut self, name: &Rc<str>, line: u32, what: &'static str, value: Option<i64>) {
        let Some(found) = self.macros.at(name, line) else { return };
        // With parameters it replaces only what looks as a call.
        if found.parameters.is_some() || found.is_itself(name) {
            return;
        }
        let clash = Clash::MacroBefore { name: name.to_string(), defined: found.line, what, line, value };
        self.declared.clashes.push(clash);
    }
}
