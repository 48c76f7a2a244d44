//! The members of structures and unions: their types, names and lengths. `layout` places them; `declarations` reads the
//! structures themselves.

use std::rc::Rc;

use super::cursor::Result;
use super::excerpt::Excerpt;
use super::layout::{Attributes, Member};
use super::reader::{Reader, Tagged};
use super::shape::{self, QUALIFIERS, Shape};
use super::tokens::Token;
use super::unread::Unread;

impl Reader<'_> {
    /// Takes the members between the braces of a structure, and the closing brace.
    pub(super) fn members(&mut self) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        while !self.cursor.next_is_sign("}") {
            if self.cursor.next_is_sign(";") {
                continue;
            }
            if self.cursor.next_is_name("__DECLARE_FLEX_ARRAY") {
                members.push(self.flexible_by_macro()?);
                continue;
            }
            let Tagged { shape, inner } = self.type_of_members()?;
            if !self.cursor.next_is_sign(";") {
                self.declarators(&shape, &mut members)?;
            } else if let (Some(inner), Ok(shape)) = (inner, shape) {
                // Its fields are fields of the enclosing structure.
                let attributes = Attributes::default();
                members.push(Member { name: None, shape, flexible: false, attributes, inner });
            }
        }
        Ok(members)
    }

    /// Takes `__DECLARE_FLEX_ARRAY(type, name);`, a flexible array where C does not allow one.
    fn flexible_by_macro(&mut self) -> Result<Member> {
        self.cursor.expect("(")?;
        let Tagged { shape, .. } = self.type_of_members()?;
        self.cursor.expect(",")?;
        let name = Some(self.cursor.name_of("a field")?);
        self.cursor.expect(")")?;
        self.cursor.expect(";")?;
        let shape = shape.map_err(|name| self.unknown_size(&name))?;
        let shape = Shape { size: 0, ..shape };
        Ok(Member { name, shape, flexible: true, attributes: Attributes::default(), inner: Vec::new() })
    }

    /// Takes the type at the start of a declaration.
    fn type_of_members(&mut self) -> Result<Tagged> {
        if let Some(tagged) = self.tagged()? {
            return Ok(tagged);
        }
        let mut attributes = Attributes::default();
        let mut words: Vec<Rc<str>> = Vec::new();
        while let Some(word) = self.cursor.peek().and_then(Token::name) {
            let is_qualifier = QUALIFIERS.contains(&&**word);
            if !is_qualifier && !shape::begins_base(word) {
                break;
            }
            self.cursor.word();
            if !is_qualifier {
                words.push(Rc::clone(word));
            }
            attributes = attributes.and(self.attributes()?);
        }
        match shape::base(words.iter().map(|word| &**word)) {
            Some(shape) if shape.size > 0 => {
                let alignment = shape.alignment.max(attributes.aligned.unwrap_or(1));
                Ok(Tagged { shape: Ok(Shape { alignment, ..shape }), inner: None })
            }
            Some(_) => Ok(Tagged { shape: Err("void".into()), inner: None }),
            None if words.is_empty() => {
                Err(self.cursor.unread(format!("expected a known type, found {}", self.cursor.seen())))
            }
            None => Err(self.cursor.unread(format!("`{}` is not a type", Excerpt(&words.join(" "))))),
        }
    }

    /// Takes the names of a declaration, and the `;` after them.
    fn declarators(
        &mut self,
        shape: &std::result::Result<Shape, String>,
        to: &mut Vec<Member>,
    ) -> Result<()> {
        loop {
            to.push(self.declarator(shape)?);
            if self.cursor.next_is_sign(";") {
                return Ok(());
            }
            self.cursor.expect(",")?;
        }
    }

    /// Takes one declarator: a name with its stars, array lengths and attributes.
    fn declarator(&mut self, shape: &std::result::Result<Shape, String>) -> Result<Member> {
        let mut attributes = self.attributes()?;
        let mut shape = shape.clone();
        while self.cursor.next_is_sign("*") {
            shape = Ok(Shape::POINTER);
            while QUALIFIERS.into_iter().any(|qualifier| self.cursor.next_is_name(qualifier)) {}
            attributes = attributes.and(self.attributes()?);
        }
        let name = Some(self.cursor.name_of("a field")?);
        let mut shape = shape.map_err(|name| self.unknown_size(&name))?;
        let mut flexible = false;
        while self.cursor.next_is_sign("[") {
            if self.cursor.next_is_sign("]") {
                flexible = true;
                shape = Shape { size: 0, signed: None, ..shape };
                continue;
            }
            let count = self.evaluated(&["]"])?;
            self.cursor.expect("]")?;
            let count = count.amount().ok_or_else(|| self.cursor.unread("an array of negative length"))?;
            shape = shape.times(count).map_err(|why| self.cursor.unread(why))?;
        }
        attributes = attributes.and(self.attributes()?);
        if self.cursor.is_sign(":") {
            return Err(self.cursor.unread("bit fields are not supported"));
        }
        Ok(Member { name, shape, flexible, attributes, inner: Vec::new() })
    }

    /// Returns the error for a type of unknown size.
    fn unknown_size(&self, name: &str) -> Unread {
        self.cursor.unread(format!("the size of {name} is unknown"))
    }
}
