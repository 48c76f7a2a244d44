//! Known issues of kernels: requests that hang in them, so that a suite does not make them unasked.
//!
//! From Linux 6.2 on, STOP_COPY -> PRE_COPY and STOP_COPY -> PRE_COPY_P2P make `vfio_mig_get_next_state()` loop forever
//! on a device with PRE_COPY, with the driver's lock held. Commit a26b499b757c of June 2026 fixes it.

use whimbrel_protocol::{MigrationFlags, State};

use crate::case::{Case, Danger};

/// A known issue.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct KnownIssue {
    /// The case that meets it.
    pub case: &'static str,
    /// A description of the effect.
    pub what: &'static str,
    /// The danger of the case on a kernel with the issue.
    pub danger: Danger,
    /// Returns whether a kernel of this release may have the issue.
    applies: fn(release: &str) -> bool,
}

/// The known issues.
pub const KNOWN_ISSUES: &[KnownIssue] = &[KnownIssue {
    case: "v2/arcs/blocked",
    what: "STOP_COPY -> PRE_COPY loops forever in kernels without commit a26b499b757c",
    danger: Danger::Hangs,
    applies: |release| !has_blocked_arc_fix(release),
}];

impl KnownIssue {
    /// Returns the issue that a case meets on a kernel of this release, if any.
    pub fn find(case: &str, release: &str) -> Option<&'static KnownIssue> {
        KNOWN_ISSUES.iter().find(|issue| issue.case == case && (issue.applies)(release))
    }
}

/// Returns the danger of a case on the kernel of this release, if the device is a kernel's.
pub(crate) fn danger(case: &Case, kernel: Option<&str>) -> Danger {
    let issue = kernel.and_then(|release| KnownIssue::find(case.id(), release));
    issue.map_or(case.danger(), |issue| issue.danger)
}

/// Returns whether a request hangs in a kernel without commit a26b499b757c, on a device with these features.
pub fn blocked_arc_hangs(flags: MigrationFlags, from: State, to: State) -> bool {
    flags.contains(MigrationFlags::PRE_COPY)
        && from == State::StopCopy
        && matches!(to, State::PreCopy | State::PreCopyP2p)
}

/// Returns whether a kernel of this release is known to have commit a26b499b757c.
///
/// Mainline has it since 7.2. Of the stable series, only 6.12.117 is verified in source. A release
/// candidate may be older than the fix, however a distribution writes it.
pub fn has_blocked_arc_fix(release: &str) -> bool {
    let (version, rest) =
        release.split_at(release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len()));
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let Some(series) = numbers.next().zip(numbers.next()) else { return false };
    let patch = numbers.next().unwrap_or(0);
    match series {
        (6, 12) => patch >= 117,
        (7, 2) => !rest.contains("rc"),
        series => series > (7, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernels_known_to_have_the_fix_are_asked() {
        for release in ["7.2.0", "7.2", "7.3.4-1-amd64", "8.0.0-rc1", "6.12.117+deb12-amd64", "6.12.120"] {
            assert!(has_blocked_arc_fix(release), "{release}");
            assert!(KnownIssue::find("v2/arcs/blocked", release).is_none(), "{release}");
        }
        for release in ["6.2.0", "6.12.116", "6.12", "6.18.40", "7.1.9", "7.2.0-rc1", "", "next", "6", "99"] {
            assert!(!has_blocked_arc_fix(release), "{release}");
            assert!(KnownIssue::find("v2/arcs/blocked", release).is_some(), "{release}");
        }
        for release in ["7.2.0-0.rc3.20260701git.fc45.x86_64", "7.2.0-070200rc1-generic"] {
            assert!(!has_blocked_arc_fix(release), "{release}");
        }
    }
}
