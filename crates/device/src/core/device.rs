//! An open device: its driver, the driver's description of it, and the lock that serializes requests.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use whimbrel_protocol::dirty::IovaRange;
use whimbrel_protocol::info::{Info, Region};
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::{Errno, MigrationFlags};
use whimbrel_uapi::device::{DeviceInfoFlags, RegionInfoFlags};

use super::in_flight::{Advanced, InFlight};
use super::ioeventfds::Ioeventfds;
use super::observe::{Observed, Observer};
use super::offsets::region_offset;
use super::power::Power;
use super::walk::Walk;
use crate::bus::Bus;
use crate::driver::{Context, Driver, Next};

/// The state that all handles to a device share.
pub(crate) struct Shared {
    name: String,
    bus: Bus,
    core: Mutex<Core>,
    /// Signalled when the device may have work.
    wake: Condvar,
    /// Signalled when an access to memory has ended.
    settled: Condvar,
    ioeventfds: Ioeventfds,
    /// The rules for opening it: see [`Shared::open_rules`].
    open_rules: OnceLock<Box<dyn Any + Send + Sync>>,
    observer: OnceLock<Observer>,
}

/// A device's driver, and what is known of the device.
pub(super) struct Core {
    pub(super) driver: Box<dyn Driver>,
    pub(super) context: Context,
    pub(super) power: Power,
    pub(super) walk: Walk,
    pub(super) in_flight: InFlight,
    /// The driver knows of a user.
    open: bool,
    opened_by: OpenedBy,
    pub(super) info: Info,
    regions: Vec<Option<Region>>,
    /// The ranges of the last log that was started.
    pub(super) logged: Vec<IovaRange>,
}

/// The first user of a device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OpenedBy {
    /// A caller of requests.
    Requests,
    /// The device's files ([`Group`](crate::Group), [`Cdev`](crate::Cdev)), if it has any.
    Files,
}

/// A device's core while a request is executed on it: the device is awake, and goes back to sleep with the
/// last request that needs it.
pub(super) struct Active<'a> {
    core: MutexGuard<'a, Core>,
}

/// A request of several steps, which keeps the device awake until this is dropped.
pub(crate) struct Awake<'a> {
    shared: &'a Shared,
}

impl Shared {
    pub(super) fn new(name: String, bus: Bus, driver: Box<dyn Driver>) -> Shared {
        let mut core = Core {
            info: driver.info(),
            driver,
            context: Context::new(bus.clone()),
            power: Power::default(),
            walk: Walk::new(),
            in_flight: InFlight::default(),
            open: false,
            opened_by: OpenedBy::Requests,
            regions: Vec::new(),
            logged: Vec::new(),
        };
        core.describe();
        Shared {
            name,
            bus,
            core: Mutex::new(core),
            wake: Condvar::new(),
            settled: Condvar::new(),
            ioeventfds: Ioeventfds::default(),
            open_rules: OnceLock::new(),
            observer: OnceLock::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }

    pub(super) fn ioeventfds(&self) -> &Ioeventfds {
        &self.ioeventfds
    }

    /// Returns the open rules of the device's files, which the device itself does not use. Only one type stores them
    /// here.
    pub(crate) fn open_rules<T: Any + Default + Send + Sync>(&self) -> &T {
        let rules = self.open_rules.get_or_init(|| Box::<T>::default());
        rules.downcast_ref().expect("a device has one kind of rules for opening it")
    }

    /// Sets the observer of requests. Only the first one has an effect.
    pub(super) fn observe(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    /// Tells the observer, if any, of a request. Callers hold the core's lock, so that the order is that of the device.
    pub(super) fn tell<'a>(&self, observed: impl FnOnce() -> Observed<'a>) {
        if let Some(observer) = self.observer.get() {
            observer.tell(&observed());
        }
    }

    /// Returns the core for a request: opened and awake.
    pub(super) fn active(&self) -> Active<'_> {
        self.activate(self.lock())
    }

    /// Like [`Shared::active`], but an access to an invalid region does not wake the device (`vfio_pci_rw()`).
    pub(super) fn active_for_region(&self, index: u32) -> Result<Active<'_>, Errno> {
        let core = self.lock();
        if index >= core.info.num_regions {
            return Err(Errno::EINVAL);
        }
        Ok(self.activate(core))
    }

    /// Returns the core without opening or waking the device.
    pub(super) fn lock_without_waking(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    pub(super) fn awake(&self) -> Awake<'_> {
        self.active().power.begin_request();
        Awake { shared: self }
    }

    /// Opens the device for its first user.
    pub(super) fn begin_use(&self) {
        self.lock_without_waking().open();
        self.notify_worker();
    }

    /// Opens and closes the device with its files from now on.
    pub(super) fn put_behind_files(&self) {
        let mut core = self.lock_without_waking();
        if std::mem::replace(&mut core.opened_by, OpenedBy::Files) == OpenedBy::Requests {
            core.close();
        }
    }

    /// Tells a worker that there may be work.
    pub(super) fn notify_worker(&self) {
        self.wake.notify_all();
    }

    /// Makes a worker check whether it must stop.
    pub(super) fn interrupt_worker(&self) {
        // With the lock, so that a worker about to wait does not miss it.
        let _core = self.lock_without_waking();
        self.wake.notify_all();
    }

    /// Tells a worker that there may be work, from a thread of the driver's own. A request may be waiting for that thread
    /// with the lock, so this waits for the lock only for a moment.
    pub(super) fn notify_worker_from_driver(&self) {
        let core = self.core.try_lock_for(Duration::from_millis(1));
        self.wake.notify_all();
        drop(core);
    }

    pub(super) fn work_until(&self, stop: &AtomicBool) {
        let mut core = self.lock_without_waking();
        while !stop.load(Ordering::Acquire) {
            // A call of `advance` may have set it.
            core.context.run_clock();
            match core.advance() {
                // Requests wait for this lock: without fairness a busy device would keep them out.
                Advanced::Next(Next::Now) => MutexGuard::bump(&mut core),
                Advanced::Next(Next::At(time)) => {
                    let wait = time.saturating_sub(core.context.now());
                    self.wake.wait_for(&mut core, wait);
                }
                Advanced::Next(Next::Idle) => self.wake.wait(&mut core),
                Advanced::Access(access) => self.make(&mut core, access),
            }
        }
    }

    /// Advances the device at this time, which the context keeps from now on.
    pub(super) fn advance_at(&self, now: Duration) -> Next {
        let mut core = self.lock_without_waking();
        core.context.set_now(now);
        match core.advance() {
            Advanced::Next(next) => next,
            Advanced::Access(access) => {
                self.make(&mut core, access);
                Next::Now
            }
        }
    }

    /// Tells requests that wait for the end of an access.
    pub(super) fn notify_settled(&self) {
        self.settled.notify_all();
    }

    /// Waits for the end of an access, with the core unlocked. Returns `true` at the deadline.
    pub(super) fn wait_settled(&self, active: &mut Active<'_>, deadline: Instant) -> bool {
        self.settled.wait_until(&mut active.core, deadline).timed_out()
    }

    /// Makes a write outside of a request: EIO from a sleeping device, which stays asleep.
    pub(super) fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut core = self.lock();
        if core.power.is_suspended() {
            return Err(Errno::EIO);
        }
        self.write(&mut core, index, offset, data)
    }

    pub(super) fn write(
        &self,
        core: &mut Core,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        let count = core.accessible(index, offset, data.len(), RegionInfoFlags::WRITE)?;
        if count == 0 {
            return Ok(0);
        }
        let written = core.driver.write_region(&core.context, index, offset, &data[..count])?;
        if core.driver.has_work() {
            self.notify_worker();
        }
        Ok(written.min(count))
    }

    pub(super) fn read_state(&self, session: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut core = self.lock();
        core.walk.check_session(session)?;
        if buffer.is_empty() {
            return Ok(0);
        }
        let length = buffer.len();
        let (migration, context) = core.half(|driver| driver.migration())?;
        let state = context.state();
        let result = migration.read(context, buffer).and_then(|read| match read {
            0 if state.is_precopy() => migration.temporary_end(),
            read => Ok(read),
        });
        let result = result.map(|read| read.min(length));
        self.tell(|| Observed::Read { session, state, result: result.map(|read| &buffer[..read]) });
        result
    }

    pub(super) fn write_state(&self, session: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut core = self.lock();
        core.walk.check_session(session)?;
        if data.is_empty() {
            return Ok(0);
        }
        let (migration, context) = core.half(|driver| driver.migration())?;
        let state = context.state();
        let result = migration.write(context, data).map(|written| written.min(data.len()));
        self.tell(|| Observed::Write { session, state, result: result.map(|written| &data[..written]) });
        result
    }

    pub(super) fn precopy(&self, session: u64) -> Result<PrecopyReport, Errno> {
        let mut core = self.lock();
        // The kernel's drivers look at the device's state before they look at the file.
        if !core.context.state().is_precopy() {
            return Err(Errno::EINVAL);
        }
        core.walk.check_session(session)?;
        let (migration, context) = core.half(|driver| driver.migration())?;
        let (state, result) = (context.state(), migration.precopy(context));
        let reports_reinit = core.walk.precopy_info_v2;
        let result = result.map(|report| report.reinit(report.reinit && reports_reinit));
        self.tell(|| Observed::PrecopyInfo { session, state, result });
        result
    }

    pub(super) fn session_is_over(&self, session: u64) -> bool {
        self.lock().walk.check_session(session).is_err()
    }

    pub(super) fn precopy_info_v2(&self) -> bool {
        self.lock().walk.precopy_info_v2
    }

    /// Returns the core, opened for a caller of requests, and not woken.
    fn lock(&self) -> MutexGuard<'_, Core> {
        let mut core = self.lock_without_waking();
        if core.opened_by == OpenedBy::Requests {
            core.open();
        }
        core
    }

    fn activate<'a>(&'a self, mut core: MutexGuard<'a, Core>) -> Active<'a> {
        if core.power.is_suspended() {
            let Core { driver, power, context, .. } = &mut *core;
            power.resume(&mut **driver, context);
            // It may have work, if this is for longer than a request.
            self.notify_worker();
        }
        Active { core }
    }
}

impl Core {
    pub(super) fn is_pci(&self) -> bool {
        self.info.flags.contains(DeviceInfoFlags::PCI)
    }

    pub(super) fn close(&mut self) {
        if std::mem::replace(&mut self.open, false) {
            self.driver.close_device(&self.context);
            self.in_flight.close();
            self.describe();
        }
    }

    pub(super) fn describe_region(&mut self, index: u32) {
        if let Some(known) = self.regions.get_mut(index as usize) {
            let region = self.driver.region(index).ok();
            *known = region.map(|region| region.offset(region_offset(index)));
        }
    }

    /// Ends the state of a user that a reset keeps.
    pub(super) fn end_use(&mut self) {
        self.walk.end_use();
        if let Ok((logging, context)) = self.half(|driver| driver.dma_logging()) {
            // Nobody is left to be told.
            let _ = logging.stop(context);
        }
    }

    /// Returns a half of the driver, and the context for its calls. ENOTTY if the driver does not have it.
    pub(super) fn half<'a, H: ?Sized>(
        &'a mut self,
        half: impl FnOnce(&'a mut dyn Driver) -> Option<&'a mut H>,
    ) -> Result<(&'a mut H, &'a Context), Errno> {
        Ok((half(&mut *self.driver).ok_or(Errno::ENOTTY)?, &self.context))
    }

    /// Revokes the parts of BARs that were exported as files.
    pub(super) fn revoke_dma_buf(&mut self) {
        if let Ok((dma_buf, context)) = self.half(|driver| driver.dma_buf()) {
            dma_buf.revoke(context);
        }
    }

    /// Returns the size of a region in bytes, 0 if it is missing.
    pub(super) fn region_size(&self, index: u32) -> u64 {
        self.region(index).map_or(0, |region| region.size)
    }

    pub(super) fn region(&self, index: u32) -> Result<&Region, Errno> {
        self.regions.get(index as usize).and_then(Option::as_ref).ok_or(Errno::EINVAL)
    }

    /// Returns the number of bytes of an access that lie in the region, with the kernel's order of checks.
    pub(super) fn accessible(
        &self,
        index: u32,
        offset: u64,
        length: usize,
        needed: RegionInfoFlags,
    ) -> Result<usize, Errno> {
        let region = self.region(index)?;
        if !region.flags.contains(needed) || offset >= region.size {
            return Err(Errno::EINVAL);
        }
        Ok(usize::try_from(region.size - offset).map_or(length, |left| left.min(length)))
    }

    fn advance(&mut self) -> Advanced {
        let is_closed = !self.open && self.opened_by == OpenedBy::Files;
        let runs = self.context.state().is_running() && !self.power.is_suspended() && !is_closed;
        if !runs || !self.in_flight.allows_work() {
            return Advanced::Next(Next::Idle);
        }
        let next = self.driver.advance(&self.context);
        self.access_now(next)
    }

    fn open(&mut self) {
        if !std::mem::replace(&mut self.open, true) {
            self.driver.open_device(&self.context);
            self.describe();
        }
    }

    /// Queries the driver's description of the device.
    fn describe(&mut self) {
        self.info = self.driver.info();
        self.regions = vec![None; self.info.num_regions as usize];
        (0..self.info.num_regions).for_each(|index| self.describe_region(index));
        let flags = self.driver.migration().map_or(MigrationFlags::empty(), |migration| migration.flags());
        self.walk.set_flags(flags, &mut self.context);
    }
}

impl Deref for Active<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl DerefMut for Active<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

/// Closes a device that is dropped while it is open.
impl Drop for Core {
    fn drop(&mut self) {
        // Two panics at once would end the process.
        if self.open && !std::thread::panicking() {
            self.driver.close_device(&self.context);
        }
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        let Core { driver, power, context, .. } = &mut *self.core;
        power.settle(&mut **driver, context);
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.shared.active().power.end_request();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Awake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Awake").finish_non_exhaustive()
    }
}
