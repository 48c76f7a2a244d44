//! Known failures: a list in TOML of cases that are expected to fail, each with its reason.
//!
//! ```toml
//! [[failure]]
//! cases = "v2/precopy/temporary-end"
//! reason = "the driver returns 0 at the temporary end, as mtty, qat and hisi_acc do"
//! link = "https://example.org/issue/1"
//! expires = 2027-06-30
//! ```
//!
//! A case that fails and matches is reported as `xfail`, one that passes and matches as `xpass`, a failure: the entry is out of
//! date. After the day in `expires` an entry no longer applies. No entry covers what a witness sees, such as a new warning in the
//! kernel's log.

use std::fmt;

use chrono::Datelike;
use serde::Deserialize;

use crate::pattern::Pattern;
use crate::verdict::Verdict;

/// A list of known failures.
#[derive(Clone, Debug, Default)]
pub struct KnownFailures {
    entries: Vec<KnownFailure>,
}

/// One entry of the list.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KnownFailure {
    /// The cases.
    pub cases: Pattern,
    /// The reason for the failure.
    pub reason: String,
    /// A link to the report of the failure.
    pub link: Option<String>,
    /// The last day on which the entry applies.
    pub expires: Option<Date>,
}

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Date {
    /// The year.
    pub year: u16,
    /// The month, from 1 on.
    pub month: u8,
    /// The day of the month, from 1 on.
    pub day: u8,
}

impl Date {
    /// Returns the day.
    pub const fn new(year: u16, month: u8, day: u8) -> Date {
        Date { year, month, day }
    }

    /// Returns the day, in UTC.
    pub(crate) fn today() -> Date {
        let today = chrono::Utc::now().date_naive();
        let small = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
        Date::new(u16::try_from(today.year()).unwrap_or(u16::MAX), small(today.month()), small(today.day()))
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// A list that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KnownFailuresError {
    /// It is not TOML, or lacks a field; the text says where.
    #[error("{0}")]
    Toml(String),
    /// `cases` of an entry is not a pattern.
    #[error("entry {number}: {error}")]
    Pattern {
        /// The number of the entry, from 1 on.
        number: usize,
        /// The defect.
        error: crate::pattern::PatternError,
    },
    /// `cases` of an entry matches no case of the suite.
    #[error("entry {number}: no case matches '{pattern}'")]
    NoCase {
        /// The number of the entry, from 1 on.
        number: usize,
        /// The pattern.
        pattern: Pattern,
    },
    /// `expires` of an entry is not a date.
    #[error("entry {number}: invalid value for expires: expected a date such as 2027-06-30")]
    Date {
        /// The number of the entry, from 1 on.
        number: usize,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    failure: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    cases: String,
    reason: String,
    link: Option<String>,
    expires: Option<toml::value::Datetime>,
}

impl KnownFailures {
    /// Parses a list, whose patterns must each match one of `ids` at least.
    pub fn parse<'a>(
        text: &str,
        ids: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<KnownFailures, KnownFailuresError> {
        let file: File = toml::from_str(text).map_err(|error| KnownFailuresError::Toml(error.to_string()))?;
        let entries = file.failure.into_iter().zip(1..).map(|(entry, number)| {
            let cases: Pattern =
                entry.cases.parse().map_err(|error| KnownFailuresError::Pattern { number, error })?;
            if !ids.clone().any(|id| cases.matches(id)) {
                return Err(KnownFailuresError::NoCase { number, pattern: cases });
            }
            let expires = match entry.expires {
                None => None,
                Some(datetime) => {
                    let date = datetime.date.ok_or(KnownFailuresError::Date { number })?;
                    Some(Date::new(date.year, date.month, date.day))
                }
            };
            Ok(KnownFailure { cases, reason: entry.reason, link: entry.link, expires })
        });
        Ok(KnownFailures { entries: entries.collect::<Result<_, _>>()? })
    }

    /// Returns the entry for a case on this day, if one applies.
    pub fn find(&self, id: &str, today: Date) -> Option<&KnownFailure> {
        self.entries
            .iter()
            .find(|entry| entry.cases.matches(id) && entry.expires.is_none_or(|last| today <= last))
    }

    /// Returns the verdict on a case with this entry in mind, and the entry where it matters.
    pub(crate) fn judge(&self, id: &str, verdict: Verdict, today: Date) -> (Verdict, Option<String>) {
        match (verdict, self.find(id, today)) {
            (Verdict::Fail, Some(entry)) => (Verdict::Xfail, Some(entry.to_string())),
            (Verdict::Pass, Some(entry)) => (Verdict::Xpass, Some(entry.to_string())),
            (verdict, _) => (verdict, None),
        }
    }

    /// Returns the entries that no longer apply on this day.
    pub fn expired(&self, today: Date) -> impl Iterator<Item = &KnownFailure> {
        self.entries.iter().filter(move |entry| entry.expires.is_some_and(|last| today > last))
    }
}

impl fmt::Display for KnownFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        self.link.iter().try_for_each(|link| write!(f, " ({link})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 2] = ["v2/reset/from-error", "v2/precopy/temporary-end"];

    fn parse(text: &str) -> Result<KnownFailures, KnownFailuresError> {
        KnownFailures::parse(text, IDS.into_iter())
    }

    #[test]
    fn an_entry_applies_until_it_expires() {
        let list = parse(
            "[[failure]]\ncases = \"v2/precopy/*\"\nreason = \"returns 0\"\nlink = \"l\"\nexpires = 2027-06-30\n",
        )
        .unwrap();
        let final_day = Date::new(2027, 6, 30);
        let entry = list.find("v2/precopy/temporary-end", final_day).unwrap();
        assert_eq!(entry.to_string(), "returns 0 (l)");
        assert!(list.find("v2/reset/from-error", final_day).is_none());
        let later = Date::new(2027, 7, 1);
        assert!(list.find("v2/precopy/temporary-end", later).is_none());
        assert_eq!(list.expired(later).count(), 1);
    }

    #[test]
    fn a_list_with_a_mistake_is_refused_with_the_entry() {
        let cases = [
            ("[[failure]]\ncases = \"v1/*\"\nreason = \"\"\n", "entry 1: no case matches 'v1/*'"),
            (
                "[[failure]]\ncases = \"*\"\nreason = \"\"\nexpires = 12:00:00\n",
                "entry 1: invalid value for expires: expected a date such as 2027-06-30",
            ),
        ];
        for (text, error) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), error);
        }
        for text in [
            "[[failure]]\ncases = \"*\"\n",
            "[[failures]]\n",
            "failure = 1\n",
            "[[failure]]\ncases = \"***\"\nreason=\"\"\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
