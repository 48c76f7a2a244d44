//! From text to tokens: comments fall away, continued lines are joined, and every token keeps its line. What
//! is no token of C becomes a [`Kind::Stray`], so that text nobody reads (in a branch not taken, behind
//! `#error`) may be anything.

use std::rc::Rc;

/// The smallest piece of C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Counted from 1.
    pub(super) line: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A word: a name or a keyword.
    Name(Rc<str>),
    /// A number as it is written, such as `0xfUL`.
    Number(Rc<str>),
    /// What is between single quotes.
    Character(Rc<str>),
    /// What is between double quotes.
    Text(Rc<str>),
    /// An operator or a bracket.
    Sign(&'static str),
    Stray(char),
}

impl Token {
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
}

/// As in a message.
impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Name(text) | Kind::Number(text) => write!(f, "`{text}`"),
            Kind::Character(text) => write!(f, "`'{text}'`"),
            Kind::Text(_) => f.write_str("a string"),
            Kind::Sign(sign) => write!(f, "`{sign}`"),
            Kind::Stray(stray) => write!(f, "{stray:?}"),
        }
    }
}

/// A line as C sees it: continued lines are one.
#[derive(Debug)]
pub(super) struct Line {
    /// Where it begins, counted from 1.
    pub(super) number: u32,
    /// It begins with what is no space.
    pub(super) text: String,
}

impl Line {
    pub(super) fn is_directive(&self) -> bool {
        self.text.starts_with('#')
    }

    pub(super) fn tokens(&self) -> Vec<Token> {
        tokens(&self.text, self.number)
    }
}

/// The lines of a header without comments, and the line of a comment that never ends.
pub(super) fn lines(text: &str) -> (Vec<Line>, Option<u32>) {
    let mut lines = Vec::new();
    let mut number = 1;
    let mut line = Line { number, text: String::new() };
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\n', _) => {
                number += 1;
                lines.push(std::mem::replace(&mut line, Line { number, text: String::new() }));
            }
            ('\\', Some('\r' | '\n')) => {
                if characters.next() == Some('\r') {
                    characters.next_if_eq(&'\n');
                }
                number += 1;
            }
            ('/', Some('/')) => while characters.next_if(|next| *next != '\n').is_some() {},
            ('/', Some('*')) => {
                let began = number;
                characters.next();
                let mut last = ' ';
                loop {
                    match characters.next() {
                        None => return (lines, Some(began)),
                        Some('/') if last == '*' => break,
                        Some('\n') => {
                            last = '\n';
                            number += 1;
                            // A directive goes on behind the comment; code may as well begin anew, on its
                            // line.
                            if !line.is_directive() {
                                lines
                                    .push(std::mem::replace(&mut line, Line { number, text: String::new() }));
                            }
                        }
                        Some(other) => last = other,
                    }
                }
                if !line.text.is_empty() {
                    line.text.push(' ');
                }
            }
            (quote @ ('"' | '\''), _) => {
                line.text.push(quote);
                let mut escaped = false;
                while let Some(inner) = characters.next_if(|next| *next != '\n') {
                    line.text.push(inner);
                    if inner == quote && !escaped {
                        break;
                    }
                    escaped = inner == '\\' && !escaped;
                }
            }
            _ if line.text.is_empty() && character.is_whitespace() => {}
            _ => line.text.push(character),
        }
    }
    lines.push(line);
    (lines, None)
}

/// Longer ones first.
const SIGNS: [&str; 44] = [
    "<<=", ">>=", "...", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "##", "->", "++", "--", "+=", "-=",
    "*=", "/=", "|=", "&=", "^=", "(", ")", "[", "]", "{", "}", ";", ",", ":", "?", "=", "+", "-", "*", "/",
    "%", "<", ">", "&", "|", "^", "~",
];

/// The tokens of a text without comments.
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
                // Text that nobody reads may have apostrophes: the rest of the line is one.
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

fn leading(text: &str, belongs: impl Fn(char) -> bool) -> &str {
    text.find(|c| !belongs(c)).map_or(text, |end| &text[..end])
}

/// What is between the quote the text begins with and the next.
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

    /// Each line that has something on it, with its number.
    fn seen(text: &str) -> Vec<(u32, String)> {
        let (lines, unended) = lines(text);
        assert_eq!(unended, None);
        let shown = |line: &Line| line.text.split_whitespace().collect::<Vec<_>>().join(" ");
        lines.iter().map(|line| (line.number, shown(line))).filter(|(_, text)| !text.is_empty()).collect()
    }

    #[test]
    fn every_line_keeps_its_number_whatever_comments_and_continuations_stand_before_it() {
        let cases: [(&str, &[(u32, &str)]); 8] = [
            ("a\n\nb", &[(1, "a"), (3, "b")]),
            ("a /* x\ny */ b\nc", &[(1, "a"), (2, "b"), (3, "c")]),
            ("#define A 1 /* x\ny */ + 2\nc", &[(1, "#define A 1 + 2"), (3, "c")]),
            ("#define A \\\n  1\nc", &[(1, "#define A 1"), (3, "c")]),
            ("#define A \\\r\n  1\r\nc", &[(1, "#define A 1"), (3, "c")]),
            ("a // x /* y\nb", &[(1, "a"), (2, "b")]),
            ("\"/* no */\" '/*' /**/ b", &[(1, "\"/* no */\" '/*' b")]),
            ("\"\\\"//\" b", &[(1, "\"\\\"//\" b")]),
        ];
        for (text, expected) in cases {
            let expected: Vec<(u32, String)> =
                expected.iter().map(|(line, text)| (*line, (*text).to_owned())).collect();
            assert_eq!(seen(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_comment_that_never_ends_is_told_with_its_line() {
        assert_eq!(lines("a\n/* b\nc").1, Some(2));
    }

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
