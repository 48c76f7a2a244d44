//! Makes texts of the other side printable.

use whimbrel_protocol::text::printable;

/// Returns a printable and short form of a text that the other side may have filled with anything.
pub(super) fn short(text: impl AsRef<str>) -> String {
    const MAX_CHARS: usize = 300;
    printable(text.as_ref(), MAX_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_the_other_side_does_not_fill_an_error() {
        assert_eq!(short("why"), "why");
        assert!(short("\u{e4}".repeat(1 << 20)).chars().count() < 400);
    }
}
