//! The low-power features. [`core::power`](crate::core::power) executes them.

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{DeviceLowPowerEntryWithWakeup, FeatureFlags};

use super::{Checked, Request};

impl Request<'_> {
    pub(super) fn low_power_entry(self) -> Result<(), Errno> {
        match self.check_low_power(0)? {
            Checked::Probed => Ok(()),
            Checked::Go => self.device.enter_low_power(None),
        }
    }

    pub(super) fn low_power_entry_with_wakeup(self) -> Result<(), Errno> {
        if let Checked::Probed = self.check_low_power(size_of::<DeviceLowPowerEntryWithWakeup>())? {
            return Ok(());
        }
        // The kernel does not look at the reserved word.
        let entry: DeviceLowPowerEntryWithWakeup = self.copy_in()?;
        if entry.wakeup_eventfd < 0 {
            return Err(Errno::EINVAL);
        }
        let wakeup = self.process.eventfd(entry.wakeup_eventfd)?;
        self.device.enter_low_power(Some(wakeup))
    }

    pub(super) fn low_power_exit(self) -> Result<(), Errno> {
        match self.check_low_power(0)? {
            Checked::Probed => Ok(()),
            Checked::Go => self.device.exit_low_power(),
        }
    }

    fn check_low_power(&self, least: usize) -> Result<Checked, Errno> {
        if !self.device.has_low_power() {
            return Err(Errno::ENOTTY);
        }
        self.check(FeatureFlags::SET, least)
    }
}
