//! Resets and migration: what VFIO_DEVICE_RESET does to a migration under way.
//!
//! In the kernel a reset always leads to RUNNING, and ends the data session. A VMM that serves such a device's guest
//! loses the migration when the guest resets the device during pre-copy. A server of a device may follow
//! [`ResetRule::KeepsPrecopy`] instead.

use crate::State;

/// The effect of VFIO_DEVICE_RESET on a device's migration. Both rules reset the device itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a user must know what a reset leaves of a migration")]
pub enum ResetRule {
    /// The kernel's rule: a reset leads to RUNNING from every state, and ends the data session.
    #[default]
    EndsMigration,
    /// A reset in PRE_COPY or PRE_COPY_P2P keeps the state and the data session: what was read stays valid, and what the
    /// reset has changed is read again. In every other state it is the kernel's rule.
    KeepsPrecopy,
}

impl ResetRule {
    /// Both rules.
    pub const ALL: [ResetRule; 2] = [ResetRule::EndsMigration, ResetRule::KeepsPrecopy];

    /// Returns the name, as options and peers spell it.
    pub const fn name(self) -> &'static str {
        match self {
            ResetRule::EndsMigration => "ends_migration",
            ResetRule::KeepsPrecopy => "keeps_precopy",
        }
    }

    /// Returns the rule in words, after "a reset".
    pub const fn text(self) -> &'static str {
        match self {
            ResetRule::EndsMigration => "ends a migration",
            ResetRule::KeepsPrecopy => "keeps pre-copy",
        }
    }

    /// Returns the rule with this name.
    pub fn from_name(name: &str) -> Option<ResetRule> {
        ResetRule::ALL.into_iter().find(|rule| rule.name() == name)
    }

    /// Returns whether a reset in this state keeps the state and its data session.
    pub const fn keeps(self, from: State) -> bool {
        match self {
            ResetRule::EndsMigration => false,
            ResetRule::KeepsPrecopy => from.is_precopy(),
        }
    }

    /// Returns the state after a successful reset.
    pub const fn state_after(self, from: State) -> State {
        if self.keeps(from) { from } else { State::Running }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_leads_to_running_but_from_precopy_by_the_rule_that_keeps_it() {
        for rule in ResetRule::ALL {
            for from in State::ALL {
                let is_kept =
                    rule == ResetRule::KeepsPrecopy && matches!(from, State::PreCopy | State::PreCopyP2p);
                assert_eq!(rule.keeps(from), is_kept, "{rule:?} in {from}");
                let expected = if is_kept { from } else { State::Running };
                assert_eq!(rule.state_after(from), expected, "{rule:?} in {from}");
            }
        }
    }

    #[test]
    fn each_rule_is_found_by_its_name_and_nothing_else_is() {
        for rule in ResetRule::ALL {
            assert_eq!(ResetRule::from_name(rule.name()), Some(rule));
        }
        for other in ["", "Keeps_Precopy", "keeps_precopy ", "kernel"] {
            assert_eq!(ResetRule::from_name(other), None, "{other}");
        }
        assert_eq!(ResetRule::default(), ResetRule::EndsMigration);
    }
}
