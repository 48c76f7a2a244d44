//! Excerpts of a header for messages. A header may have names as long as itself, and repeating one in every message
//! would make the messages larger than the header.

use std::fmt;

/// Maximum number of characters shown of a name or number. The kernel's longest name has 53.
const MAX_SHOWN: usize = 80;

/// A piece of text, cut if it is too long to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Excerpt<'a>(pub(super) &'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(MAX_SHOWN) {
            None => f.write_str(self.0),
            Some((end, _)) => write!(f, "{}..", &self.0[..end]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_is_shown_whole_and_a_long_one_is_cut() {
        assert_eq!(Excerpt(&"é".repeat(80)).to_string(), "é".repeat(80));
        assert_eq!(Excerpt(&"é".repeat(81)).to_string(), format!("{}..", "é".repeat(80)));
    }
}
