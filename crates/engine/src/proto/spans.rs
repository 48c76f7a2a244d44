//! The tracing spans of a migration: one for the migration, in it one for each pre-copy round, in these one for each phase.

use std::fmt::Debug;

use tracing::Span;
use tracing::field::{Empty, display};

use crate::progress as shown;

/// The spans of one side. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Spans {
    migration: Span,
    round: Option<(u32, Span)>,
    phase: Span,
}

impl Spans {
    /// Begins a migration. Its id may become known later.
    pub(super) fn new(side: &'static str) -> Spans {
        Spans {
            migration: tracing::info_span!("migration", side = %side, id = Empty),
            round: None,
            phase: Span::none(),
        }
    }

    /// Adds the migration's id.
    pub(super) fn identify(&self, id: &str) {
        self.migration.record("id", display(id));
    }

    /// Begins a phase, in a round if that is what observers are shown.
    pub(super) fn enter(&mut self, shown: shown::Phase, phase: impl Debug) {
        let round = match shown {
            shown::Phase::Round(number) => Some(number),
            _ => None,
        };
        self.phase = Span::none();
        if round != self.round.as_ref().map(|(number, _)| *number) {
            self.round =
                round.map(|number| (number, tracing::info_span!(parent: &self.migration, "round", number)));
        }
        self.phase = tracing::debug_span!(parent: self.current(), "phase", name = ?phase);
        tracing::debug!(parent: self.current(), "phase begins");
    }

    /// Returns the innermost span that a subscriber has enabled.
    pub(super) fn current(&self) -> &Span {
        match &self.round {
            _ if !self.phase.is_disabled() => &self.phase,
            Some((_, round)) if !round.is_disabled() => round,
            _ => &self.migration,
        }
    }
}
