//! Compares the sentences of a header with the suite's cases.

use serde::Serialize;

use super::excused::{self, EXCUSED};
use super::part::{Header, Sentence};
use super::split::normalised;
use crate::case::{Case, HEADER, Level};
use crate::suite;
use crate::user::{self, UserCase};

/// The sentences that require something, of the header that the suite was written for: one a line.
const WRITTEN_FOR: &str = include_str!("linux-7.3.txt");

/// Maximum size of a header in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// The likeness of an old and a new wording of a sentence, at least: 1 is equal.
const ALIKE: f64 = 0.6;

/// The reason a header cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SentencesError {
    /// The text is longer than 1 MiB.
    #[error("the header is larger than 1 MiB")]
    TooLarge,
    /// The text has no sentence about migration.
    #[error(
        "the header says nothing of migration v2: give the path of a kernel's include/uapi/linux/vfio.h, Linux 5.18 or \
         later"
    )]
    NoMigration,
}

/// The sentences of a header's migration part that require something, by how the suite treats them.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Coverage {
    /// The header that the suite was written for.
    pub suite_header: &'static str,
    /// Sentences with cases.
    pub covered: Vec<Covered>,
    /// Sentences without a case, with the reasons.
    pub excused: Vec<Excuse>,
    /// Sentences with neither.
    pub uncovered: Vec<Sentence>,
    /// Sentences that the suite was written for and this header lacks.
    pub gone: Vec<Gone>,
    /// Sentences of this header that the suite was not written for.
    pub new: Vec<Sentence>,
}

/// A sentence with its cases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Covered {
    /// The sentence.
    #[serde(flatten)]
    pub sentence: Sentence,
    /// The ids of the cases.
    pub cases: Vec<&'static str>,
}

/// A sentence that no case tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Excuse {
    /// The sentence.
    #[serde(flatten)]
    pub sentence: Sentence,
    /// Set if only the device's user can break it.
    pub addresses_user: bool,
    /// The reason.
    pub reason: &'static str,
    /// The ids of the cases for users.
    pub cases: Vec<&'static str>,
}

/// A sentence that a header lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Gone {
    /// The sentence.
    pub text: String,
    /// The ids of its cases, also of those for users.
    pub cases: Vec<&'static str>,
    /// The new sentence that is most like it.
    pub now: Option<String>,
}

impl Coverage {
    /// Returns whether each sentence has a case or a reason, and none has changed.
    pub fn is_complete(&self) -> bool {
        self.uncovered.is_empty() && self.gone.is_empty() && self.new.is_empty()
    }
}

/// Compares a header's text, of any version, with the suite. The text may be anything.
pub fn coverage(header: impl AsRef<[u8]>) -> Result<Coverage, SentencesError> {
    let bytes = header.as_ref();
    if bytes.len() > MAX_BYTES {
        return Err(SentencesError::TooLarge);
    }
    // Comments may contain people's names in any encoding.
    let header = Header::read(&String::from_utf8_lossy(bytes));
    if header.normative.is_empty() {
        return Err(SentencesError::NoMigration);
    }
    let mut coverage = Coverage {
        suite_header: HEADER,
        covered: Vec::new(),
        excused: Vec::new(),
        uncovered: Vec::new(),
        gone: Vec::new(),
        new: header.normative.iter().filter(|own| !is_written_for(&own.text)).cloned().collect(),
    };
    coverage.gone = gone(&header, &coverage.new);
    for sentence in header.normative {
        let cases = cases_of(&sentence.text);
        if !cases.is_empty() {
            coverage.covered.push(Covered { sentence, cases });
        } else if let Some(excuse) = EXCUSED.iter().find(|excuse| is_about(excuse.sentence, &sentence.text)) {
            let excused::Excused { addresses_user, reason, .. } = *excuse;
            let cases = user_cases_of(&sentence.text);
            coverage.excused.push(Excuse { sentence, addresses_user, reason, cases });
        } else {
            coverage.uncovered.push(sentence);
        }
    }
    Ok(coverage)
}

/// Returns the sentences that the suite was written for and a header lacks.
fn gone(header: &Header, new: &[Sentence]) -> Vec<Gone> {
    let of_devices = suite::cases().filter(|case| quotes(case.level())).map(Case::sentence);
    let of_users = user::cases().filter(|case| quotes(case.level())).map(UserCase::sentence);
    let quoted = of_devices.chain(of_users);
    let mut texts: Vec<String> = Vec::new();
    for text in WRITTEN_FOR.lines().chain(quoted).map(normalised) {
        if !header.says(&text) && !texts.iter().any(|known| is_about(known, &text)) {
            texts.push(text);
        }
    }
    let likeness = |text: &str, other: &Sentence| strsim::sorensen_dice(text, &other.text);
    let nearest = |text: &str| {
        let best = new.iter().max_by(|one, other| likeness(text, one).total_cmp(&likeness(text, other)))?;
        (likeness(text, best) >= ALIKE).then(|| best.text.clone())
    };
    let all_cases = |text: &str| [cases_of(text), user_cases_of(text)].concat();
    texts.into_iter().map(|text| Gone { cases: all_cases(&text), now: nearest(&text), text }).collect()
}

fn is_written_for(sentence: &str) -> bool {
    WRITTEN_FOR.lines().any(|own| own == sentence)
}

/// Returns whether the sentences of a level are the header's.
fn quotes(level: Level) -> bool {
    matches!(level, Level::Must | Level::Should)
}

fn cases_of(sentence: &str) -> Vec<&'static str> {
    let is_of = |case: &&Case| quotes(case.level()) && is_about(case.sentence(), sentence);
    suite::cases().filter(is_of).map(Case::id).collect()
}

fn user_cases_of(sentence: &str) -> Vec<&'static str> {
    let is_of = |case: &&UserCase| quotes(case.level()) && is_about(case.sentence(), sentence);
    user::cases().filter(is_of).map(UserCase::id).collect()
}

/// Returns whether a quotation is of this sentence: all of it, a part, or more.
fn is_about(quotation: &str, sentence: &str) -> bool {
    let bare = |text: &str| normalised(text).trim_end_matches(['.', ':', ',']).to_string();
    let (quotation, sentence) = (bare(quotation), bare(sentence));
    sentence.contains(&quotation) || quotation.contains(&sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with these sentences.
    fn header(sentences: &[&str]) -> String {
        let lines: Vec<String> = sentences.iter().map(|text| format!(" * {text}\n *\n")).collect();
        format!("/*\n{} */\nenum vfio_device_mig_state {{ A }};\n", lines.concat())
    }

    fn written_for() -> Vec<&'static str> {
        WRITTEN_FOR.lines().collect()
    }

    #[test]
    fn quotations_are_in_the_header_that_the_suite_was_written_for() {
        let coverage = coverage(header(&written_for())).expect("a header");
        assert_eq!(coverage.new, []);
        let mut found: Vec<String> = coverage.covered.iter().map(|own| own.sentence.text.clone()).collect();
        found.extend(coverage.excused.iter().map(|own| own.sentence.text.clone()));
        found.extend(coverage.uncovered.iter().map(|own| own.text.clone()));
        assert_eq!(found.len(), written_for().len());
    }

    #[test]
    fn each_sentence_has_a_case_or_a_reason() {
        let coverage = coverage(header(&written_for())).expect("a header");
        let uncovered: Vec<&str> = coverage.uncovered.iter().map(|own| own.text.as_str()).collect();
        assert_eq!(uncovered, [""; 0]);
    }

    #[test]
    fn no_sentence_with_a_case_has_a_reason_to_have_none() {
        for excuse in EXCUSED {
            let cases = cases_of(excuse.sentence);
            assert!(cases.is_empty(), "{}: {}", excuse.sentence, cases.join(" "));
        }
    }

    #[test]
    fn a_changed_sentence_is_told_with_its_old_wording_and_its_cases() {
        let old = "The optional states cannot be used with SET_STATE if the device does not support them.";
        let new = "The optional states must not be used with SET_STATE if the device does not support them.";
        let sentences: Vec<&str> =
            written_for().into_iter().map(|text| if text == old { new } else { text }).collect();
        let coverage = coverage(header(&sentences)).expect("a header");
        let gone = coverage.gone.iter().find(|gone| gone.text == old).expect("the old wording");
        assert_eq!(gone.now.as_deref(), Some(new));
        assert!(gone.cases.contains(&"v2/state/optional-states-are-refused"), "{:?}", gone.cases);
        assert!(gone.cases.contains(&"user/state/optional-states"), "{:?}", gone.cases);
        assert_eq!(coverage.new.iter().map(|own| own.text.as_str()).collect::<Vec<_>>(), [new]);
        assert!(coverage.uncovered.iter().any(|own| own.text == new), "no case quotes it");
        assert!(!coverage.is_complete());
    }

    #[test]
    fn a_quotation_may_be_a_part_of_a_sentence_or_several() {
        assert!(is_about("It must stop.", "It must stop."));
        assert!(is_about("It must stop", "If it can, It must stop."));
        assert!(is_about("It must\nstop. It must go.", "It must stop."));
        assert!(!is_about("It must go.", "It must stop."));
    }

    #[test]
    fn other_texts_are_refused() {
        assert_eq!(coverage("int a;").map(|_| ()), Err(SentencesError::NoMigration));
        assert_eq!(coverage(vec![b' '; MAX_BYTES + 1]).map(|_| ()), Err(SentencesError::TooLarge));
        assert_eq!(coverage(b"/* \xff must */\n").map(|_| ()), Err(SentencesError::NoMigration));
    }
}
