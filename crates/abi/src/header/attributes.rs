//! The attributes of declarations: those that change a layout, and those that are skipped. `layout` applies them.

use super::cursor::Result;
use super::excerpt::Excerpt;
use super::layout::Attributes;
use super::reader::Reader;
use super::tokens::Token;
use super::unread::Unread;

/// Maximum alignment in bytes.
const MAX_ALIGNMENT: u64 = 1 << 20;

impl Reader<'_> {
    /// Takes all attributes at this place.
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

    /// Takes one attribute.
    fn attribute(&mut self) -> Result<Attributes> {
        let (name, line) = self.cursor.name_of("an attribute")?;
        let mut attributes = Attributes::default();
        match name.trim_matches('_') {
            "packed" => attributes.packed = true,
            "aligned" => {
                self.cursor.expect("(")?;
                let alignment = self.evaluated(&[")"])?.amount();
                self.cursor.expect(")")?;
                let sensible = alignment.filter(|bytes| bytes.is_power_of_two() && *bytes <= MAX_ALIGNMENT);
                let why = "this alignment is not a power of two, or too large";
                attributes.aligned = Some(sensible.ok_or_else(|| Unread::new(line, why))?);
            }
            "counted_by" | "counted_by_le" | "counted_by_be" => self.cursor.bracketed()?,
            "deprecated" | "unused" => {}
            _ => return Err(Unread::new(line, format!("unknown attribute `{}`", Excerpt(&name)))),
        }
        Ok(attributes)
    }
}
