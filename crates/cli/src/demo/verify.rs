//! Verification of a migration from the findings of both ends.

use serde::Serialize;

use super::messages::{DeviceEvidence, Evidence, Finished};

/// A condition and its result.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// The condition.
    pub(super) what: &'static str,
    /// The number of the device, from 1; `None` for what all devices share.
    pub(super) device: Option<usize>,
    /// It holds.
    pub(super) ok: bool,
    /// The figures.
    pub(super) found: String,
}

/// The findings of the two ends, with as many devices each.
pub(super) struct Findings<'a> {
    pub(super) sent: &'a Evidence,
    pub(super) received: &'a Evidence,
    pub(super) finished: &'a [Finished],
}

/// Checks all conditions: of memory, then of each device.
pub(super) fn all(findings: &Findings<'_>) -> Vec<Check> {
    let Findings { sent, received, finished } = findings;
    let mut checks = vec![Check {
        what: "memory is equal at the switchover",
        device: None,
        ok: sent.memory == received.memory,
        found: pair(&sent.memory, &received.memory),
    }];
    let devices = sent.devices.iter().zip(&received.devices).zip(*finished);
    for (number, ((sent, received), finished)) in devices.enumerate() {
        checks.extend(of_device(sent, received, finished).map(|(what, ok, found)| Check {
            what,
            device: Some(number + 1),
            ok,
            found,
        }));
    }
    checks
}

fn of_device(
    sent: &DeviceEvidence,
    received: &DeviceEvidence,
    finished: &Finished,
) -> [(&'static str, bool, String); 6] {
    let books = finished.program;
    let is_stopped = sent.completed_by_device.is_none_or(|[then, later]| then == later);
    let counts = finished.completed_by_device.is_none_or(|count| count == books.submitted);
    [
        (
            "device state is equal at the switchover",
            sent.digest == received.digest,
            pair(&sent.digest, &received.digest),
        ),
        (
            "the source no longer runs",
            sent.state == "STOP" && is_stopped,
            match sent.completed_by_device {
                Some([then, later]) => format!("{}, {then} jobs then and {later} later", sent.state),
                None => sent.state.clone(),
            },
        ),
        (
            "the work continued at the destination",
            books.completed > sent.program.completed,
            format!("{} jobs before, {} at the end", sent.program.completed, books.completed),
        ),
        (
            "no completion is lost",
            books.completed == books.submitted && counts,
            match finished.completed_by_device {
                Some(count) => format!(
                    "{} submitted, {} completed, {count} by the device's own count",
                    books.submitted, books.completed
                ),
                None => format!("{} submitted, {} completed", books.submitted, books.completed),
            },
        ),
        (
            "no completion is duplicated or out of order",
            books.misplaced == 0,
            format!("{} of {}", books.misplaced, books.completed),
        ),
        (
            "every result is right",
            books.wrong == 0 && finished.blocks_wrong == 0,
            match finished.blocks_checked {
                0 => format!("{} of {} results wrong", books.wrong, books.completed),
                blocks => format!(
                    "{} of {} results wrong, {} of {blocks} blocks wrong at the end",
                    books.wrong, books.completed, finished.blocks_wrong
                ),
            },
        ),
    ]
}

fn pair(source: &str, destination: &str) -> String {
    if source == destination {
        source.to_string()
    } else {
        format!("{source} at the source, {destination} at the destination")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::messages::Books;

    fn device() -> DeviceEvidence {
        DeviceEvidence {
            digest: "b".into(),
            state: "STOP".into(),
            completed_by_device: Some([5, 5]),
            program: Books { submitted: 6, completed: 5, ..Books::default() },
        }
    }

    /// The second device has no counter of its own.
    fn evidence(first: DeviceEvidence) -> Evidence {
        Evidence {
            memory: "a".into(),
            devices: vec![first, DeviceEvidence { completed_by_device: None, ..device() }],
        }
    }

    fn finished() -> Finished {
        Finished {
            program: Books { submitted: 9, completed: 9, ..Books::default() },
            completed_by_device: Some(9),
            blocks_checked: 4,
            blocks_wrong: 0,
        }
    }

    /// The checks that fail, with the numbers of their devices.
    fn failing(sent: &Evidence, received: &Evidence, first: &Finished) -> Vec<(&'static str, Option<usize>)> {
        let finished = [first.clone(), Finished { completed_by_device: None, ..finished() }];
        let findings = Findings { sent, received, finished: &finished };
        let failed = all(&findings).into_iter().filter(|check| !check.ok);
        failed.map(|check| (check.what, check.device)).collect()
    }

    #[test]
    fn a_move_without_fault_passes_every_check() {
        assert_eq!(failing(&evidence(device()), &evidence(device()), &finished()), []);
    }

    #[test]
    fn each_fault_fails_its_own_check_at_its_own_device() {
        let (good, end) = (device(), finished());
        let books = end.program;
        let cases: [(&str, DeviceEvidence, Finished); 8] = [
            (
                "device state is equal at the switchover",
                DeviceEvidence { digest: "x".into(), ..good.clone() },
                end.clone(),
            ),
            (
                "the source no longer runs",
                DeviceEvidence { state: "RUNNING".into(), ..good.clone() },
                end.clone(),
            ),
            (
                "the source no longer runs",
                DeviceEvidence { completed_by_device: Some([5, 6]), ..good.clone() },
                end.clone(),
            ),
            (
                "no completion is lost",
                good.clone(),
                Finished { program: Books { completed: 8, ..books }, ..end.clone() },
            ),
            ("no completion is lost", good.clone(), Finished { completed_by_device: Some(8), ..end.clone() }),
            (
                "no completion is duplicated or out of order",
                good.clone(),
                Finished { program: Books { misplaced: 1, ..books }, ..end.clone() },
            ),
            (
                "every result is right",
                good.clone(),
                Finished { program: Books { wrong: 1, ..books }, ..end.clone() },
            ),
            ("every result is right", good.clone(), Finished { blocks_wrong: 1, ..end.clone() }),
        ];
        for (what, sent, finished) in cases {
            assert_eq!(failing(&evidence(sent), &evidence(device()), &finished), [(what, Some(1))]);
        }
    }

    #[test]
    fn memory_that_differs_fails_the_check_of_all_devices() {
        let other = Evidence { memory: "x".into(), ..evidence(device()) };
        let check = ("memory is equal at the switchover", None);
        assert_eq!(failing(&other, &evidence(device()), &finished()), [check]);
    }

    #[test]
    fn a_destination_that_does_no_work_is_seen() {
        let idle = Finished {
            program: Books { submitted: 5, completed: 5, ..Books::default() },
            completed_by_device: Some(5),
            ..finished()
        };
        let check = ("the work continued at the destination", Some(1));
        assert_eq!(failing(&evidence(device()), &evidence(device()), &idle), [check]);
    }
}
