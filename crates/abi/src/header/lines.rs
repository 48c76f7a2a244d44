//! Splits text into lines as C sees them: comments are removed, continued lines are joined, and every line keeps its
//! number. `tokens` reads their contents.

use super::tokens::{Token, tokens};

/// A line as C sees it: continued lines are joined.
#[derive(Debug)]
pub(super) struct Line {
    /// The number of the line where it begins, counted from 1.
    pub(super) number: u32,
    /// Its text, from the first character that is not a space.
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

/// Splits a header into lines without comments. Also returns the line of an unterminated comment, if any.
pub(super) fn lines(text: &str) -> (Vec<Line>, Option<u32>) {
    let mut lines = Vec::new();
    let mut number = 1;
    let mut line = Line { number, text: String::new() };
    let text = text.replace("\r\n", "\n");
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\n', _) => {
                number += 1;
                lines.push(std::mem::replace(&mut line, Line { number, text: String::new() }));
            }
            ('\\', Some('\n')) => {
                characters.next();
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
                            // A directive goes on behind the comment; code may as well start over, on its
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns each line that has something on it, with its number.
    fn seen(text: &str) -> Vec<(u32, String)> {
        let (lines, unended) = lines(text);
        assert_eq!(unended, None);
        let shown = |line: &Line| line.text.split_whitespace().collect::<Vec<_>>().join(" ");
        lines.iter().map(|line| (line.number, shown(line))).filter(|(_, text)| !text.is_empty()).collect()
    }

    #[test]
    fn every_line_keeps_its_number_whatever_comments_and_continuations_stand_before_it() {
        let cases: [(&str, &[(u32, &str)]); 9] = [
            ("a\n\nb", &[(1, "a"), (3, "b")]),
            ("a /* x\ny */ b\nc", &[(1, "a"), (2, "b"), (3, "c")]),
            ("#define A 1 /* x\ny */ + 2\nc", &[(1, "#define A 1 + 2"), (3, "c")]),
            ("#define A \\\n  1\nc", &[(1, "#define A 1"), (3, "c")]),
            ("#define A \\\r\n  1\r\nc", &[(1, "#define A 1"), (3, "c")]),
            ("#define A \\\r  1\nc", &[(1, "#define A \\ 1"), (2, "c")]),
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
}
