//! An open device: typed requests, each answered as the kernel answers its ioctl.
//!
//! The state machine's walk and the sessions are kept here. The order of checks on raw bytes is in
//! [`raw`](crate::raw) and `feature`.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vm_memory::FileOffset;
use vmm_sys_util::eventfd::EventFd;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, LoggingRanges};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::session::{self, Direction, Effect};
use whimbrel_protocol::{Errno, MigrationFlags, State, fsm};
use whimbrel_uapi::device::{DeviceInfoFlags, RegionInfoFlags};

use crate::bus::Bus;
use crate::bus::irq::{Change, IrqData, Kind};
use crate::core::data_file::DataFile;
use crate::core::ioeventfds::{IoeventfdWrite, Ioeventfds};
use crate::core::power::{Awake, Power};
use crate::core::region_mmap;
use crate::driver::{Driver, Migration, Next};
use crate::topology::opens::Opens;
use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::irq::IrqAction;
use whimbrel_protocol::precopy::PrecopyReport;

/// Bits of a device file's offset that lie within a region (`VFIO_PCI_OFFSET_SHIFT` in the kernel).
const OFFSET_SHIFT: u32 = 40;

/// Where a region begins in the device file, in bytes.
pub const fn region_offset(index: u32) -> u64 {
    (index as u64) << OFFSET_SHIFT
}

/// The region that an offset of the device file lies in, and the offset within it.
pub const fn split_offset(offset: u64) -> (u32, u64) {
    ((offset >> OFFSET_SHIFT) as u32, offset & ((1 << OFFSET_SHIFT) - 1))
}

/// A device, opened. A clone is another handle to the same device.
///
/// Requests from several threads are served one after the other.
#[derive(Clone, Debug)]
pub struct DeviceFile {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    name: String,
    bus: Bus,
    core: Gate,
    /// Something happened that may give the device work.
    wake: Condvar,
    opened: Instant,
    ioeventfds: Ioeventfds,
    opens: Opens,
}

/// The way to a device's core, which opens the driver's side for who makes a request. Where files stand
/// before the device ([`Group`](crate::Group), [`Cdev`](crate::Cdev)), only they open it.
struct Gate(Mutex<Core>);

pub(crate) struct Core {
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) power: Power,
    /// The driver has been told of a user.
    open: bool,
    opened_by: OpenedBy,
    info: Info,
    regions: Vec<Option<Region>>,
    /// Empty for a device that cannot migrate.
    flags: MigrationFlags,
    state: State,
    /// Number of the last session opened, and whether it is still running.
    session: u64,
    session_open: bool,
    precopy_info_v2: bool,
    /// What the last log that was started is of.
    logged: Vec<IovaRange>,
}

/// Whose the first use of a device is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OpenedBy {
    /// Who makes a request.
    Requests,
    /// Who opens it by its files.
    Files,
}

/// A device's core while a request is executed on it: the device is awake, and goes back to sleep with the
/// last request that needs it.
pub(crate) struct Active<'a> {
    core: MutexGuard<'a, Core>,
    bus: &'a Bus,
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

impl Drop for Active<'_> {
    fn drop(&mut self) {
        let Core { driver, power, .. } = &mut *self.core;
        power.settle(&mut **driver, self.bus);
    }
}

impl DeviceFile {
    /// A device. Its first user opens it: who makes a request, or where it is given to a
    /// [`Group`](crate::Group) or a [`Cdev`](crate::Cdev), who opens it there. `name` stands in errors and
    /// traces; `bus` is the one the driver was given.
    pub fn new(name: impl Into<String>, bus: Bus, driver: Box<dyn Driver>) -> DeviceFile {
        let mut core = Core {
            info: driver.info(),
            driver,
            power: Power::default(),
            open: false,
            opened_by: OpenedBy::Requests,
            regions: Vec::new(),
            flags: MigrationFlags::empty(),
            state: State::Running,
            session: 0,
            session_open: false,
            precopy_info_v2: false,
            logged: Vec::new(),
        };
        core.describe();
        DeviceFile {
            shared: Arc::new(Shared {
                name: name.into(),
                bus,
                core: Gate(Mutex::new(core)),
                wake: Condvar::new(),
                opened: Instant::now(),
                ioeventfds: Ioeventfds::default(),
                opens: Opens::default(),
            }),
        }
    }

    /// The name the device was opened under.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What the device reaches outward.
    pub fn bus(&self) -> &Bus {
        &self.shared.bus
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Keeps the device awake, for a request of several steps.
    pub(crate) fn awake(&self) -> Awake<'_> {
        self.shared.awake()
    }

    pub(crate) fn opens(&self) -> &Opens {
        &self.shared.opens
    }

    /// Whether both are handles to one device.
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
    /// The set-up is the user's and no state of the device: a reset leaves it as it is, mask and eventfds, a
    /// migration does not carry it, and the last close of a device that is opened through a
    /// [`Group`](crate::Group) ends it.
    ///
    /// EINVAL for an index or a range that the device does not have, and while another index is in use;
    /// ENOTTY for an action that the index does not know.
    ///
    /// ```
    /// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
    /// use whimbrel_device::{
    ///     Bus, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Irq, IrqAction, IrqData, IrqInfoFlags,
    /// };
    ///
    /// struct Line;
    ///
    /// impl Driver for Line {
    ///     fn info(&self) -> Info {
    ///         Info { flags: DeviceInfoFlags::PCI, num_regions: 0, num_irqs: 1, capabilities: vec![] }
    ///     }
    ///     fn irq(&self, _index: u32) -> Result<Irq, Errno> {
    ///         let flags = IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED;
    ///         Ok(Irq { flags, count: 1 })
    ///     }
    /// }
    ///
    /// let bus = Bus::new();
    /// let device = DeviceFile::new("line", bus.clone(), Box::new(Line));
    /// let eventfd = EventFd::new(EFD_NONBLOCK)?;
    /// device.set_irqs(0, 0, IrqAction::Trigger, IrqData::Eventfd(vec![Some(eventfd.try_clone()?)]))?;
    /// bus.interrupts().set_line(true);
    /// assert_eq!(eventfd.read()?, 1);
    /// // Still asserted, so it is told again.
    /// device.set_irqs(0, 0, IrqAction::Unmask, IrqData::None(1))?;
    /// assert_eq!(eventfd.read()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_irqs(&self, index: u32, start: u32, action: IrqAction, data: IrqData) -> Result<(), Errno> {
        let _awake = self.awake();
        let kind = self.irq_range(index, start, data.count()?)?;
        let change = Change { kind, index, start, action: Ok(action), data: data.into_data() };
        self.shared.bus.interrupts().apply(change)
    }

    /// [`DeviceFile::set_irqs`] with DATA_EVENTFD and ACTION_TRIGGER: each interrupt from `start` on signals
    /// its eventfd, or nothing for `None`.
    pub fn set_irq_triggers(
        &self,
        index: u32,
        start: u32,
        eventfds: Vec<Option<EventFd>>,
    ) -> Result<(), Errno> {
        self.set_irqs(index, start, IrqAction::Trigger, IrqData::Eventfd(eventfds))
    }

    /// The kernel's check of a range of interrupts, and what they are.
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

    /// Reads from a region. Returns fewer bytes than asked where the region ends; EINVAL past its end, for an
    /// index the device does not have, and for a region that cannot be read.
    pub fn read_region(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let mut core = self.shared.active_for_region(index)?;
        let count = core.accessible(index, offset, data.len(), RegionInfoFlags::READ)?;
        core.driver.read_region(index, offset, &mut data[..count]).map(|read| read.min(count))
    }

    /// Writes to a region. Takes fewer bytes than given where the region ends; EINVAL past its end, for an
    /// index the device does not have, and for a region that cannot be written.
    pub fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut core = self.shared.active_for_region(index)?;
        self.shared.write(&mut core, index, offset, data)
    }

    /// `mmap(2)` of a part of a region: the file to map shared, and where in it the part begins. `length` is
    /// rounded up to whole pages.
    ///
    /// EINVAL for an index the device does not have, a region that cannot be mapped, a start within a page, a
    /// range past the region's last page, and one that is not within a single area of a region with
    /// VFIO_REGION_INFO_CAP_SPARSE_MMAP.
    pub fn mmap(&self, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        let mut core = self.shared.active();
        let length = region_mmap::check(core.region(index)?, offset, length)?;
        core.driver.mmap(index, offset, length)
    }

    /// VFIO_DEVICE_IOEVENTFD: each signal of `eventfd` makes this write to a BAR, a moment later. `None` ends
    /// it.
    ///
    /// ENOTTY for a device that is not PCI, EINVAL for what lies in no BAR, EEXIST if the same write is tied
    /// already, ENODEV if one to untie is not, ENOSPC for more than 1000 of them.
    pub fn set_ioeventfd(&self, write: IoeventfdWrite, eventfd: Option<EventFd>) -> Result<(), Errno> {
        let _awake = self.awake();
        self.check_pci()?;
        self.tie_ioeventfd(write, eventfd.map(Ok))
    }

    /// The writes that the driver calls its doorbells: what it is worth to tie to eventfds with
    /// [`DeviceFile::set_ioeventfd`], which also takes any other.
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
        eventfd: Option<Result<EventFd, Errno>>,
    ) -> Result<(), Errno> {
        let size = |region| self.region_info(region).map_or(0, |region| region.size);
        let listener = self.shared.bus.interrupts().listener();
        self.shared.ioeventfds.set(write, eventfd, size, Arc::downgrade(&self.shared), listener)
    }

    /// VFIO_DEVICE_RESET: the device is as after power-on and in RUNNING, from every state, and its session
    /// is over. What the user has set up of interrupts stays.
    pub fn reset(&self) -> Result<(), Errno> {
        self.reset_by(|driver| driver.reset())
    }

    /// The device's part in a hot reset.
    pub(crate) fn bus_reset(&self) -> Result<(), Errno> {
        self.reset_by(|driver| driver.bus_reset())
    }

    fn reset_by(&self, reset: impl FnOnce(&mut dyn Driver) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut core = self.shared.active();
        reset(&mut *core.driver)?;
        core.session_open = false;
        core.state = State::Running;
        self.shared.wake.notify_all();
        Ok(())
    }

    /// What vfio-pci does when the last descriptor of a device is closed: what the user has set up of
    /// interrupts and ioeventfds ends, its data session and DMA logging too, what it has opted into is
    /// forgotten, and the device is reset if it can be. Whether it was.
    pub(crate) fn close(&self) -> bool {
        self.shared.core.as_it_is().power.leave(&self.shared.bus);
        if let Some(dma_buf) = self.shared.active().driver.dma_buf() {
            dma_buf.revoke();
        }
        self.shared.bus.interrupts().clear();
        self.shared.ioeventfds.clear();
        let reset = self.reset();
        if let Err(error) = &reset {
            tracing::debug!(device = self.name(), %error, "no reset at close");
        }
        let mut core = self.shared.active();
        core.end_use();
        core.close();
        reset.is_ok()
    }

    /// The first user opens the device.
    pub(crate) fn begin_use(&self) {
        self.shared.core.as_it_is().open();
    }

    /// From now on the device is opened and closed as its files are.
    pub(crate) fn put_behind_files(&self) {
        let mut core = self.shared.core.as_it_is();
        if std::mem::replace(&mut core.opened_by, OpenedBy::Files) == OpenedBy::Requests {
            core.close();
        }
    }

    /// VFIO_DEVICE_FEATURE_MIGRATION: what the device supports. ENOTTY for a device that cannot migrate.
    pub fn migration_flags(&self) -> Result<MigrationFlags, Errno> {
        self.shared.active().migration_flags()
    }

    /// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, GET.
    pub fn mig_state(&self) -> Result<State, Errno> {
        let core = self.shared.active();
        core.migration_flags().map(|_| core.state)
    }

    /// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET: brings the device to `to` and returns the data file if the
    /// last step opened a session.
    ///
    /// A request for the present state succeeds and does nothing. If an arc fails, the device stays where the
    /// path has led so far, or is in ERROR; [`DeviceFile::mig_state`] tells. A data file that is already open
    /// is not touched by a request that fails.
    pub fn set_mig_state(&self, to: State) -> Result<Option<DataFile>, Errno> {
        let mut core = self.shared.active();
        let opened = core.walk(to);
        self.shared.wake.notify_all();
        let session = core.session;
        Ok(opened?.map(|direction| DataFile::new(self.shared.clone(), session, direction)))
    }

    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, in bytes, in any state.
    pub fn mig_data_size(&self) -> Result<u64, Errno> {
        self.shared.active().migration()?.data_size()
    }

    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: the user understands REINIT from now on. EINVAL without
    /// PRE_COPY.
    pub fn enable_precopy_info_v2(&self) -> Result<(), Errno> {
        let mut core = self.shared.active();
        if !core.migration_flags()?.contains(MigrationFlags::PRE_COPY) {
            return Err(Errno::EINVAL);
        }
        core.migration()?.enable_precopy_info_v2()?;
        core.precopy_info_v2 = true;
        Ok(())
    }

    /// Whether the user has opted in by [`DeviceFile::enable_precopy_info_v2`].
    pub fn has_precopy_info_v2(&self) -> bool {
        self.shared.precopy_info_v2()
    }

    /// Whether the device keeps a log of the memory it writes.
    pub fn has_dma_logging(&self) -> bool {
        self.shared.active().driver.dma_logging().is_some()
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START; returns the page size of the log in bytes.
    pub fn dma_logging_start(&self, ranges: &LoggingRanges) -> Result<u64, Errno> {
        let mut core = self.shared.active();
        let page_size = core.driver.dma_logging().ok_or(Errno::ENOTTY)?.start(ranges)?;
        core.logged = ranges.ranges().to_vec();
        Ok(page_size)
    }

    /// The first address from `from` up to `end` that the last log was started for.
    pub(crate) fn next_logged(&self, from: u64, end: u64) -> Option<u64> {
        let core = self.shared.core.as_it_is();
        let rest = IovaRange::new(from, end.checked_sub(from)?).ok()?;
        core.logged.iter().filter_map(|logged| Some(logged.intersection(rest)?.iova())).min()
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
    pub fn dma_logging_stop(&self) -> Result<(), Errno> {
        self.shared.active().driver.dma_logging().ok_or(Errno::ENOTTY)?.stop()
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT.
    pub fn dma_logging_report(&self, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.shared.active().driver.dma_logging().ok_or(Errno::ENOTTY)?.report(report)
    }

    /// Lets the device do some of its own work, as [`Worker`](crate::Worker) does. In a state where it does
    /// not run nothing happens.
    pub fn advance(&self, now: std::time::Duration) -> Next {
        self.shared.core.as_it_is().advance(now)
    }

    pub(crate) fn wake(&self) {
        // With the lock, so that a worker about to wait does not miss it.
        let _core = self.shared.core.as_it_is();
        self.shared.wake.notify_all();
    }

    pub(crate) fn work_until(&self, stop: &AtomicBool) {
        let shared = &self.shared;
        let mut core = shared.core.as_it_is();
        while !stop.load(Ordering::Acquire) {
            match core.advance(shared.opened.elapsed()) {
                // Requests wait for this lock: without fairness a busy device would keep them out.
                Next::Now => MutexGuard::bump(&mut core),
                Next::At(time) => {
                    let wait = time.saturating_sub(shared.opened.elapsed());
                    shared.wake.wait_for(&mut core, wait);
                }
                Next::Idle => shared.wake.wait(&mut core),
            }
        }
    }
}

impl Shared {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn ioeventfds(&self) -> &Ioeventfds {
        &self.ioeventfds
    }

    pub(crate) fn active(&self) -> Active<'_> {
        self.activate(self.core.lock())
    }

    /// For what is no use of the device, and wakes nothing.
    pub(crate) fn as_it_is(&self) -> MutexGuard<'_, Core> {
        self.core.as_it_is()
    }

    /// As [`Shared::active`], but an access to no region at all wakes nothing (`vfio_pci_rw()`).
    fn active_for_region(&self, index: u32) -> Result<Active<'_>, Errno> {
        let core = self.core.lock();
        if index >= core.info.num_regions {
            return Err(Errno::EINVAL);
        }
        Ok(self.activate(core))
    }

    fn activate<'a>(&'a self, mut core: MutexGuard<'a, Core>) -> Active<'a> {
        if core.power.is_suspended() {
            let Core { driver, power, .. } = &mut *core;
            power.resume(&mut **driver, &self.bus);
            // It may have work, if this is for longer than a request.
            self.wake.notify_all();
        }
        Active { core, bus: &self.bus }
    }

    /// A write that no request makes: EIO from a device that sleeps, which it does not wake.
    pub(crate) fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut core = self.core.lock();
        if core.power.is_suspended() {
            return Err(Errno::EIO);
        }
        self.write(&mut core, index, offset, data)
    }

    fn write(&self, core: &mut Core, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let count = core.accessible(index, offset, data.len(), RegionInfoFlags::WRITE)?;
        let written = core.driver.write_region(index, offset, &data[..count])?;
        self.wake.notify_all();
        Ok(written.min(count))
    }

    pub(crate) fn read_state(&self, session: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut core = self.core.lock();
        core.check_session(session)?;
        if buffer.is_empty() {
            return Ok(0);
        }
        let length = buffer.len();
        match core.migration()?.read(buffer)? {
            0 if core.state.is_precopy() => Err(Errno::ENOMSG),
            read => Ok(read.min(length)),
        }
    }

    pub(crate) fn write_state(&self, session: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut core = self.core.lock();
        core.check_session(session)?;
        if data.is_empty() {
            return Ok(0);
        }
        core.migration()?.write(data).map(|written| written.min(data.len()))
    }

    pub(crate) fn precopy(&self, session: u64) -> Result<PrecopyReport, Errno> {
        let mut core = self.core.lock();
        // The kernel's drivers look at the device's state before they look at the file.
        if !core.state.is_precopy() {
            return Err(Errno::EINVAL);
        }
        core.check_session(session)?;
        let report = core.migration()?.precopy()?;
        Ok(PrecopyReport { reinit: report.reinit && core.precopy_info_v2, ..report })
    }

    pub(crate) fn precopy_info_v2(&self) -> bool {
        self.core.lock().precopy_info_v2
    }
}

impl From<Arc<Shared>> for DeviceFile {
    fn from(shared: Arc<Shared>) -> DeviceFile {
        DeviceFile { shared }
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Core> {
        let mut core = self.as_it_is();
        if core.opened_by == OpenedBy::Requests {
            core.open();
        }
        core
    }

    /// For what is no use of the device.
    fn as_it_is(&self) -> MutexGuard<'_, Core> {
        self.0.lock()
    }
}

impl Core {
    pub(crate) fn is_pci(&self) -> bool {
        self.info.flags.contains(DeviceInfoFlags::PCI)
    }

    fn open(&mut self) {
        if !std::mem::replace(&mut self.open, true) {
            self.driver.open_device();
            self.describe();
        }
    }

    fn close(&mut self) {
        if std::mem::replace(&mut self.open, false) {
            self.driver.close_device();
            self.describe();
        }
    }

    /// Asks the driver what the device is.
    fn describe(&mut self) {
        self.info = self.driver.info();
        self.regions = vec![None; self.info.num_regions as usize];
        (0..self.info.num_regions).for_each(|index| self.describe_region(index));
        self.flags = self.driver.migration().map_or(MigrationFlags::empty(), |migration| migration.flags());
        if self.flags.is_empty() {
            self.state = State::Running;
        }
    }

    fn describe_region(&mut self, index: u32) {
        if let Some(known) = self.regions.get_mut(index as usize) {
            let region = self.driver.region(index).ok();
            *known = region.map(|region| Region { offset: region_offset(index), ..region });
        }
    }

    /// What a user has begun and no reset ends.
    fn end_use(&mut self) {
        self.session_open = false;
        self.precopy_info_v2 = false;
        if let Some(logging) = self.driver.dma_logging() {
            // Nobody is left to be told.
            let _ = logging.stop();
        }
    }

    fn migration_flags(&self) -> Result<MigrationFlags, Errno> {
        if self.flags.is_empty() { Err(Errno::ENOTTY) } else { Ok(self.flags) }
    }

    fn migration(&mut self) -> Result<&mut dyn Migration, Errno> {
        self.driver.migration().ok_or(Errno::ENOTTY)
    }

    /// Bytes of a region, 0 for one that is not there.
    pub(crate) fn region_size(&self, index: u32) -> u64 {
        self.region(index).map_or(0, |region| region.size)
    }

    fn region(&self, index: u32) -> Result<&Region, Errno> {
        self.regions.get(index as usize).and_then(Option::as_ref).ok_or(Errno::EINVAL)
    }

    /// How many bytes of an access lie in the region, in the order of the kernel's checks.
    fn accessible(
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

    fn check_session(&self, session: u64) -> Result<(), Errno> {
        if self.session_open && self.session == session { Ok(()) } else { Err(Errno::ENODEV) }
    }

    /// Executes the arcs to `to`, one after the other, and says what session the last one opened.
    fn walk(&mut self, to: State) -> Result<Option<Direction>, Errno> {
        let flags = self.migration_flags()?;
        let mut opened = None;
        while self.state != to {
            let step = fsm::next(flags, self.state, to).ok_or(Errno::EINVAL)?;
            let from = self.state;
            if let Err(error) = self.migration()?.arc(from, step) {
                tracing::debug!(%from, to = %step, %error, "arc failed");
                if let ArcError::Broken(_) = error {
                    self.state = State::Error;
                    self.session_open = false;
                }
                return Err(error.errno());
            }
            tracing::trace!(%from, to = %step, "arc");
            self.state = step;
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

    fn advance(&mut self, now: std::time::Duration) -> Next {
        let runs = self.state.is_running() && !self.power.is_suspended();
        if runs { self.driver.advance(now) } else { Next::Idle }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name).finish_non_exhaustive()
    }
}
