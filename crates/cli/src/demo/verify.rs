//! Verification of a migration from the findings of both ends.

use serde::Serialize;

use super::messages::{Evidence, Finished};

/// A condition and its result.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// The condition.
    pub(super) what: &'static str,
    /// It holds.
    pub(super) ok: bool,
    /// The figures.
    pub(super) found: String,
}

/// The findings of the two ends.
pub(super) struct Findings<'a> {
    pub(super) sent: &'a Evidence,
    pub(super) received: &'a Evidence,
    pub(super) finished: &'a Finished,
}

/// Checks all conditions.
pub(super) fn all(findings: &Findings<'_>) -> Vec<Check> {
    let Findings { sent, received, finished } = findings;
    let [then, later] = sent.completed_by_device;
    let books = finished.program;
    vec![
        Check {
            what: "memory is equal at the switchover",
            ok: sent.memory == received.memory,
            found: pair(&sent.memory, &received.memory),
        },
        Check {
            what: "device state is equal at the switchover",
            ok: sent.device == received.device,
            found: pair(&sent.device, &received.device),
        },
        Check {
            what: "the source no longer runs",
            ok: sent.state == "STOP" && then == later,
            found: format!("{}, {then} jobs then and {later} later", sent.state),
        },
        Check {
            what: "the work continued at the destination",
            ok: books.completed > sent.program.completed,
            found: format!("{} jobs before, {} at the end", sent.program.completed, books.completed),
        },
        Check {
            what: "no completion is lost",
            ok: books.completed == books.submitted && finished.completed_by_device == books.submitted,
            found: format!(
                "{} submitted, {} completed, {} by the device's own count",
                books.submitted, books.completed, finished.completed_by_device
            ),
        },
        Check {
            what: "no completion is duplicated or out of order",
            ok: books.misplaced == 0,
            found: format!("{} of {}", books.misplaced, books.completed),
        },
        Check {
            what: "every result is right",
            ok: books.wrong == 0 && finished.blocks_wrong == 0,
            found: format!(
                "{} of {} results wrong, {} of {} blocks wrong at the end",
                books.wrong, books.completed, finished.blocks_wrong, finished.blocks_checked
            ),
        },
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

    fn evidence() -> Evidence {
        Evidence {
            memory: "a".into(),
            device: "b".into(),
            state: "STOP".into(),
            completed_by_device: [5, 5],
            program: Books { submitted: 6, completed: 5, ..Books::default() },
        }
    }

    fn finished() -> Finished {
        Finished {
            program: Books { submitted: 9, completed: 9, ..Books::default() },
            completed_by_device: 9,
            blocks_checked: 4,
            blocks_wrong: 0,
        }
    }

    /// The checks that fail.
    fn failing(sent: &Evidence, received: &Evidence, finished: &Finished) -> Vec<&'static str> {
        all(&Findings { sent, received, finished })
            .into_iter()
            .filter(|check| !check.ok)
            .map(|check| check.what)
            .collect()
    }

    #[test]
    fn a_move_without_fault_passes_every_check() {
        assert_eq!(failing(&evidence(), &evidence(), &finished()), Vec::<&str>::new());
    }

    #[test]
    fn each_fault_fails_its_own_check() {
        let (good, end) = (evidence(), finished());
        let books = end.program;
        let cases: [(&str, Evidence, Finished); 9] = [
            (
                "memory is equal at the switchover",
                Evidence { memory: "x".into(), ..good.clone() },
                end.clone(),
            ),
            (
                "device state is equal at the switchover",
                Evidence { device: "x".into(), ..good.clone() },
                end.clone(),
            ),
            ("the source no longer runs", Evidence { state: "RUNNING".into(), ..good.clone() }, end.clone()),
            (
                "the source no longer runs",
                Evidence { completed_by_device: [5, 6], ..good.clone() },
                end.clone(),
            ),
            (
                "no completion is lost",
                good.clone(),
                Finished { program: Books { completed: 8, ..books }, ..end.clone() },
            ),
            ("no completion is lost", good.clone(), Finished { completed_by_device: 8, ..end.clone() }),
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
            assert_eq!(failing(&sent, &evidence(), &finished), [what]);
        }
    }

    #[test]
    fn a_destination_that_does_no_work_is_seen() {
        let idle = Finished {
            program: Books { submitted: 5, completed: 5, ..Books::default() },
            completed_by_device: 5,
            ..finished()
        };
        assert_eq!(failing(&evidence(), &evidence(), &idle), ["the work continued at the destination"]);
    }
}
