//! Known issues of kernels and of their drivers: requests that hang in them or damage them, so that a suite does not make
//! them unasked.
//!
//! From Linux 6.2 on, STOP_COPY -> PRE_COPY and STOP_COPY -> PRE_COPY_P2P make `vfio_mig_get_next_state()` loop forever
//! on a device with PRE_COPY, with the driver's lock held. Commit a26b499b757c of June 2026 fixes it.
//!
//! From Linux 6.10 on, two concurrent writers of a data_fd of qat_vfio_pci write past the end of its buffer
//! (CVE-2026-74306). Commit 4ec5e932e636 fixes it, in 6.12.97, 6.18.40, 7.1.5 and 7.2.

use whimbrel_protocol::{MigrationFlags, State};

use crate::case::{Case, Danger};

/// A known issue.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct KnownIssue {
    /// The case that meets it.
    pub case: &'static str,
    /// The driver that has the issue; `None` if all have it.
    pub driver: Option<&'static str>,
    /// A description of the effect.
    pub what: &'static str,
    /// The danger of the case on a kernel with the issue.
    pub danger: Danger,
    /// Returns whether a kernel of this release may have the issue.
    applies: fn(release: &str) -> bool,
}

/// The known issues.
pub const KNOWN_ISSUES: &[KnownIssue] = &[
    KnownIssue {
        case: "v2/arcs/blocked",
        driver: None,
        what: "STOP_COPY -> PRE_COPY loops forever in kernels without commit a26b499b757c",
        danger: Danger::Hangs,
        applies: |release| !has_blocked_arc_fix(release),
    },
    KnownIssue {
        case: "v2/concurrent/writers",
        driver: Some("qat_vfio_pci"),
        what: "concurrent writers overwrite the kernel's memory in qat_vfio_pci without commit 4ec5e932e636 (CVE-2026-74306)",
        danger: Danger::Hangs,
        applies: |release| !has_qat_writers_fix(release),
    },
];

impl KnownIssue {
    /// Returns the issue that a case meets on a kernel of this release with this driver, if any.
    pub fn find(case: &str, release: &str, driver: Option<&str>) -> Option<&'static KnownIssue> {
        KNOWN_ISSUES.iter().find(|issue| {
            let has_driver = issue.driver.is_none() || issue.driver == driver;
            issue.case == case && has_driver && (issue.applies)(release)
        })
    }
}

/// Returns the danger of a case with this driver of the kernel of this release, if the device is a kernel's.
pub(crate) fn danger(case: &Case, kernel: Option<&str>, driver: Option<&str>) -> Danger {
    let issue = kernel.and_then(|release| KnownIssue::find(case.id(), release, driver));
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
/// Mainline has it since 7.2. Of the stable series, only 6.12.117 is verified in source.
pub fn has_blocked_arc_fix(release: &str) -> bool {
    has_fix(release, &[(6, 12, 117)], (7, 2))
}

/// Returns whether a kernel of this release is known to have commit 4ec5e932e636.
fn has_qat_writers_fix(release: &str) -> bool {
    has_fix(release, &[(6, 12, 97), (6, 18, 40), (7, 1, 5)], (7, 2))
}

/// Returns whether a kernel of this release is known to have a fix that is in these releases of the stable series, and in
/// mainline since `mainline`. A release candidate may be older than the fix, however a distribution writes it.
fn has_fix(release: &str, stable: &[(u32, u32, u32)], mainline: (u32, u32)) -> bool {
    let (version, rest) =
        release.split_at(release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len()));
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let Some(series) = numbers.next().zip(numbers.next()) else { return false };
    let patch = numbers.next().unwrap_or(0);
    if let Some((.., first)) = stable.iter().find(|(major, minor, _)| (*major, *minor) == series) {
        return patch >= *first;
    }
    series > mainline || series == mainline && !rest.contains("rc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernels_known_to_have_the_fix_are_asked() {
        for release in ["7.2.0", "7.2", "7.3.4-1-amd64", "8.0.0-rc1", "6.12.117+deb12-amd64", "6.12.120"] {
            assert!(has_blocked_arc_fix(release), "{release}");
            assert!(KnownIssue::find("v2/arcs/blocked", release, None).is_none(), "{release}");
        }
        for release in ["6.2.0", "6.12.116", "6.12", "6.18.40", "7.1.9", "7.2.0-rc1", "", "next", "6", "99"] {
            assert!(!has_blocked_arc_fix(release), "{release}");
            assert!(KnownIssue::find("v2/arcs/blocked", release, None).is_some(), "{release}");
        }
        for release in ["7.2.0-0.rc3.20260701git.fc45.x86_64", "7.2.0-070200rc1-generic"] {
            assert!(!has_blocked_arc_fix(release), "{release}");
        }
    }
    #[test]
    fn an_issue_of_a_driver_is_that_driver_s_alone() {
        let find = |driver, release| KnownIssue::find("v2/concurrent/writers", release, driver);
        let qat = Some("qat_vfio_pci");
        for release in ["6.12.96", "6.18.39", "7.1.4", "7.0.12", "7.2.0-rc3", "6.19.9"] {
            assert!(find(qat, release).is_some(), "{release}");
            assert!(find(Some("mtty"), release).is_none(), "{release}");
            assert!(find(None, release).is_none(), "{release}");
        }
        for release in ["6.12.97", "6.12.117+deb12-amd64", "6.18.40", "7.1.5", "7.2.0", "7.3.4-1-amd64"] {
            assert!(find(qat, release).is_none(), "{release}");
        }
    }
}
