//! The failure of a migration at the source, and what has become of the devices.

use crate::error::Error;
use crate::report::Report;

/// A migration that failed at the source, and the outcome for the devices.
#[derive(Debug, thiserror::Error)]
#[error("{cause}; {outcome}")]
#[non_exhaustive]
pub struct SendError {
    /// The cause.
    pub cause: Error,
    /// The outcome for the devices.
    pub outcome: Outcome,
    /// Problems that did not change the outcome, such as a configuration that could not be restored after a reset.
    pub warnings: Vec<String>,
    /// The figures up to the failure, with all that was sent until then; those of a migration that did not begin are empty.
    pub report: Box<Report>,
}

impl SendError {
    /// Returns an error without warnings.
    pub(crate) fn new(cause: Error, outcome: Outcome) -> SendError {
        SendError { cause, outcome, warnings: Vec::new(), report: Box::default() }
    }

    /// Returns a hint for the operator, if there is one: after an unknown or bad outcome about the devices, otherwise about
    /// the cause.
    pub fn advice(&self) -> Option<&'static str> {
        match &self.outcome {
            Outcome::Unknown => Some(
                "the state of the devices at the destination, its log or its journal tells whether they run there",
            ),
            Outcome::Stranded(back) => back.advice().or_else(|| self.cause.advice()),
            Outcome::RunsOn | Outcome::RunsOnAfterReset { .. } | Outcome::Untouched => self.cause.advice(),
        }
    }
}

/// The outcome of a failed migration for the devices.
#[derive(Debug, thiserror::Error)]
// Exhaustive: a caller that did not know one of these could run a device twice.
#[expect(clippy::exhaustive_enums, reason = "a caller must know of each outcome who may run the device")]
pub enum Outcome {
    /// The devices run at the source, as before the migration.
    #[error("the devices run on at the source")]
    RunsOn,
    /// The devices run at the source, but some could be recovered only by a reset and have lost their state.
    #[error("the devices run on at the source, but {} had to be reset and lost its state", devices.join(", "))]
    RunsOnAfterReset {
        /// The names of the devices that were reset.
        devices: Vec<String>,
    },
    /// The devices are as they were: the migration was refused before they were touched. They need not run.
    #[error("the migration did not begin, and the devices are as they were")]
    Untouched,
    /// The connection was lost between the handover and its confirmation: the outcome is unknown.
    #[error(
        "the devices had been handed over, and it is unknown whether they run at the destination: they stay stopped \
         here; check there, and let them run here only if they do not run there"
    )]
    Unknown,
    /// A device could not be returned to RUNNING at the source.
    #[error("and a device could not be brought back at the source: {0}")]
    Stranded(Box<Error>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_follows_the_outcome() {
        let advice = |outcome| SendError::new(Error::Lost { side: "destination" }, outcome).advice();
        let of_the_cause = Error::Lost { side: "destination" }.advice();
        assert!(of_the_cause.is_some_and(|advice| advice.contains("still runs")));
        assert_eq!(advice(Outcome::RunsOn), of_the_cause);
        assert_eq!(advice(Outcome::Untouched), of_the_cause);
        assert_eq!(advice(Outcome::RunsOnAfterReset { devices: vec!["nic".into()] }), of_the_cause);
        assert!(advice(Outcome::Unknown).is_some_and(|advice| advice.contains("whether they run there")));
        let back = || Error::NeedsReset { device: "nic".into() };
        assert_eq!(advice(Outcome::Stranded(Box::new(back()))), back().advice());
        let without = Error::Interrupted;
        assert_eq!(advice(Outcome::Stranded(Box::new(without))), of_the_cause);
    }
}
