//! The traits that a driver implements.
//!
//! The contract is that of the kernel's `struct vfio_migration_ops` and `struct vfio_log_ops`
//! (`include/linux/vfio.h`), without the parts that every kernel driver repeats: the core walks the state machine,
//! handles the data file with its errnos, and keeps track of sessions.

mod context;
mod dma_buf;
mod dma_logging;
mod doorbell;
mod graphics;
mod low_power;
mod migration;
mod other_buses;

use std::time::Duration;

use whimbrel_memory::FileOffset;
use whimbrel_protocol::Errno;
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_uapi::device::IrqInfoFlags;

pub use self::context::Context;
pub use self::dma_buf::DmaBuf;
pub use self::dma_logging::DmaLogging;
pub use self::doorbell::{IoeventfdWrite, WriteWidth};
pub use self::graphics::{Graphics, Plane, PlaneKind};
pub use self::low_power::LowPower;
pub use self::migration::Migration;
pub use self::other_buses::{BusMaster, ZpciErrors};

/// A device as its driver sees it. All calls for one device come one at a time.
///
/// Each call that makes the driver act passes a [`Context`]: the device's bus, its migration state and the time. Calls
/// that only ask the driver to describe the device do not.
pub trait Driver: Send {
    /// The first user opens the device (`vfio_device_ops.open_device`). What the driver says of the device
    /// holds until the last one has closed it, and is then asked anew.
    fn open_device(&mut self, context: &Context) {
        let _ = context;
    }

    /// The last user has closed the device (`vfio_device_ops.close_device`), which was reset if it can be.
    fn close_device(&mut self, context: &Context) {
        let _ = context;
    }

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
    fn read_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        let _ = (context, index, offset, data);
        Err(Errno::EINVAL)
    }

    /// Writes to a region and returns how many bytes were taken. `offset` and `data` lie inside the region.
    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        let _ = (context, index, offset, data);
        Err(Errno::EINVAL)
    }

    /// The device's doorbells: writes to a BAR that a user may leave to eventfds
    /// ([`DeviceFile::set_ioeventfd`](crate::DeviceFile::set_ioeventfd)), each of one value at one offset.
    /// Where a server offers them to its client (VFIO_USER_DEVICE_GET_REGION_IO_FDS), a VMM gives them to KVM,
    /// and a guest's write reaches the device without waking the VMM.
    ///
    /// Name only writes that are right at any moment and any number of times. The guest goes on before such a
    /// write is made: it comes a moment later, perhaps behind one that the guest made after it, and several
    /// together are made once. A register that takes an index or a count is not a doorbell.
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
    fn mmap(&mut self, context: &Context, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        let _ = (context, index, offset, length);
        Err(Errno::EINVAL)
    }

    /// Brings the device to the state it has after power-on. The core ends the data session and sets RUNNING.
    ///
    /// ENOTTY if the device cannot be reset; its `info()` then lacks the RESET flag.
    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        let _ = context;
        Err(Errno::ENOTTY)
    }

    /// Brings the device to the state it has after power-on, for a hot reset: its bus or slot is reset, with
    /// all that is on it. A device that cannot be reset by itself can still be reset in this way.
    fn bus_reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.reset(context)
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

    /// The half that puts the device to sleep; `None` for one that always is awake. Asked for of PCI devices only. The
    /// answer never changes.
    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        None
    }

    /// The switch for DMA of a CDX device; `None` for one that has none. The answer never changes.
    fn bus_master(&mut self) -> Option<&mut dyn BusMaster> {
        None
    }

    /// The half that gives parts of a BAR to others as a file; `None` for a device without. The answer never changes.
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

    /// Advances the device's own work by a small step: submitted jobs, changing state. Called only in a state where
    /// the device runs.
    ///
    /// A call takes well under a millisecond, because requests wait for it.
    fn advance(&mut self, context: &Context) -> Next {
        let _ = context;
        Next::Idle
    }
}

/// When a device wants its next [`Driver::advance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: there is more to do.
    Now,
    /// At this time ([`Context::now`]), or after the next request.
    At(Duration),
    /// After the next request.
    Idle,
}

/// Boxes a driver, for code that chooses a driver's type at run time.
impl<D: Driver + 'static> From<D> for Box<dyn Driver> {
    fn from(driver: D) -> Box<dyn Driver> {
        Box::new(driver)
    }
}
