//! A position among the tokens of a header, and the small steps from there. `declarations` has the grammar.

use std::rc::Rc;

use super::tokens::{Kind, Token};
use super::unread::Unread;

/// The result of a step, or the reason it failed.
pub(super) type Result<T> = std::result::Result<T, Unread>;

/// A position among tokens.
pub(super) struct Cursor<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(tokens: &'a [Token]) -> Self {
        Cursor { tokens, at: 0 }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub(super) fn place(&self) -> usize {
        self.at
    }

    pub(super) fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    pub(super) fn next(&mut self) -> Result<&'a Token> {
        let token = self.peek().ok_or_else(|| self.unread("the header ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    pub(super) fn is_sign(&self, sign: &str) -> bool {
        self.peek().is_some_and(|token| token.is_sign(sign))
    }

    pub(super) fn next_is_sign(&mut self, sign: &str) -> bool {
        let is = self.is_sign(sign);
        self.at += usize::from(is);
        is
    }

    pub(super) fn next_is_name(&mut self, name: &str) -> bool {
        let is = self.peek().is_some_and(|token| token.is_name(name));
        self.at += usize::from(is);
        is
    }

    pub(super) fn expect(&mut self, sign: &str) -> Result<()> {
        if self.next_is_sign(sign) {
            Ok(())
        } else {
            Err(self.unread(format!("missing `{sign}` before {}", self.seen())))
        }
    }

    /// Takes the word at this place, if any, and its line.
    pub(super) fn word(&mut self) -> Option<(Rc<str>, u32)> {
        let token = self.peek()?;
        let word = (Rc::clone(token.name()?), token.line);
        self.at += 1;
        Some(word)
    }

    /// Takes a word, which is required here.
    pub(super) fn name_of(&mut self, what: &str) -> Result<(Rc<str>, u32)> {
        self.word().ok_or_else(|| self.unread(format!("missing name of {what} before {}", self.seen())))
    }

    /// Returns the token at this place, for messages.
    pub(super) fn seen(&self) -> String {
        self.peek().map_or_else(|| "the end".to_owned(), ToString::to_string)
    }

    /// Returns the error for an unreadable part at this place.
    pub(super) fn unread(&self, why: impl Into<String>) -> Unread {
        Unread::new(self.line(), why)
    }

    /// Returns the line of this place.
    pub(super) fn line(&self) -> u32 {
        self.peek().or(self.tokens.last()).map_or(1, |token| token.line)
    }

    /// Moves from an opening bracket past the closing one.
    pub(super) fn bracketed(&mut self) -> Result<()> {
        let mut depth = 0_usize;
        loop {
            match self.next()?.kind {
                Kind::Sign("{" | "(" | "[") => depth += 1,
                Kind::Sign("}" | ")" | "]") => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Takes the tokens before one of these signs, or before a `;`, outside of brackets.
    pub(super) fn before(&mut self, ends: &[&str]) -> &'a [Token] {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(token) = self.peek() {
            match token.kind {
                Kind::Sign(";") => break,
                Kind::Sign(sign) if depth == 0 && ends.contains(&sign) => break,
                Kind::Sign("(" | "[" | "{") => depth += 1,
                Kind::Sign(")" | "]" | "}") => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
        }
        &self.tokens[start..self.at]
    }

    /// Skips the unreadable declaration that begins at `start`.
    pub(super) fn pass_over(&mut self, start: usize) {
        let mut depth = 0_usize;
        let mut had_body = false;
        self.at = start;
        while let Some(token) = self.peek() {
            // A function's body is not followed by `;`.
            let begins = ["struct", "union", "enum"].into_iter().any(|keyword| token.is_name(keyword));
            if depth == 0 && had_body && begins {
                return;
            }
            self.at += 1;
            match token.kind {
                Kind::Sign("{" | "(" | "[") => depth += 1,
                Kind::Sign(sign @ ("}" | ")" | "]")) => {
                    depth = depth.saturating_sub(1);
                    had_body |= sign == "}" && depth == 0;
                }
                Kind::Sign(";") if depth == 0 => return,
                _ => {}
            }
        }
    }
}
