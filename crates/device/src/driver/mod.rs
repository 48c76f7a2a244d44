//! What a migration driver implements.
//!
//! The contract is that of the kernel's `struct vfio_migration_ops` and `struct vfio_log_ops`
//! (`include/linux/vfio.h`), less what every kernel driver writes again: the walk through the state machine,
//! the data file and its errnos, and the bookkeeping of sessions are the core's.

use std::fs::File;
use std::time::Duration;

use vm_memory::FileOffset;
use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::device::IrqInfoFlags;
use whimbrel_uapi::feature::RegionDmaRange;

use crate::core::graphics::Graphics;
use crate::core::ioeventfds::IoeventfdWrite;
use crate::core::power::LowPower;

/// A device as its driver sees it. All calls for one device come one at a time.
pub trait Driver: Send {
    /// The first user opens the device (`vfio_device_ops.open_device`). What the driver says of the device
    /// holds until the last one has closed it, and is then asked anew.
    fn open_device(&mut self) {}

    /// The last user has closed the device (`vfio_device_ops.close_device`), which was reset if it can be.
    fn close_device(&mut self) {}

    /// The kind of device, and how many regions and IRQ indices it has.
    fn info(&self) -> Info;

    /// Region `index`, which is below `num_regions`. The core fills in the offset. EINVAL for one the driver
    /// does not know. It is asked when the device is opened and at each VFIO_DEVICE_GET_REGION_INFO; an
    /// access is judged by the last answer.
    fn region(&self, index: u32) -> Result<Region, Errno> {
        let _ = index;
        Err(Errno::EINVAL)
    }

    /// IRQ index `index`, which is below `num_irqs`.
    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let _ = index;
        Ok(Irq { flags: IrqInfoFlags::empty(), count: 0 })
    }

    /// Reads from a region and returns how many bytes were read. `offset` and `data` lie inside the region.
    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let _ = (index, offset, data);
        Err(Errno::EINVAL)
    }

    /// Writes to a region and returns how many bytes were taken. `offset` and `data` lie inside the region.
    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let _ = (index, offset, data);
        Err(Errno::EINVAL)
    }

    /// The device's doorbells: writes to a BAR that a user may leave to eventfds
    /// ([`DeviceFile::set_ioeventfd`](crate::DeviceFile::set_ioeventfd)), each of one value at one offset.
    /// Where a server offers them to its client (VFIO_USER_DEVICE_GET_REGION_IO_FDS), a VMM gives them to KVM,
    /// and a guest's write reaches the device without waking the VMM.
    ///
    /// Name only writes that are right at any moment and any number of times. The guest goes on before such a
    /// write is made: it comes a moment later, perhaps behind one that the guest made after it, and several
    /// together are made once. A register that takes an index or a count is none.
    ///
    /// As with the rest of what a driver says of its device, the answer holds while the device is open. A
    /// write that lies in no BAR cannot be had, and only PCI devices have any.
    fn doorbells(&self) -> Vec<IoeventfdWrite> {
        Vec::new()
    }

    /// The memory behind `length` bytes of region `index` from `offset` on: a file that the user maps shared.
    ///
    /// Asked only for whole pages that the region's MMAP flag and its sparse areas allow. How the file is
    /// open says what the user may do with it, and it holds all of these bytes as long as a user may have it
    /// mapped. The driver does not see accesses through a mapping. EINVAL for a part that cannot be mapped
    /// now.
    fn mmap(&mut self, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        let _ = (index, offset, length);
        Err(Errno::EINVAL)
    }

    /// Brings the device to the state it has after power-on. The core ends the data session and sets RUNNING.
    ///
    /// ENOTTY if the device cannot be reset; its `info()` then lacks the RESET flag.
    fn reset(&mut self) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    /// Brings the device to the state it has after power-on, for a hot reset: its bus or slot is reset, with
    /// all that is on it. A device that cannot be reset by itself can still be reset in this way.
    fn bus_reset(&mut self) -> Result<(), Errno> {
        self.reset()
    }

    /// The device's migration half; `None` for a device that cannot migrate. The answer does not change while
    /// the device is open.
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        None
    }

    /// The device's own log of the memory it writes; `None` if it keeps none. The answer does not change
    /// while the device is open.
    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        None
    }

    /// What puts the device to sleep; `None` for one that always is awake. Asked for of PCI devices only. The
    /// answer never changes.
    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        None
    }

    /// The switch for DMA of a CDX device; `None` for one that has none. The answer never changes.
    fn bus_master(&mut self) -> Option<&mut dyn BusMaster> {
        None
    }

    /// What gives parts of a BAR to others as a file; `None` if nothing does. The answer never changes.
    fn dma_buf(&mut self) -> Option<&mut dyn DmaBuf> {
        None
    }

    /// The error records of a device on s390; `None` for one that keeps none. The answer never changes.
    fn zpci_errors(&mut self) -> Option<&mut dyn ZpciErrors> {
        None
    }

    /// The device's display; `None` for one without. The answer never changes.
    fn graphics(&mut self) -> Option<&mut dyn Graphics> {
        None
    }

    /// Does a little of what the device does by itself: work it was given, state that changes. Called only in
    /// a state where the device runs. `now` is the time since some fixed moment and never goes back.
    ///
    /// A call takes well under a millisecond, because requests wait for it.
    fn advance(&mut self, now: Duration) -> Next {
        let _ = now;
        Next::Idle
    }
}

/// When a device wants its next [`Driver::advance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: there is more to do.
    Now,
    /// At this time, or after the next request.
    At(Duration),
    /// After the next request.
    Idle,
}

/// The migration half of a driver.
///
/// The core asks only for arcs that [`whimbrel_protocol::fsm`] gives for [`Migration::flags`], from the state
/// the device is in. It keeps the state itself.
pub trait Migration {
    /// What is supported; STOP_COPY at least. The answer never changes.
    fn flags(&self) -> MigrationFlags;

    /// Executes one arc completely before it returns.
    ///
    /// Entering a saving state from outside, or RESUMING, begins a data session; leaving them ends it. On the
    /// arc RESUMING to STOP the data written is judged: EINVAL if it is short or wrong in any way, and then
    /// the device stays in RESUMING until it is reset.
    fn arc(&mut self, from: State, to: State) -> Result<(), ArcError>;

    /// An estimate in bytes of what STOP_COPY will yield, in any state.
    fn data_size(&mut self) -> Result<u64, Errno>;

    /// Reads the next bytes of the device's state, at least one, in order. 0 is the end: for good in
    /// STOP_COPY, for now in PRE_COPY and PRE_COPY_P2P, where the core answers ENOMSG as the header says.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Takes the next bytes of a state to load, in any segmentation, and returns how many were taken.
    ///
    /// Data that cannot be right is refused with EINVAL as soon as it is seen, data past the end with ENOMEM.
    fn write(&mut self, data: &[u8]) -> Result<usize, Errno>;

    /// How much can be read now; called in PRE_COPY and PRE_COPY_P2P only.
    fn precopy(&mut self) -> Result<PrecopyReport, Errno> {
        Ok(PrecopyReport::default())
    }

    /// The user understands [`PrecopyReport::reinit`] from now on.
    fn enable_precopy_info_v2(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

/// A device's own log of the memory it writes.
pub trait DmaLogging {
    /// Starts to log writes to `ranges` and returns the page size in bytes that the log keeps, which need not
    /// be the one asked for. EINVAL if a log is running.
    fn start(&mut self, ranges: &LoggingRanges) -> Result<u64, Errno>;

    /// Stops the log. Fine if none is running.
    fn stop(&mut self) -> Result<(), Errno>;

    /// Tells and clears the log of the range asked about. EINVAL if none is running.
    fn report(&mut self, report: &mut DirtyReport<'_>) -> Result<(), Errno>;
}

/// The switch for DMA of a CDX device, which has no command register to be written.
pub trait BusMaster {
    /// The device may do DMA from now on, or no more.
    fn set(&mut self, master: bool) -> Result<(), Errno>;
}

/// The half of a driver that gives parts of a BAR to others as a file.
///
/// ```
/// use std::fs::File;
/// use std::os::unix::fs::FileExt;
/// use whimbrel_device::{Bus, DeviceFile, DeviceInfoFlags, DmaBuf, Driver, Errno, Info};
/// use whimbrel_device::{Region, RegionDmaRange, RegionInfoFlags};
///
/// /// A card whose BAR 0 is a page of memory.
/// struct Card { memory: File }
///
/// fn memory() -> Result<File, Errno> {
///     # use nix::sys::memfd::{MFdFlags, memfd_create};
///     let file = File::from(memfd_create(c"bar", MFdFlags::MFD_CLOEXEC)?);
///     file.set_len(0x1000).map_err(|_| Errno::ENOMEM)?;
///     Ok(file)
/// }
///
/// impl Driver for Card {
///     fn info(&self) -> Info {
///         Info { flags: DeviceInfoFlags::PCI, num_regions: 1, num_irqs: 0, capabilities: vec![] }
///     }
///     fn region(&self, _index: u32) -> Result<Region, Errno> {
///         Ok(Region { flags: RegionInfoFlags::READ, size: 0x1000, offset: 0, capabilities: vec![] })
///     }
///     fn dma_buf(&mut self) -> Option<&mut dyn DmaBuf> {
///         Some(self)
///     }
/// }
///
/// impl DmaBuf for Card {
///     fn export(&mut self, _region: u32, _ranges: &[RegionDmaRange]) -> Result<File, Errno> {
///         // There is one page, so one range. Several would take a file that udmabuf makes.
///         self.memory.try_clone().map_err(|_| Errno::EMFILE)
///     }
///     fn revoke(&mut self) {
///         if let Ok(fresh) = memory() {
///             let _ = std::mem::replace(&mut self.memory, fresh).set_len(0);
///         }
///     }
/// }
///
/// let device = DeviceFile::new("card", Bus::new(), Box::new(Card { memory: memory()? }));
/// let page = RegionDmaRange { offset: 0, length: 0x1000 };
/// let read_write = 2;
/// let buffer = device.dma_buf(0, read_write, &[page])?;
/// buffer.write_at(b"seen by the device", 0)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait DmaBuf {
    /// Whether the BAR is memory that can be given. EINVAL for one of ports.
    fn check(&self, region: u32) -> Result<(), Errno> {
        let _ = region;
        Ok(())
    }

    /// A file whose bytes are those of the ranges, one range after the other, and are shared with the device:
    /// a file of memory, or a DMA-buf that udmabuf made of one. The ranges lie within the BAR and are of
    /// whole pages.
    fn export(&mut self, region: u32, ranges: &[RegionDmaRange]) -> Result<File, Errno>;

    /// The user is gone: what [`DmaBuf::export`] gave leads to nothing any more. A driver that gave the
    /// memory of its BAR goes on with a new file and makes the old one empty.
    fn revoke(&mut self);
}

/// The error records of a PCI device on s390.
pub trait ZpciErrors {
    /// Takes the oldest record: as many bytes as
    /// [`ZpciBase::ccdf_err_length`](whimbrel_protocol::info::ZpciBase::ccdf_err_length) says, all zero if
    /// there is none.
    fn take(&mut self) -> Result<Vec<u8>, Errno>;
}
