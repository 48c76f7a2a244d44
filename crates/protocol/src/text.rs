//! Text from a peer, made safe to show in a log or on a terminal.

/// Returns a peer's text in a form that is safe to show: at most `max_chars` characters, with a space for each
/// character that controls a terminal, ends a line or changes the direction of the text after it.
///
/// ```
/// use whimbrel_protocol::text::printable;
///
/// assert_eq!(printable("no\u{1b}[2Jspace\n", 100), "no [2Jspace ");
/// assert_eq!(printable("a longer text", 8), "a lon...");
/// ```
pub fn printable(text: &str, max_chars: usize) -> String {
    const CUT: &str = "...";
    let is_cut = text.chars().nth(max_chars).is_some();
    let kept = if is_cut { max_chars.saturating_sub(CUT.len()) } else { max_chars };
    let mut shown: String = text.chars().take(kept).map(|it| if steers(it) { ' ' } else { it }).collect();
    if is_cut {
        shown.push_str(CUT);
    }
    shown
}

/// Returns whether this is a control character, a line or paragraph separator, or a mark that reorders text.
fn steers(it: char) -> bool {
    it.is_control()
        || matches!(
            it,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_steers_a_terminal() {
        for it in
            ['\n', '\r', '\0', '\u{7}', '\u{1b}', '\u{7f}', '\u{9b}', '\u{202e}', '\u{2067}', '\u{2028}']
        {
            assert_eq!(printable(&format!("a{it}b"), 10), "a b", "{it:?}");
        }
        assert_eq!(printable("ä – 日本", 10), "ä – 日本");
    }

    #[test]
    fn a_text_has_an_end() {
        let long = "\u{e4}".repeat(1 << 20);
        assert_eq!(printable(&long, 300).chars().count(), 300);
        assert_eq!(printable("abc", 3), "abc");
        assert_eq!(printable(&printable(&long, 300), 300), printable(&long, 300), "cut once");
    }
}
