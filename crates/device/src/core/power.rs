//! Low power: a device that sleeps while its user lets it, and wakes when it is needed
//! (`vfio_pci_core.c`, the runtime power management of vfio-pci).
//!
//! Here is when it sleeps. What sleep is to a device is its driver's ([`LowPower`]).

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use whimbrel_protocol::Errno;

use crate::bus::Bus;
use crate::bus::irq::{prepare, signal};
use crate::bus::listener::Watch;
use crate::core::file::{Active, DeviceFile, Shared};
use crate::driver::Driver;

/// The half of a driver that can put its device to sleep.
///
/// ```
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
/// use whimbrel_device::{Bus, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, LowPower};
///
/// struct Radio { on: bool }
///
/// impl Driver for Radio {
///     fn info(&self) -> Info {
///         Info { flags: DeviceInfoFlags::PCI, num_regions: 0, num_irqs: 0, capabilities: vec![] }
///     }
///     fn low_power(&mut self) -> Option<&mut dyn LowPower> {
///         Some(self)
///     }
/// }
///
/// impl LowPower for Radio {
///     fn suspend(&mut self) {
///         self.on = false;
///     }
///     fn resume(&mut self) {
///         self.on = true;
///     }
/// }
///
/// let bus = Bus::new();
/// let device = DeviceFile::new("radio", bus.clone(), Box::new(Radio { on: true }));
/// let wakeup = EventFd::new(0)?;
/// device.enter_low_power(Some(wakeup.try_clone()?))?;
/// // Something arrives: the device wakes by itself, and its user is told.
/// bus.wake();
/// assert_eq!(wakeup.read()?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait LowPower {
    /// The device goes to sleep: it does no work of its own until it is resumed. From D3hot, where the user
    /// may have put it before, it is taken to D0 first, as vfio-pci does.
    fn suspend(&mut self);

    /// The device works again, with the state it had.
    fn resume(&mut self);
}

/// What the user lets a device do, and what it does.
#[derive(Debug, Default)]
pub(crate) struct Power {
    entry: Option<Entry>,
    /// Requests under way, which keep it awake.
    requests: usize,
    suspended: bool,
    /// INTx is masked by the sleep, and by nothing else.
    masked_line: bool,
}

/// How a user has let a device sleep: what [`DeviceFile::enter_low_power`] was called with.
#[derive(Debug)]
pub struct LowPowerEntry {
    /// Told when the device wakes.
    pub wakeup: Option<EventFd>,
}

/// The user has let the device sleep, until it says otherwise.
#[derive(Debug)]
struct Entry {
    /// Told when it wakes, which then ends the sleep for good.
    wakeup: Option<Arc<EventFd>>,
    /// Listens to the device, which may wake itself.
    _watch: Watch,
}

impl Power {
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// Wakes a device that sleeps.
    pub(crate) fn resume(&mut self, driver: &mut dyn Driver, bus: &Bus) {
        self.suspended = false;
        if let Some(half) = driver.low_power() {
            half.resume();
        }
        if let Some(wakeup) = self.entry.as_ref().and_then(|entry| entry.wakeup.clone()) {
            signal(&wakeup);
            self.leave(bus);
        }
        if std::mem::take(&mut self.masked_line) {
            bus.interrupts().unmask_line();
        }
    }

    /// Puts the device to sleep if it may and nothing keeps it awake.
    pub(crate) fn settle(&mut self, driver: &mut dyn Driver, bus: &Bus) {
        if self.entry.is_none() || self.requests > 0 || self.suspended {
            return;
        }
        if let Some(half) = driver.low_power() {
            half.suspend();
            self.masked_line = bus.interrupts().mask_line();
            self.suspended = true;
        }
    }

    pub(crate) fn leave(&mut self, bus: &Bus) {
        self.entry = None;
        bus.wake_line().disarm();
    }
}

/// Where a device says that it has to wake.
#[derive(Debug, Default)]
pub(crate) struct WakeLine {
    armed: Mutex<Option<Arc<EventFd>>>,
}

impl WakeLine {
    pub(crate) fn raise(&self) {
        if let Some(eventfd) = &*self.armed.lock() {
            signal(eventfd);
        }
    }

    fn disarm(&self) {
        *self.armed.lock() = None;
    }
}

/// A request: as long as it lives, the device is awake.
pub(crate) struct Awake<'a> {
    shared: &'a Shared,
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.shared.active().power.requests -= 1;
    }
}

impl fmt::Debug for Awake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Awake").finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn awake(&self) -> Awake<'_> {
        self.active().power.requests += 1;
        Awake { shared: self }
    }
}

impl DeviceFile {
    /// Whether the device can be let sleep: it is PCI, and its driver has [`Driver::low_power`].
    pub fn has_low_power(&self) -> bool {
        has_low_power(&mut self.shared().active())
    }

    /// VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: the device sleeps whenever no request needs it. With `wakeup`
    /// VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: only until it wakes for the first time, by a request
    /// or by itself ([`Bus::wake`]), which is told to the eventfd.
    ///
    /// Any request wakes it, also one that comes to nothing, and every typed call is a request. ENOTTY for a
    /// device that has no such states, EINVAL if it is let sleep already, EMFILE, ENOMEM and EAGAIN if this
    /// process cannot have what it takes to wait for the device to wake by itself.
    pub fn enter_low_power(&self, wakeup: Option<EventFd>) -> Result<(), Errno> {
        let shared = self.shared();
        let mut core = shared.active();
        if !has_low_power(&mut core) {
            return Err(Errno::ENOTTY);
        }
        if core.power.entry.is_some() {
            return Err(Errno::EINVAL);
        }
        prepare()?;
        let line = EventFd::new(EFD_NONBLOCK)
            .map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))?;
        let line = Arc::new(line);
        let device = self.downgrade();
        let watch = self.bus().interrupts().listener().watch(line.clone(), move || wake(&device))?;
        *self.bus().wake_line().armed.lock() = Some(line);
        core.power.entry = Some(Entry { wakeup: wakeup.map(Arc::new), _watch: watch });
        Ok(())
    }

    /// VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: the device stays awake. Fine if it was not let sleep. ENOTTY for a
    /// device that has no such states.
    pub fn exit_low_power(&self) -> Result<(), Errno> {
        let mut core = self.shared().active();
        if !has_low_power(&mut core) {
            return Err(Errno::ENOTTY);
        }
        core.power.leave(self.bus());
        Ok(())
    }

    /// As [`DeviceFile::exit_low_power`], of which the user is to see nothing: a wakeup eventfd is not signalled.
    /// Returns what is needed to let it sleep again, here or in another process; `None` if it was not let sleep.
    pub fn take_low_power(&self) -> io::Result<Option<LowPowerEntry>> {
        let shared = self.shared();
        let mut core = shared.as_it_is();
        let Some(entry) = &core.power.entry else { return Ok(None) };
        let wakeup = entry.wakeup.as_ref().map(|wakeup| wakeup.try_clone()).transpose()?;
        core.power.leave(self.bus());
        drop(core);
        // Any request wakes it.
        drop(shared.active());
        Ok(Some(LowPowerEntry { wakeup }))
    }
}

fn has_low_power(core: &mut Active<'_>) -> bool {
    core.is_pci() && core.driver.low_power().is_some()
}

/// The device wakes by itself. Without a wakeup eventfd it sleeps again at once: nobody needs it.
fn wake(device: &Weak<Shared>) {
    if let Some(device) = device.upgrade() {
        drop(device.active());
    }
}
