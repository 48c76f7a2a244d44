//! Runtime power management, as in vfio-pci (`vfio_pci_core.c`): a device sleeps while its user allows it and no
//! request needs it.
//!
//! The driver puts the device to sleep and wakes it ([`LowPower`](crate::LowPower)).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::bus::Bus;
use crate::bus::irq::signal;
use crate::bus::listener::Watch;
use crate::driver::{Context, Driver};

/// The low-power state that the user allows, and the device's actual one.
#[derive(Debug, Default)]
pub(super) struct Power {
    entry: Option<Entry>,
    /// Requests in flight, which keep it awake.
    requests: usize,
    suspended: bool,
    /// INTx is masked only because the device sleeps.
    masked_line: bool,
}

/// The arguments that a user has let a device sleep with
/// ([`DeviceFile::enter_low_power`](crate::DeviceFile::enter_low_power)).
#[derive(Debug)]
#[non_exhaustive]
pub struct LowPowerEntry {
    /// The eventfd that is signalled when the device wakes.
    pub wakeup: Option<OwnedFd>,
}

impl LowPowerEntry {
    /// Returns the arguments of a user, with the eventfd for the wake-up, if any.
    pub fn new(wakeup: Option<OwnedFd>) -> LowPowerEntry {
        LowPowerEntry { wakeup }
    }
}

/// The user's permission to sleep, until it is revoked.
#[derive(Debug)]
struct Entry {
    /// The eventfd to signal when the device wakes, which also revokes the permission.
    wakeup: Option<Arc<OwnedFd>>,
    /// The watch on the device's wake line.
    _watch: Watch,
}

impl Power {
    pub(super) fn is_suspended(&self) -> bool {
        self.suspended
    }

    pub(super) fn begin_request(&mut self) {
        self.requests += 1;
    }

    pub(super) fn end_request(&mut self) {
        self.requests -= 1;
    }

    /// Wakes a device that sleeps.
    pub(super) fn resume(&mut self, driver: &mut dyn Driver, context: &Context) {
        self.suspended = false;
        if let Some(half) = driver.low_power() {
            half.resume(context);
        }
        if let Some(wakeup) = self.entry.as_ref().and_then(|entry| entry.wakeup.clone()) {
            signal(&wakeup);
            self.leave(context.bus());
        }
        if std::mem::take(&mut self.masked_line) {
            context.bus().interrupts().unmask_line();
        }
    }

    /// Puts the device to sleep if it is allowed and nothing keeps it awake.
    pub(super) fn settle(&mut self, driver: &mut dyn Driver, context: &Context) {
        if self.entry.is_none() || self.requests > 0 || self.suspended {
            return;
        }
        if let Some(half) = driver.low_power() {
            half.suspend(context);
            self.masked_line = context.bus().interrupts().mask_line();
            self.suspended = true;
        }
    }

    /// Returns whether the user allows low power.
    pub(super) fn may_sleep(&self) -> bool {
        self.entry.is_some()
    }

    /// Lets the device sleep. `watch` listens to its wake line.
    pub(super) fn enter(&mut self, wakeup: Option<OwnedFd>, watch: Watch) {
        self.entry = Some(Entry { wakeup: wakeup.map(Arc::new), _watch: watch });
    }

    /// Returns the low-power entry of the user, with a copy of the eventfd; `None` without one.
    pub(super) fn entry(&self) -> io::Result<Option<LowPowerEntry>> {
        let Some(entry) = &self.entry else { return Ok(None) };
        let wakeup = entry.wakeup.as_ref().map(|wakeup| wakeup.try_clone()).transpose()?;
        Ok(Some(LowPowerEntry { wakeup }))
    }

    pub(super) fn leave(&mut self, bus: &Bus) {
        self.entry = None;
        bus.wake_line().disarm();
    }
}
