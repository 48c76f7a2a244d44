//! The tokenizer: splits the text of a line into tokens, each with its line. Characters outside of C tokens become
//! [`Kind::Stray`], so that unused text (in a branch not taken, after `#error`) may be anything. `lines` has removed
//! the comments.

use std::rc::Rc;

use super::excerpt::Excerpt;

/// The smallest piece of C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// The line, counted from 1.
    pub(super) line: u32,
}

/// The kind of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A word: a name or a keyword.
    Name(Rc<str>),
    /// A number as written, such as `0xfUL`.
    Number(Rc<str>),
    /// The text between single quotes.
    Character(Rc<str>),
    /// The text between double quotes.
    Text(Rc<str>),
    /// An operator or a bracket.
    Sign(&'static str),
    /// A character that begins no token of C.
    Stray(char),
}

impl Token {
    /// Returns the name or keyword, if the token is one.
    pub(super) fn name(&self) -> Option<&Rc<str>> {
        match &self.kind {
            Kind::Name(name) => Some(name),
            _ => None,
        }
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(&self.kind, Kind::Name(own) if **own == *name)
    }

    pub(super) fn is_sign(&self, sign: &str) -> bool {
        matches!(self.kind, Kind::Sign(own) if own == sign)
    }

    /// Returns the cost of a copy in a budget: more than 1 for a long token, because reading it is work.
    pub(super) fn cost(&self) -> usize {
        match &self.kind {
            Kind::Name(text) | Kind::Number(text) | Kind::Character(text) | Kind::Text(text) => {
                1 + text.len() / 64
            }
            Kind::Sign(_) | Kind::Stray(_) => 1,
        }
    }
}

/// The form for messages.
impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Name(text) | Kind::Number(text) => write!(f, "`{}`", Excerpt(text)),
            Kind::Character(text) => write!(f, "`'{}'`", Excerpt(text)),
            Kind::Text(_) => f.write_str("a string"),
            Kind::Sign(sign) => write!(f, "`{sign}`"),
            Kind::Stray(stray) => write!(f, "{stray:?}"),
        }
    }
}

/// The operators and brackets, longer ones first.
const SIGNS: [&str; 44] = [
    "<<=", ">>=", "...", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "##", "->", "++", "--", "+=", "-=",
    "*=", "/=", "|=", "&=", "^=", "(", ")", "[", "]", "{", "}", ";", ",", ":", "?", "=", "+", "-", "*", "/",
    "%", "<", ">", "&", "|", "^", "~",
];

/// Splits a text without comments into tokens.
pub(super) fn tokens(text: &str, line: u32) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = match first {
            _ if first.is_whitespace() => {
                rest = rest.trim_start();
                continue;
            }
            'a'..='z' | 'A'..='Z' | '_' => {
                let word = leading(rest, |c| c.is_ascii_alphanumeric() || c == '_');
                (Kind::Name(word.into()), word.len())
            }
            '0'..='9' => {
                let number = leading(rest, |c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
                (Kind::Number(number.into()), number.len())
            }
            '"' | '\'' => match quoted(rest, first) {
                Some(inner) if first == '"' => (Kind::Text(inner.into()), inner.len() + 2),
                Some(inner) => (Kind::Character(inner.into()), inner.len() + 2),
                // Unused text may contain apostrophes: the rest of the line is one token.
                None => (Kind::Stray(first), rest.len()),
            },
            '!' if !rest.starts_with("!=") => (Kind::Sign("!"), 1),
            '#' if !rest.starts_with("##") => (Kind::Sign("#"), 1),
            '.' if !rest.starts_with("...") => (Kind::Sign("."), 1),
            _ => match SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
                Some(sign) => (Kind::Sign(sign), sign.len()),
                None => (Kind::Stray(first), first.len_utf8()),
            },
        };
        tokens.push(Token { kind, line });
        rest = rest.get(length..).unwrap_or("");
    }
    tokens
}

/// Returns the longest start of the text whose characters belong.
fn leading(text: &str, belongs: impl Fn(char) -> bool) -> &str {
    text.find(|c| !belongs(c)).map_or(text, |end| &text[..end])
}

/// Returns the text between its first quote and the next.
fn quoted(text: &str, quote: char) -> Option<&str> {
    let inner = text.strip_prefix(quote)?;
    let mut escaped = false;
    for (at, character) in inner.char_indices() {
        if character == quote && !escaped {
            return Some(&inner[..at]);
        }
        escaped = character == '\\' && !escaped;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_as_long_as_they_can_be() {
        let kinds: Vec<Kind> =
            tokens("a1<<=0x1fUL+';'...é\"s\\\"t\"", 1).into_iter().map(|t| t.kind).collect();
        assert_eq!(
            kinds,
            [
                Kind::Name("a1".into()),
                Kind::Sign("<<="),
                Kind::Number("0x1fUL".into()),
                Kind::Sign("+"),
                Kind::Character(";".into()),
                Kind::Sign("..."),
                Kind::Stray('é'),
                Kind::Text("s\\\"t".into()),
            ]
        );
    }
}
