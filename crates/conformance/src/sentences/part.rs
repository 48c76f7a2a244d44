//! The part of the header that is about migration, and its sentences.

use serde::Serialize;

use super::comments::{Comment, comments};
use super::split;

/// A sentence of the header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sentence {
    /// The sentence, with single spaces.
    pub text: String,
    /// The line of the header where it begins.
    pub line: u32,
    /// The feature, request or enumeration that it belongs to.
    pub about: String,
}

/// The text of a header as the suite uses it.
pub(super) struct Header {
    /// The sentences of the migration part that require something.
    pub(super) normative: Vec<Sentence>,
    /// All comments, with single spaces, to look for quotations.
    whole: String,
}

impl Header {
    pub(super) fn read(text: &str) -> Header {
        let comments = comments(text);
        let whole = comments.iter().flat_map(|comment| {
            let sentences = split::sentences(&comment.lines).into_iter().map(|(_, text)| text);
            sentences.chain([String::new()])
        });
        let whole = whole.collect::<Vec<_>>().join(" ");
        let normative = comments.iter().filter(|comment| comment.stands_alone).filter_map(|comment| {
            let about = subject(comment)?;
            let sentences = split::sentences(&comment.lines).into_iter();
            Some(sentences.filter(|(_, text)| split::is_normative(text)).map(move |(line, text)| Sentence {
                text,
                line,
                about: about.to_string(),
            }))
        });
        Header { normative: normative.flatten().collect(), whole }
    }

    /// Returns whether the header has these words, in one comment.
    pub(super) fn says(&self, quotation: &str) -> bool {
        self.whole.contains(&split::normalised(quotation))
    }
}

/// Returns the feature, request or enumeration that a comment explains, if it belongs to migration.
fn subject(comment: &Comment) -> Option<&str> {
    let mut requests = comment.names.iter().filter(|name| is_of_migration(name) && is_request(name));
    let first = comment.names.iter().find(|name| is_of_migration(name));
    requests.next_back().or(first).map(String::as_str)
}

fn is_request(name: &str) -> bool {
    name.starts_with("VFIO_DEVICE_FEATURE") || name.starts_with("VFIO_MIG_")
}

/// Returns whether a name belongs to migration, also in a later header.
fn is_of_migration(name: &str) -> bool {
    const NAMES: [&str; 3] = ["VFIO_DEVICE_FEATURE", "vfio_device_feature", "vfio_device_mig_state"];
    const BEGINNINGS: [&str; 4] =
        ["vfio_device_feature_mig", "vfio_device_feature_dma_logging", "vfio_mig_", "vfio_precopy_"];
    let small = name.to_ascii_lowercase();
    NAMES.contains(&name) || BEGINNINGS.iter().any(|beginning| small.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sentences_about_migration_are_taken() {
        let text = "/*\n * It must reset.\n */\n#define VFIO_DEVICE_FEATURE_RESETS 9\n\
                    /*\n * It must move. It may\n * rest.\n */\nstruct vfio_device_feature_mig_x {\n\
                    __u32 a; /* must be 0 */\n};\n#define VFIO_DEVICE_FEATURE_MIG_X 10\n";
        let header = Header::read(text);
        let [sentence] = &header.normative[..] else { panic!("{:?}", header.normative) };
        assert_eq!(
            (sentence.text.as_str(), sentence.line, sentence.about.as_str()),
            ("It must move.", 6, "VFIO_DEVICE_FEATURE_MIG_X")
        );
        assert!(header.says("It may rest."));
        assert!(header.says("It  must\nreset."), "also outside of migration");
        assert!(!header.says("It must reset. It must move."), "two comments");
    }
}
