//! The whole suite.

use crate::case::Case;
use crate::section;

/// Returns all cases, by section.
pub fn cases() -> impl Iterator<Item = &'static Case> + Clone {
    section::ALL.iter().flat_map(|cases| cases.iter())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::known_issues::KNOWN_ISSUES;

    #[test]
    fn ids_are_unique_and_lead_to_a_section() {
        let mut seen = HashSet::new();
        for case in cases() {
            assert!(seen.insert(case.id()), "{} twice", case.id());
            let parts: Vec<&str> = case.id().split('/').collect();
            assert!(parts.len() == 3 && (parts[0] == "v2" || parts[0] == "region"), "{}", case.id());
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '/';
            assert!(case.id().chars().all(is_plain), "{}", case.id());
            assert!(!case.sentence().is_empty(), "{}", case.id());
        }
    }

    #[test]
    fn known_issues_name_cases() {
        for issue in KNOWN_ISSUES {
            assert!(cases().any(|case| case.id() == issue.case), "{}", issue.case);
        }
    }
}
