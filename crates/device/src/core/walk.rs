//! A device's walk through the state machine of migration, and the data sessions that the walk opens and ends.

use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::reset::ResetRule;
use whimbrel_protocol::session::{self, Direction, Effect};
use whimbrel_protocol::{Errno, MigrationFlags, State, fsm};

use crate::driver::{Context, Driver};

/// The walk of a device through the state machine. The state itself is in its [`Context`].
#[derive(Debug)]
pub(super) struct Walk {
    /// The migration features; empty for a device that cannot migrate.
    flags: MigrationFlags,
    /// Number of the last session opened, and whether it is still running.
    session: u64,
    session_open: bool,
    /// The user has opted in to REINIT.
    pub(super) precopy_info_v2: bool,
    /// The effect of a reset by the user.
    pub(super) reset_rule: ResetRule,
}

impl Walk {
    /// Returns the walk of a device that has no migration features yet.
    pub(super) fn new() -> Walk {
        Walk {
            flags: MigrationFlags::empty(),
            session: 0,
            session_open: false,
            precopy_info_v2: false,
            reset_rule: ResetRule::default(),
        }
    }

    /// Sets the migration features; empty for a device that cannot migrate.
    pub(super) fn set_flags(&mut self, flags: MigrationFlags, context: &mut Context) {
        self.flags = flags;
        if flags.is_empty() {
            context.set_state(State::Running);
        }
    }

    /// Returns the migration features; ENOTTY for a device that cannot migrate.
    pub(super) fn flags(&self) -> Result<MigrationFlags, Errno> {
        if self.flags.is_empty() { Err(Errno::ENOTTY) } else { Ok(self.flags) }
    }

    /// Returns the number of the last session.
    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// Fails with ENODEV unless the data session with this number is open.
    pub(super) fn check_session(&self, session: u64) -> Result<(), Errno> {
        if self.session_open && self.session == session { Ok(()) } else { Err(Errno::ENODEV) }
    }

    /// Returns the states to which arcs lead on the way from a state to another one; none if the request is refused.
    pub(super) fn way(&self, from: State, to: State) -> impl Iterator<Item = State> {
        fsm::path(self.flags, from, to).into_iter().flatten()
    }

    /// Executes the arcs to `to`, one after the other, and returns the session that the last one opened.
    pub(super) fn to(
        &mut self,
        to: State,
        driver: &mut dyn Driver,
        context: &mut Context,
    ) -> Result<Option<Direction>, Errno> {
        let flags = self.flags()?;
        let mut opened = None;
        while context.state() != to {
            let from = context.state();
            let step = fsm::next(flags, from, to).ok_or(Errno::EINVAL)?;
            let migration = driver.migration().ok_or(Errno::ENOTTY)?;
            if let Err(error) = migration.arc(context, from, step) {
                tracing::debug!(%from, to = %step, %error, "arc failed");
                if let ArcError::Broken(_) = error {
                    context.set_state(State::Error);
                    self.session_open = false;
                }
                return Err(error.errno());
            }
            let arrived = migration.arrived(step);
            if arrived != step {
                tracing::debug!(%from, to = %step, %arrived, "arc ended in another state");
                self.session_open &= arrived == from;
                context.set_state(arrived);
                return Ok(None);
            }
            tracing::trace!(%from, to = %step, "arc");
            context.set_state(step);
            opened = match session::effect(from, step) {
                Effect::Opens(direction) => {
                    self.session += 1;
                    self.session_open = true;
                    Some(direction)
                }
                Effect::Ends => {
                    self.session_open = false;
                    None
                }
                Effect::None | Effect::Continues => None,
            };
        }
        Ok(opened)
    }

    /// Resets the device by this rule, with `reset` where that ends the migration.
    ///
    /// The session is over unless the rule keeps it; after a failure nothing has changed.
    pub(super) fn reset(
        &mut self,
        rule: ResetRule,
        driver: &mut dyn Driver,
        context: &mut Context,
        reset: impl FnOnce(&mut dyn Driver, &Context) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let from = context.state();
        if rule.keeps(from) {
            return driver.reset_in_precopy(context);
        }
        reset(driver, context)?;
        self.session_open = false;
        context.set_state(rule.state_after(from));
        Ok(())
    }

    /// Ends the state of a user that a reset keeps.
    pub(super) fn end_use(&mut self) {
        self.session_open = false;
        self.precopy_info_v2 = false;
    }
}
