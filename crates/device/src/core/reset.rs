//! Resets of a device, and what they do to its migration.

use whimbrel_protocol::reset::ResetRule;
use whimbrel_protocol::{Errno, State};

use super::device::Core;
use super::file::DeviceFile;
use super::observe::Observed;
use crate::driver::{Context, Driver};

impl DeviceFile {
    /// VFIO_DEVICE_RESET: brings the device to its power-on state, in RUNNING, from every state, and ends its session.
    /// The user's interrupt setup stays. By [`ResetRule::KeepsPrecopy`] a device in pre-copy keeps its state and session.
    pub fn reset(&self) -> Result<(), Errno> {
        let rule = self.reset_rule();
        self.reset_by(rule, observed, |driver, context| driver.reset(context))
    }

    /// Sets what [`DeviceFile::reset`] does to a migration; by default it ends. A hot reset and the last close always end
    /// it.
    ///
    /// ENOTTY if the driver cannot keep a session over a reset ([`Driver::can_reset_in_precopy`]).
    pub fn set_reset_rule(&self, rule: ResetRule) -> Result<(), Errno> {
        let mut core = self.shared().lock_without_waking();
        if rule == ResetRule::KeepsPrecopy && !core.driver.can_reset_in_precopy() {
            return Err(Errno::ENOTTY);
        }
        core.walk.reset_rule = rule;
        Ok(())
    }

    /// Returns what [`DeviceFile::reset`] does to a migration.
    pub fn reset_rule(&self) -> ResetRule {
        self.shared().lock_without_waking().walk.reset_rule
    }

    /// Executes the device's part in a hot reset.
    pub(crate) fn bus_reset(&self) -> Result<(), Errno> {
        self.reset_by(ResetRule::EndsMigration, observed, |driver, context| driver.bus_reset(context))
    }

    /// Resets the device on behalf of a user who has left.
    pub(super) fn reset_at_close(&self) -> Result<(), Errno> {
        let observed = |from, result, now| Observed::Close { from, result, now };
        self.reset_by(ResetRule::EndsMigration, observed, |driver, context| driver.reset(context))
    }

    fn reset_by(
        &self,
        rule: ResetRule,
        observed: impl FnOnce(State, Result<(), Errno>, State) -> Observed<'static>,
        reset: impl FnOnce(&mut dyn Driver, &Context) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Core { driver, walk, context, in_flight, .. } = &mut *self.shared().active_for_reset();
        let from = context.state();
        let result = walk.reset(rule, &mut **driver, context, reset);
        self.shared().tell(|| observed(from, result, context.state()));
        if result.is_ok() {
            in_flight.forget();
        }
        self.shared().notify_worker();
        result
    }
}

/// A reset that a user has asked for.
fn observed(from: State, result: Result<(), Errno>, now: State) -> Observed<'static> {
    Observed::Reset { from, result, now }
}
