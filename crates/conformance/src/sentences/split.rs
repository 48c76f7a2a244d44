//! Splits the text of a comment into sentences, and tells which of them require something.

/// Words that make a sentence a requirement.
const WORDS: &[&str] = &["must", "should", "only", "cannot", "invalid", "error", "errors", "mandatory"];

/// Pairs of words that do.
const PAIRS: &[[&str; 2]] = &[["may", "not"], ["can", "not"], ["not", "allowed"], ["not", "permitted"]];

/// Abbreviations that end with a full stop, and never end a sentence.
const ABBREVIATIONS: &[&str] = &["ex.", "e.g.", "eg.", "i.e.", "ie.", "vs.", "cf."];

/// Splits lines with their numbers into sentences with the numbers of their first lines. White space becomes single
/// spaces. An item of a list, an arc and a paragraph's rest without a full stop are sentences of their own.
pub(super) fn sentences(lines: &[(u32, String)]) -> Vec<(u32, String)> {
    let mut sentences = Sentences::default();
    // The indentation of a line with a colon at its end, and of the last item.
    let (mut colon_at, mut item_at) = (None, None);
    for (number, line) in lines {
        let text = line.trim();
        let indentation = line.len() - line.trim_start().len();
        let begins_list = colon_at.is_some_and(|before| indentation > before);
        let ends_item = item_at.is_some_and(|item| indentation <= item);
        if text.is_empty() || is_arc(text) || is_named_item(text) || begins_list || ends_item {
            sentences.end();
            item_at = None;
        }
        if is_named_item(text) {
            item_at = Some(indentation);
        }
        let text = match text.strip_prefix("- ").or_else(|| text.strip_prefix("* ")) {
            Some(item) => {
                sentences.end();
                item_at = Some(indentation);
                item
            }
            None => text,
        };
        text.split_whitespace().for_each(|word| sentences.add(*number, word));
        if is_arc(text) {
            sentences.end();
        }
        colon_at = text.ends_with(':').then_some(indentation);
    }
    sentences.end();
    sentences.found
}

/// Returns whether a sentence requires something.
pub(super) fn is_normative(sentence: &str) -> bool {
    let words: Vec<&str> =
        sentence.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    // A name in capitals is a state's, not a word.
    let is_name = |word: &str| word.len() > 1 && !word.chars().any(char::is_lowercase);
    let is = |word: &str, wanted: &str| !is_name(word) && word.eq_ignore_ascii_case(wanted);
    words.iter().any(|word| WORDS.iter().any(|wanted| is(word, wanted)))
        || words
            .windows(2)
            .any(|pair| PAIRS.iter().any(|[first, second]| is(pair[0], first) && is(pair[1], second)))
}

/// Makes white space single spaces, as in [`sentences`].
pub(super) fn normalised(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[derive(Default)]
struct Sentences {
    found: Vec<(u32, String)>,
    current: Option<(u32, String)>,
    /// Set behind an abbreviation that may also end a sentence.
    may_end: bool,
}

impl Sentences {
    fn add(&mut self, line: u32, word: &str) {
        if std::mem::take(&mut self.may_end) && word.starts_with(char::is_uppercase) {
            self.end();
        }
        match &mut self.current {
            Some((_, text)) => {
                text.push(' ');
                text.push_str(word);
            }
            None => self.current = Some((line, word.to_string())),
        }
        let bare = word.trim_start_matches('(').to_lowercase();
        if bare == "etc." {
            self.may_end = true;
        } else if ends_sentence(word) && !ABBREVIATIONS.contains(&bare.as_str()) {
            self.end();
        }
    }

    fn end(&mut self) {
        self.may_end = false;
        self.found.extend(self.current.take());
    }
}

fn ends_sentence(word: &str) -> bool {
    let bare = word.trim_end_matches([')', '"', '\'']);
    bare.ends_with(['.', '!', '?']) && bare.contains(char::is_alphanumeric)
}

/// Returns whether a line names an arc, as `STOP -> RESUMING`.
fn is_arc(text: &str) -> bool {
    matches!(text.split_once(" -> "), Some((from, to)) if is_name(from) && is_name(to))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Returns whether a line begins an item as `RUNNING - The device ..`.
fn is_named_item(text: &str) -> bool {
    matches!(text.split_once(" - "), Some((name, _)) if is_name(name) && !name.contains(char::is_lowercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        let lines: Vec<(u32, String)> = (1..).zip(text.lines().map(str::to_string)).collect();
        sentences(&lines).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn full_stops_end_sentences_and_abbreviations_do_not() {
        assert_eq!(
            split(
                "It must not fail\n(ex. host system faults). dirty_bytes is reset.  See x.flags, etc. Then\nmore"
            ),
            [
                "It must not fail (ex. host system faults).",
                "dirty_bytes is reset.",
                "See x.flags, etc.",
                "Then more"
            ]
        );
    }

    #[test]
    fn lists_arcs_and_paragraphs_end_sentences() {
        let text = "There are states:\n RUNNING - It runs\n STOP - It does\n   not\n\nA -> B\nany -> ERROR\n  In B it\n  \
                    stops.\nRules:\n  - The first,\n    really.\n  - The second\nIt is given by:\n  bitmap[a - b]";
        assert_eq!(
            split(text),
            [
                "There are states:",
                "RUNNING - It runs",
                "STOP - It does not",
                "A -> B",
                "any -> ERROR",
                "In B it stops.",
                "Rules:",
                "The first, really.",
                "The second",
                "It is given by:",
                "bitmap[a - b]"
            ]
        );
    }

    #[test]
    fn a_sentence_has_the_number_of_its_first_line() {
        let lines = [(7, "One. Two".to_string()), (8, "goes on. Three.".to_string())];
        let numbers: Vec<u32> = sentences(&lines).into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [7, 7, 8]);
    }

    #[test]
    fn whole_words_make_a_requirement() {
        for text in
            ["It must be.", "Only so", "ENOMSG may not be returned", "is not allowed", "an error.", "-errors"]
        {
            assert!(is_normative(text), "{text}");
        }
        for text in ["mustard", "ERROR is a state", "it may be", "not, as allowed by x", ""] {
            assert!(!is_normative(text), "{text}");
        }
    }
}
