//! The progress of a migration at the destination, for an observer.

use super::{Destination, Phase};
use crate::progress;

impl Destination {
    /// Returns the progress of the migration.
    pub fn progress(&self) -> progress::Progress {
        progress::Progress::new(self.shown_phase())
    }

    pub(super) fn shown_phase(&self) -> progress::Phase {
        match self.phase {
            Phase::Hello | Phase::Table | Phase::Resume => progress::Phase::Greeting,
            Phase::Load => progress::Phase::Round(self.round.saturating_add(1)),
            Phase::RoundEnd => progress::Phase::Round(self.round),
            Phase::Broken | Phase::Await | Phase::Rejoin => progress::Phase::Reconnecting,
            Phase::Finish | Phase::Inspect | Phase::Ready | Phase::Quiesce | Phase::Start => {
                progress::Phase::Switchover
            }
            Phase::Settle | Phase::Reset | Phase::Verify | Phase::Record | Phase::Tell => {
                progress::Phase::Recovery
            }
            Phase::Run | Phase::Over => progress::Phase::Done,
        }
    }
}
