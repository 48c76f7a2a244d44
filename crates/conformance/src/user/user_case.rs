//! A case for a user: the faults of its device, and the rule that it must keep.

use std::fmt;

use serde::{Deserialize, Serialize};
use whimbrel_protocol::MigrationFlags;

use super::met::Met;
use super::record::Record;
use super::view::View;
use crate::case::Level;
use crate::outcome::{Outcome, skip};

/// The side of a migration that a user is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::exhaustive_enums, reason = "a migration has two ends")]
pub enum Role {
    /// It saves a state.
    Source,
    /// It loads a state.
    Destination,
}

impl Role {
    /// Both roles.
    pub const ALL: [Role; 2] = [Role::Source, Role::Destination];

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Destination => "destination",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Judges one side of a record.
pub(crate) type Rule = fn(&View<'_>) -> Outcome;

/// A case of the suite for users.
#[derive(Clone, Copy)]
pub struct UserCase {
    id: &'static str,
    level: Level,
    sentence: &'static str,
    role: Role,
    faults: &'static str,
    flags: MigrationFlags,
    needs_second: bool,
    met: Met,
    judge: Rule,
}

impl UserCase {
    pub(crate) const fn new(
        role: Role,
        level: Level,
        id: &'static str,
        sentence: &'static str,
        judge: Rule,
    ) -> UserCase {
        UserCase {
            id,
            level,
            sentence,
            role,
            faults: "",
            flags: MigrationFlags::all(),
            needs_second: false,
            met: Met::Always,
            judge,
        }
    }

    /// The device has these faults, and the case is skipped unless the user meets them.
    pub(crate) const fn faults(self, faults: &'static str, met: Met) -> UserCase {
        UserCase { faults, met, ..self }
    }

    /// The case is skipped unless the user does this.
    pub(crate) const fn met(self, met: Met) -> UserCase {
        UserCase { met, ..self }
    }

    /// The device has no more than these migration features.
    pub(crate) const fn flags(self, flags: MigrationFlags) -> UserCase {
        UserCase { flags, ..self }
    }

    /// The case needs a source and a destination.
    pub(crate) const fn both(self) -> UserCase {
        UserCase { needs_second: true, ..self }
    }

    /// Returns the id: `user`, the section, and the name in it.
    pub const fn id(&self) -> &'static str {
        self.id
    }

    /// Returns how binding the sentence is.
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Returns the sentence: the header's own words for MUST and SHOULD, ours for the others.
    pub const fn sentence(&self) -> &'static str {
        self.sentence
    }

    /// Returns the side that the case is for.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Returns the faults of the device on that side, in the text form of `whimbrel_device::wrap::fault`.
    pub const fn fault_text(&self) -> &'static str {
        self.faults
    }

    /// Returns the migration features that the device may have.
    pub const fn allowed_flags(&self) -> MigrationFlags {
        self.flags
    }

    /// Returns whether the case needs a source and a destination.
    pub const fn needs_second(&self) -> bool {
        self.needs_second
    }

    /// Judges a record.
    pub(crate) fn judge(&self, record: &Record) -> Outcome {
        let view = View::new(record, self.role);
        if let Some(why) = self.met.lacks(&view) {
            return skip(why);
        }
        (self.judge)(&view)
    }
}

impl fmt::Debug for UserCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserCase")
            .field("id", &self.id)
            .field("level", &self.level)
            .field("role", &self.role)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}
