//! A handle to a device, with typed requests that behave as the kernel's ioctls.
//!
//! The same requests as raw bytes, and the order of checks on those, are in [`raw`](crate::raw).

use std::any::Any;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use whimbrel_memory::FileOffset;
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, LoggingRanges};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::irq::IrqAction;
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::device::{DeviceInfoFlags, RegionInfoFlags};

use super::data_file::DataFile;
use super::device::{Awake, Core, Shared};
use super::observe::{Observed, Observer};
use super::offsets::split_offset;
use super::region_mmap;
use crate::bus::Bus;
use crate::bus::irq::{Change, IrqData, Kind};
use crate::driver::{Driver, IoeventfdWrite, Next};

/// An open device. A clone is another handle to the same device.
///
/// Requests from several threads are serialized.
#[derive(Clone, Debug)]
pub struct DeviceFile {
    shared: Arc<Shared>,
}

impl DeviceFile {
    /// Returns a device with the driver that `driver` creates for the device's bus. A driver that uses only the bus in
    /// the [`Context`](crate::Context) of each call can ignore this one.
    ///
    /// The first request opens the device, or the first open of the [`Group`](crate::Group) or [`Cdev`](crate::Cdev)
    /// that it is given to. `name` appears in errors and traces. Its [`Driver::advance`] is called only by a
    /// [`Worker`](crate::Worker), as [`WorkingDevice::start`](crate::WorkingDevice::start) has one.
    pub fn new<D>(name: impl Into<String>, driver: impl FnOnce(Bus) -> D) -> DeviceFile
    where
        D: Into<Box<dyn Driver>>,
    {
        let made = DeviceFile::try_new(name, |bus| Ok::<_, Infallible>(driver(bus)));
        made.unwrap_or_else(|never| match never {})
    }

    /// Returns a device like [`DeviceFile::new`], for a driver whose creation can fail. Fails with the error of `driver`.
    pub fn try_new<D, E>(
        name: impl Into<String>,
        driver: impl FnOnce(Bus) -> Result<D, E>,
    ) -> Result<DeviceFile, E>
    where
        D: Into<Box<dyn Driver>>,
    {
        let bus = Bus::new();
        let driver = driver(bus.clone())?.into();
        let shared = Arc::new(Shared::new(name.into(), bus, driver));
        let listener = Arc::downgrade(&shared);
        shared.bus().work_line().listen(move || {
            if let Some(shared) = listener.upgrade() {
                shared.notify_worker_from_driver();
            }
        });
        Ok(DeviceFile { shared })
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// Returns the device's outbound interface.
    pub fn bus(&self) -> &Bus {
        self.shared.bus()
    }

    /// Tells `observer` of each request that concerns migration, and of each access to a region through this file, with
    /// its answer and in order. Only the first observer of a device has an effect. The device is locked meanwhile:
    /// the observer must not use it.
    pub fn observe(&self, observer: impl Fn(&Observed<'_>) + Send + Sync + 'static) {
        self.shared.observe(Observer::new(observer));
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Keeps the device awake, for a request of several steps.
    pub(crate) fn awake(&self) -> Awake<'_> {
        self.shared.awake()
    }

    /// Returns the open rules of the device's files ([`Shared::open_rules`]).
    pub(crate) fn open_rules<T: Any + Default + Send + Sync>(&self) -> &T {
        self.shared.open_rules()
    }

    /// Returns whether both are handles to the same device.
    pub(crate) fn is(&self, other: &DeviceFile) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(crate) fn downgrade(&self) -> Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    /// VFIO_DEVICE_GET_INFO.
    pub fn info(&self) -> Info {
        self.shared.active().info.clone()
    }

    /// VFIO_DEVICE_GET_REGION_INFO. EINVAL for an index the device does not have.
    pub fn region_info(&self, index: u32) -> Result<Region, Errno> {
        let mut core = self.shared.active();
        core.describe_region(index);
        core.region(index).cloned()
    }

    /// VFIO_DEVICE_GET_IRQ_INFO. EINVAL for an index the device does not have.
    pub fn irq_info(&self, index: u32) -> Result<Irq, Errno> {
        let core = self.shared.active();
        if index >= core.info.num_irqs {
            return Err(Errno::EINVAL);
        }
        core.driver.irq(index)
    }

    /// VFIO_DEVICE_SET_IRQS on the interrupts from `start` on, answered as vfio-pci does
    /// (`vfio_pci_intrs.c`).
    ///
    /// On a PCI device one of INTx, MSI and MSI-X is in use: the first eventfds for it enable it, and
    /// [`IrqAction::Trigger`] with [`IrqData::None`] of 0 disables it. INTx can be masked and unmasked, and
    /// masks itself. An index of another bus that has one interrupt answers as ERR and REQ do, one that has
    /// more as MSI.
    ///
    /// The setup belongs to the user, not to the device's state: a reset keeps eventfds and mask, a migration does not
    /// transfer them, and the last close of a device opened through a [`Group`](crate::Group) removes them.
    ///
    /// EINVAL for an index or a range that the device does not have, for a descriptor that is not an eventfd, and while
    /// another index is in use; ENOTTY for an action that the index does not support.
    ///
    /// ```
    /// use rustix::event::{EventfdFlags, eventfd};
    /// use whimbrel_device::{
    ///     DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Irq, IrqAction, IrqData, IrqInfoFlags,
    /// };
    ///
    /// struct Line;
    ///
    /// impl Driver for Line {
    ///     fn info(&self) -> Info {
    ///         Info::new(DeviceInfoFlags::PCI).num_irqs(1)
    ///     }
    ///     fn irq(&self, _index: u32) -> Result<Irq, Errno> {
    ///         let flags = IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED;
    ///         Ok(Irq::new(flags, 1))
    ///     }
    /// }
    ///
    /// let device = DeviceFile::new("line", |_| Line);
    /// let eventfd = eventfd(0, EventfdFlags::NONBLOCK)?;
    /// let mut count = [0; 8];
    /// device.set_irqs(0, 0, IrqAction::Trigger, IrqData::Eventfd(vec![Some(eventfd.try_clone()?)]))?;
    /// device.bus().interrupts().set_line(true);
    /// rustix::io::read(&eventfd, &mut count)?;
    /// assert_eq!(u64::from_ne_bytes(count), 1);
    /// // Still asserted, so it is told again.
    /// device.set_irqs(0, 0, IrqAction::Unmask, IrqData::None(1))?;
    /// rustix::io::read(&eventfd, &mut count)?;
    /// assert_eq!(u64::from_ne_bytes(count), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_irqs(&self, index: u32, start: u32, action: IrqAction, data: IrqData) -> Result<(), Errno> {
        let _awake = self.awake();
        let kind = self.irq_range(index, start, data.count()?)?;
        let change = Change { kind, index, start, action: Ok(action), data: data.into_data() };
        self.shared.bus().interrupts().apply(change)
    }

    /// [`DeviceFile::set_irqs`] with DATA_EVENTFD and ACTION_TRIGGER: sets the eventfds of the interrupts from `start`
    /// on, and removes those with `None`.
    pub fn set_irq_triggers(
        &self,
        index: u32,
        start: u32,
        eventfds: Vec<Option<OwnedFd>>,
    ) -> Result<(), Errno> {
        self.set_irqs(index, start, IrqAction::Trigger, IrqData::Eventfd(eventfds))
    }

    /// Makes the kernel's check of a range of interrupts, and describes them.
    pub(crate) fn irq_range(&self, index: u32, start: u32, count: u32) -> Result<Kind, Errno> {
        let core = self.shared.active();
        if index >= core.info.num_irqs {
            return Err(Errno::EINVAL);
        }
        // An index that the driver does not know has no interrupts.
        let irq = core.driver.irq(index).map_err(|_| Errno::EINVAL)?;
        if count >= u32::MAX - start || start >= irq.count || start + count > irq.count {
            return Err(Errno::EINVAL);
        }
        Ok(Kind::of(core.info.flags.contains(DeviceInfoFlags::PCI), index, irq))
    }

    /// Reads from a region. A read is truncated at the region's end; EINVAL past the end, for an index the device does
    /// not have, and for a region that is not readable.
    pub fn read_region(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let mut core = self.shared.active_for_region(index)?;
        let count = core.accessible(index, offset, data.len(), RegionInfoFlags::READ)?;
        if count == 0 {
            return Ok(0);
        }
        let core = &mut *core;
        let read = core.driver.read_region(&core.context, index, offset, &mut data[..count]);
        let (result, state, length) = (read.map(|read| read.min(count)), core.context.state(), data.len());
        self.shared.tell(|| Observed::Region { is_write: false, state, index, offset, length, result });
        result
    }

    /// Writes to a region. A write is truncated at the region's end; EINVAL past the end, for an index the device does
    /// not have, and for a region that is not writable.
    pub fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut core = self.shared.active_for_region(index)?;
        let result = self.shared.write(&mut core, index, offset, data);
        let (state, length) = (core.context.state(), data.len());
        self.shared.tell(|| Observed::Region { is_write: true, state, index, offset, length, result });
        result
    }

    /// `mmap(2)` of a part of a region: returns the file to map shared, and the part's offset in it. `length` is
    /// rounded up to whole pages.
    ///
    /// EINVAL for an index the device does not have, a region that is not mappable, an unaligned start, a range past
    /// the region's last page, and a range outside of a single area of VFIO_REGION_INFO_CAP_SPARSE_MMAP.
    pub fn mmap(&self, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        let mut core = self.shared.active();
        let length = region_mmap::check(core.region(index)?, offset, length)?;
        let core = &mut *core;
        core.driver.mmap(&core.context, index, offset, length)
    }

    /// `mmap(2)` of the device file, by the file's offset, MAP_SHARED or not. Otherwise like [`DeviceFile::mmap`].
    pub fn mmap_file(&self, offset: u64, length: u64, shared: bool) -> Result<FileOffset, Errno> {
        let (index, offset) = split_offset(offset);
        self.region_info(index)?;
        if !shared {
            return Err(Errno::EINVAL);
        }
        self.mmap(index, offset, length)
    }

    /// VFIO_DEVICE_IOEVENTFD: each signal of `eventfd` makes this write to a BAR, a moment later. `None` removes it.
    ///
    /// ENOTTY for a device that is not PCI, EINVAL for a write outside of a BAR and for a descriptor that is not an
    /// eventfd, EEXIST if the write already has an eventfd, ENODEV if one to remove does not exist, ENOSPC for more
    /// than 1000.
    pub fn set_ioeventfd(&self, write: IoeventfdWrite, eventfd: Option<OwnedFd>) -> Result<(), Errno> {
        let _awake = self.awake();
        self.check_pci()?;
        self.tie_ioeventfd(write, eventfd.map(Ok))
    }

    /// Returns the driver's doorbells: the writes that are worth an eventfd of [`DeviceFile::set_ioeventfd`], which
    /// accepts any other write too.
    pub fn doorbells(&self) -> Vec<IoeventfdWrite> {
        self.shared.active().driver.doorbells()
    }

    /// ENOTTY for a device that is not PCI.
    pub(crate) fn check_pci(&self) -> Result<(), Errno> {
        let flags = self.shared.active().info.flags;
        if flags.contains(DeviceInfoFlags::PCI) { Ok(()) } else { Err(Errno::ENOTTY) }
    }

    pub(crate) fn tie_ioeventfd(
        &self,
        write: IoeventfdWrite,
        eventfd: Option<Result<OwnedFd, Errno>>,
    ) -> Result<(), Errno> {
        let size = |region| self.region_info(region).map_or(0, |region| region.size);
        let device = self.downgrade();
        let perform = move |write: &IoeventfdWrite| {
            if let Some(device) = device.upgrade() {
                write_for_signal(&device, write);
            }
        };
        let listener = self.bus().interrupts().listener();
        self.shared.ioeventfds().set(write, eventfd, size, perform, listener)
    }

    /// Closes the device like vfio-pci on the close of its last descriptor: ends the user's interrupts,
    /// ioeventfds, data session and DMA logging, clears its opt-ins, and resets the device if possible.
    /// Returns whether it was reset.
    pub(crate) fn close(&self) -> bool {
        self.shared.lock_without_waking().power.leave(self.bus());
        self.shared.active().revoke_dma_buf();
        self.shared.bus().interrupts().clear();
        self.shared.ioeventfds().clear();
        let reset = self.reset_at_close();
        if let Err(error) = &reset {
            tracing::debug!(device = self.name(), %error, "reset at close failed");
        }
        let mut core = self.shared.active();
        core.end_use();
        core.close();
        reset.is_ok()
    }

    /// Opens the device for its first user.
    pub(crate) fn begin_use(&self) {
        self.shared.begin_use();
    }

    /// Opens and closes the device with its files from now on.
    pub(crate) fn put_behind_files(&self) {
        self.shared.put_behind_files();
    }

    /// VFIO_DEVICE_FEATURE_MIGRATION: returns the device's migration features. ENOTTY for a device that cannot migrate.
    pub fn migration_flags(&self) -> Result<MigrationFlags, Errno> {
        self.shared.active().walk.flags()
    }

    /// Returns the driver's description of its migration data; `None` if the driver has none.
    pub fn compatibility(&self) -> Option<Compatibility> {
        self.shared.active().driver.compatibility()
    }

    /// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, GET.
    pub fn mig_state(&self) -> Result<State, Errno> {
        let core = self.shared.active();
        let state = core.walk.flags().map(|_| core.context.state())?;
        self.shared.tell(|| Observed::GetState(state));
        Ok(state)
    }

    /// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET: brings the device to `to` and returns the data file if the
    /// last step opened a session.
    ///
    /// On the way to any state but RUNNING and PRE_COPY it waits for the device's access to memory in flight
    /// ([`AsyncDma`](crate::AsyncDma)); EBUSY, in the same state, if a write does not end within two seconds.
    ///
    /// A request for the current state succeeds and does nothing. If an arc fails, the device stays in the last state
    /// reached, or is in ERROR: query it with [`DeviceFile::mig_state`]. A failed request leaves an open data file
    /// unchanged.
    pub fn set_mig_state(&self, to: State) -> Result<Option<DataFile>, Errno> {
        let (mut core, is_settled) = self.shared.active_for_state(to);
        let Core { walk, driver, context, in_flight, .. } = &mut *core;
        let from = context.state();
        let opened = is_settled.and_then(|()| walk.to(to, &mut **driver, context));
        // No arc leads to ERROR.
        let passed = walk.way(from, context.state()).chain([context.state()]);
        in_flight.pass(passed.filter(|state| *state != from));
        self.shared.notify_worker();
        let session = walk.session();
        let now = context.state();
        self.shared.tell(|| {
            let result = opened.map(|direction| direction.map(|direction| (session, direction)));
            Observed::SetState { from, to, result, now }
        });
        Ok(opened?.map(|direction| DataFile::new(self.shared.clone(), session, direction)))
    }

    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, in bytes, in any state.
    pub fn mig_data_size(&self) -> Result<u64, Errno> {
        let mut core = self.shared.active();
        let (migration, context) = core.half(|driver| driver.migration())?;
        let (state, result) = (context.state(), migration.data_size(context));
        self.shared.tell(|| Observed::DataSize { state, result });
        result
    }

    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: opts in to REINIT. EINVAL without PRE_COPY.
    pub fn enable_precopy_info_v2(&self) -> Result<(), Errno> {
        let mut core = self.shared.active();
        if !core.walk.flags()?.contains(MigrationFlags::PRE_COPY) {
            return Err(Errno::EINVAL);
        }
        let (migration, context) = core.half(|driver| driver.migration())?;
        let result = migration.enable_precopy_info_v2(context);
        self.shared.tell(|| Observed::PrecopyInfoV2(result));
        core.walk.precopy_info_v2 |= result.is_ok();
        result
    }

    /// Returns whether the user has opted in by [`DeviceFile::enable_precopy_info_v2`].
    pub fn has_precopy_info_v2(&self) -> bool {
        self.shared.precopy_info_v2()
    }

    /// Returns whether the device keeps a log of the memory it writes.
    pub fn has_dma_logging(&self) -> bool {
        self.shared.active().driver.dma_logging().is_some()
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START; returns the page size of the log in bytes.
    pub fn dma_logging_start(&self, ranges: &LoggingRanges) -> Result<u64, Errno> {
        let mut core = self.shared.active();
        let (logging, context) = core.half(|driver| driver.dma_logging())?;
        let result = logging.start(context, ranges);
        self.shared.tell(|| Observed::LoggingStart(result.map(drop)));
        let page_size = result?;
        core.logged = ranges.ranges().to_vec();
        Ok(page_size)
    }

    /// The first address from `from` up to `end` that the last log was started for.
    pub(crate) fn next_logged(&self, from: u64, end: u64) -> Option<u64> {
        let core = self.shared.lock_without_waking();
        let rest = IovaRange::new(from, end.checked_sub(from)?).ok()?;
        core.logged.iter().filter_map(|logged| Some(logged.intersection(rest)?.iova())).min()
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
    pub fn dma_logging_stop(&self) -> Result<(), Errno> {
        let mut core = self.shared.active();
        let (logging, context) = core.half(|driver| driver.dma_logging())?;
        let result = logging.stop(context);
        self.shared.tell(|| Observed::LoggingStop(result));
        result
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT.
    pub fn dma_logging_report(&self, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        let mut core = self.shared.active();
        let (logging, context) = core.half(|driver| driver.dma_logging())?;
        let result = logging.report(context, report);
        self.shared.tell(|| Observed::LoggingReport(result));
        result
    }

    /// Lets the device do some of its own work, as [`Worker`](crate::Worker) does. No effect in a state in which it
    /// does not run.
    ///
    /// An access to memory that waits for the memory's owner ([`AsyncDma`](crate::AsyncDma)) is made within this call,
    /// while other threads can make requests.
    ///
    /// From this call on, [`Context::now`](crate::Context::now) is `now` until the next call sets another time, or a
    /// [`Worker`](crate::Worker) lets the clock run.
    pub fn advance(&self, now: Duration) -> Next {
        self.shared.advance_at(now)
    }

    pub(super) fn wake(&self) {
        self.shared.interrupt_worker();
    }

    pub(super) fn work_until(&self, stop: &AtomicBool) {
        self.shared.work_until(stop);
    }
}

impl From<Arc<Shared>> for DeviceFile {
    fn from(shared: Arc<Shared>) -> DeviceFile {
        DeviceFile { shared }
    }
}

/// Makes the write of an ioeventfd that was signalled.
fn write_for_signal(device: &Shared, write: &IoeventfdWrite) {
    let data = &write.data.to_le_bytes()[..write.width.bytes()];
    if let Err(errno) = device.write_region(write.region, write.offset, data) {
        // Nobody asked who could be told.
        tracing::debug!(device = device.name(), ?write, %errno, "write of an ioeventfd failed");
    }
}
