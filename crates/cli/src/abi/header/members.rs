//! The members of structures and unions: their types, names, lengths and attributes.

use std::rc::Rc;

use super::Unread;
use super::cursor::Result;
use super::declarations::{Reader, Tagged};
use super::layout::{self, Attributes, Member, Shape};
use super::tokens::Token;

impl Reader<'_> {
    /// What is between the braces of a structure, and the brace that ends it.
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
                // Its fields are fields of what it stands in.
                let attributes = Attributes::default();
                members.push(Member { name: None, shape, flexible: false, attributes, inner });
            }
        }
        Ok(members)
    }

    /// `__DECLARE_FLEX_ARRAY(type, name);`: a flexible array where C does not allow one.
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

    /// The type that a declaration begins with.
    fn type_of_members(&mut self) -> Result<Tagged> {
        if let Some(tagged) = self.tagged()? {
            return Ok(tagged);
        }
        let mut attributes = Attributes::default();
        let mut words: Vec<Rc<str>> = Vec::new();
        while let Some(word) = self.cursor.peek().and_then(Token::name) {
            let is_qualifier = layout::QUALIFIERS.contains(&&**word);
            if !is_qualifier && !layout::begins_base(word) {
                break;
            }
            self.cursor.word();
            if !is_qualifier {
                words.push(Rc::clone(word));
            }
            attributes = attributes.and(self.attributes()?);
        }
        match layout::base(words.iter().map(|word| &**word)) {
            Some(shape) if shape.size > 0 => {
                let alignment = shape.alignment.max(attributes.aligned.unwrap_or(1));
                Ok(Tagged { shape: Ok(Shape { alignment, ..shape }), inner: None })
            }
            Some(_) => Ok(Tagged { shape: Err("void".into()), inner: None }),
            None if words.is_empty() => {
                Err(self.cursor.unread(format!("{} is no type that is known here", self.cursor.seen())))
            }
            None => Err(self.cursor.unread(format!("`{}` is no type", words.join(" ")))),
        }
    }

    /// The names of a declaration, and the `;` behind them.
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

    fn declarator(&mut self, shape: &std::result::Result<Shape, String>) -> Result<Member> {
        let mut attributes = self.attributes()?;
        let mut shape = shape.clone();
        while self.cursor.next_is_sign("*") {
            shape = Ok(Shape::POINTER);
            while layout::QUALIFIERS.into_iter().any(|qualifier| self.cursor.next_is_name(qualifier)) {}
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
            return Err(self.cursor.unread("bit fields are not understood here"));
        }
        Ok(Member { name, shape, flexible, attributes, inner: Vec::new() })
    }

    fn unknown_size(&self, name: &str) -> Unread {
        self.cursor.unread(format!("nothing says how large {name} is"))
    }

    /// Every attribute that stands here.
    pub(super) fn attributes(&mut self) -> Result<Attributes> {
        const WITHOUT_EFFECT: [&str; 4] = ["__user", "__force", "__bitwise", "__extension__"];
        let mut found = Attributes::default();
        while let Some(name) = self.cursor.peek().and_then(Token::name) {
            match &**name {
                "__attribute__" => {
                    self.cursor.word();
                    self.cursor.expect("(")?;
                    self.cursor.expect("(")?;
                    while !self.cursor.next_is_sign(")") {
                        if !self.cursor.next_is_sign(",") {
                            found = found.and(self.attribute()?);
                        }
                    }
                    self.cursor.expect(")")?;
                }
                "__packed" | "__aligned" | "__counted_by" | "__counted_by_le" | "__counted_by_be" => {
                    found = found.and(self.attribute()?);
                }
                name if WITHOUT_EFFECT.contains(&name) => {
                    self.cursor.word();
                }
                _ => break,
            }
        }
        Ok(found)
    }

    fn attribute(&mut self) -> Result<Attributes> {
        let (name, line) = self.cursor.name_of("an attribute")?;
        let mut attributes = Attributes::default();
        match name.trim_matches('_') {
            "packed" => attributes.packed = true,
            "aligned" => {
                self.cursor.expect("(")?;
                let alignment = self.evaluated(&[")"])?.amount();
                self.cursor.expect(")")?;
                let sensible = alignment.filter(|bytes| bytes.is_power_of_two() && *bytes <= 1 << 20);
                let why = "this alignment is no power of two, or too large".to_owned();
                attributes.aligned = Some(sensible.ok_or(Unread { line, why })?);
            }
            "counted_by" | "counted_by_le" | "counted_by_be" => self.cursor.bracketed()?,
            "deprecated" | "unused" => {}
            _ => return Err(Unread { line, why: format!("the attribute `{name}` is not known") }),
        }
        Ok(attributes)
    }
}
