//! Typed requests for low power: letting a device sleep, and keeping it awake.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::event::{EventfdFlags, eventfd};
use whimbrel_protocol::Errno;

use super::device::{Active, Shared};
use super::file::DeviceFile;
use super::power::LowPowerEntry;
use crate::bus::irq::{only_eventfd, prepare};

impl DeviceFile {
    /// Returns whether the device supports low power: it is PCI, and its driver has
    /// [`Driver::low_power`](crate::Driver::low_power).
    pub fn has_low_power(&self) -> bool {
        has_low_power(&mut self.shared().active())
    }

    /// VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: the device sleeps whenever no request needs it. With `wakeup`
    /// VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: only until it wakes for the first time, by a request or by
    /// itself ([`Bus::wake`](crate::Bus::wake)), which signals the eventfd.
    ///
    /// Any request wakes it, even a failed one, and every typed call is a request. ENOTTY for a device without low
    /// power, EINVAL if it may already sleep or `wakeup` is not an eventfd, EMFILE, ENOMEM and EAGAIN if this process
    /// lacks the resources to wait for the device's wake line.
    pub fn enter_low_power(&self, wakeup: Option<OwnedFd>) -> Result<(), Errno> {
        let shared = self.shared();
        let mut core = shared.active();
        if !has_low_power(&mut core) {
            return Err(Errno::ENOTTY);
        }
        if core.power.may_sleep() {
            return Err(Errno::EINVAL);
        }
        prepare()?;
        let wakeup = wakeup.map(only_eventfd).transpose()?;
        let line = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let device = self.downgrade();
        let watch = self.bus().interrupts().listener().watch(line.clone(), move || wake(&device))?;
        self.bus().wake_line().arm(line);
        core.power.enter(wakeup, watch);
        Ok(())
    }

    /// VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: keeps the device awake. Succeeds if it was not allowed to sleep. ENOTTY for
    /// a device without low power.
    pub fn exit_low_power(&self) -> Result<(), Errno> {
        let mut core = self.shared().active();
        if !has_low_power(&mut core) {
            return Err(Errno::ENOTTY);
        }
        core.power.leave(self.bus());
        Ok(())
    }

    /// Returns whether the user lets the device sleep, without waking it.
    pub fn may_sleep(&self) -> bool {
        self.shared().lock_without_waking().power.may_sleep()
    }

    /// Like [`DeviceFile::exit_low_power`], but invisible to the user: a wakeup eventfd is not signalled. Returns the
    /// arguments to let the device sleep again, here or in another process; `None` if it was not allowed to sleep.
    pub fn take_low_power(&self) -> io::Result<Option<LowPowerEntry>> {
        let shared = self.shared();
        let mut core = shared.lock_without_waking();
        let Some(entry) = core.power.entry()? else { return Ok(None) };
        core.power.leave(self.bus());
        drop(core);
        // Any request wakes it.
        drop(shared.active());
        Ok(Some(entry))
    }
}

fn has_low_power(core: &mut Active<'_>) -> bool {
    core.is_pci() && core.driver.low_power().is_some()
}

/// Handles a raised wake line. Without a wakeup eventfd the device sleeps again at once: no request needs it.
fn wake(device: &Weak<Shared>) {
    if let Some(device) = device.upgrade() {
        drop(device.active());
    }
}
