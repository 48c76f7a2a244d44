//! Enumerations, structures and unions, and the names that clash with theirs. Headers of the user API declare nothing
//! else; other declarations are listed and skipped. `members` reads the members of a structure.

use std::rc::Rc;

use super::budget::Budget;
use super::clash::Clash;
use super::cursor::Result;
use super::declared::{Declared, Enumerator, Structure};
use super::excerpt::Excerpt;
use super::layout::{self, Attributes, Field, Member};
use super::macros::Macros;
use super::number::Number;
use super::reader::{Reader, Tagged};
use super::scope::{Elsewhere, Scope};
use super::shape::Shape;
use super::tokens::Token;
use super::unread::{MAX_UNREAD, Unread};

/// Maximum nesting depth of structures.
const MAX_DEPTH: usize = 32;

/// Reads all declarations of a header. The returned scope is that of its end.
pub(super) fn declarations(
    code: &[Token],
    macros: &Macros,
    budget: &Budget,
    elsewhere: Elsewhere,
) -> (Declared, Scope) {
    let mut reader = Reader::new(code, macros, budget, elsewhere);
    while !reader.cursor.is_at_end() {
        if reader.declared.unread.len() == MAX_UNREAD {
            reader.declared.unread.push(Unread::and_no_more(reader.cursor.line()));
            break;
        }
        let start = reader.cursor.place();
        let heading = heading(&code[start..]);
        if let Err(Unread { line, why }) = reader.external() {
            let why = heading.map_or(why.clone(), |heading| format!("{heading}: {why}"));
            reader.declared.unread.push(Unread::new(line, why));
            reader.cursor.pass_over(start);
        }
    }
    (reader.declared, reader.scope)
}

/// Returns the name for messages of the declaration that begins here.
fn heading(code: &[Token]) -> Option<String> {
    let [keyword, tag, ..] = code else { return None };
    let (keyword, tag) = (keyword.name()?, tag.name()?);
    ["struct", "union", "enum"].contains(&&**keyword).then(|| format!("{keyword} {}", Excerpt(tag)))
}

impl Reader<'_> {
    /// Takes a top-level declaration.
    fn external(&mut self) -> Result<()> {
        if self.cursor.next_is_sign(";") {
            return Ok(());
        }
        if self.tagged()?.is_none() {
            return Err(self
                .cursor
                .unread(format!("expected a struct, union or enum, found {}", self.cursor.seen())));
        }
        self.cursor.expect(";")
    }

    /// Takes a structure, union or enumeration, if one begins here.
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

    /// Takes a structure or union, after its keyword.
    fn aggregate(&mut self, is_union: bool, before: Attributes) -> Result<Tagged> {
        let keyword = if is_union { "union" } else { "struct" };
        let mut attributes = before.and(self.attributes()?);
        if !self.cursor.is_sign("{") {
            let (tag, line) = self.cursor.name_of("a structure")?;
            if !self.cursor.is_sign("{") {
                let shape = self.scope.structure(&tag).ok_or_else(|| format!("{keyword} {}", Excerpt(&tag)));
                return Ok(Tagged { shape, inner: None });
            }
            let (shape, fields) = self.body(is_union, &mut attributes)?;
            self.declare_structure(tag, line, shape, fields);
            return Ok(Tagged { shape: Ok(shape), inner: None });
        }
        let (shape, fields) = self.body(is_union, &mut attributes)?;
        Ok(Tagged { shape: Ok(shape), inner: Some(fields) })
    }

    /// Takes the members in braces, and the attributes after them.
    fn body(&mut self, is_union: bool, attributes: &mut Attributes) -> Result<(Shape, Vec<Field>)> {
        self.cursor.expect("{")?;
        if self.depth == MAX_DEPTH {
            return Err(self.cursor.unread(format!("structures are nested more than {MAX_DEPTH} deep")));
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

    /// Adds a structure to the names and to the declarations.
    fn declare_structure(&mut self, name: Rc<str>, line: u32, shape: Shape, fields: Vec<Field>) {
        self.clash_with_macro(&name, line, "structure", None);
        if let Some(first) = self.scope.add_structure(&name, shape, line) {
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

    /// Takes an enumeration, after its keyword.
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
            let value = value.ok_or_else(|| {
                Unread::new(line, format!("{} is larger than an enumerator", Excerpt(&name)))
            })?;
            self.clash_with_macro(&name, line, "enumerator", Some(value.value()));
            if let Some((first, at)) = self.scope.add_enumerator(&name, value, line) {
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
}
