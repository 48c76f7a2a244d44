//! Patterns of case ids.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A pattern of case ids: `*` stands for any characters, also `/`, and `?` for one.
///
/// ```
/// use whimbrel_conformance::Pattern;
///
/// let pattern: Pattern = "v2/precopy/*".parse()?;
/// assert!(pattern.matches("v2/precopy/temporary-end"));
/// assert!(!pattern.matches("v2/state/error-cannot-be-set"));
/// # Ok::<(), whimbrel_conformance::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(glob::Pattern);

/// A pattern that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern '{pattern}': {why}")]
#[non_exhaustive]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// The defect.
    pub why: String,
}

impl Pattern {
    /// Returns whether the id matches.
    pub fn matches(&self, id: &str) -> bool {
        self.0.matches(id)
    }

    /// Returns the pattern's text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        let refused = |why: String| PatternError { pattern: text.to_string(), why };
        if text.is_empty() {
            return Err(refused("it is empty".to_string()));
        }
        glob::Pattern::new(text).map(Pattern).map_err(|error| refused(error.msg.to_string()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Pattern, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.as_str().to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
