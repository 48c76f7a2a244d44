//! The traits that a driver implements.
//!
//! The contract is that of the kernel's `struct vfio_migration_ops` and `struct vfio_log_ops`
//! (`include/linux/vfio.h`), without the parts that every kernel driver repeats: the core walks the state machine,
//! handles the data file with its errnos, and keeps track of sessions.

mod async_dma;
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
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::info::{Info, Irq, Region};
#[cfg(doc)]
use whimbrel_protocol::reset::ResetRule;
use whimbrel_uapi::device::IrqInfoFlags;

pub use self::async_dma::AsyncDma;
pub use self::context::Context;
pub use self::dma_buf::DmaBuf;
pub use self::dma_logging::DmaLogging;
pub use self::doorbell::{IoeventfdWrite, WriteWidth};
pub use self::graphics::{Graphics, Plane, PlaneKind};
pub use self::low_power::LowPower;
pub use self::migration::Migration;
pub use self::other_buses::{BusMaster, ZpciErrors};

/// A device's driver. Calls for one device are serialized.
///
/// Each call that makes the driver act passes a [`Context`]: the device's bus, its migration state and the time. Calls
/// that only ask the driver to describe the device do not.
pub trait Driver: Send {
    /// Opens the device for its first user (`vfio_device_ops.open_device`). The core caches the driver's description of
    /// the device until the last close, and then queries it again.
    fn open_device(&mut self, context: &Context) {
        let _ = context;
    }

    /// Handles the last close of the device (`vfio_device_ops.close_device`), after a reset if possible. A device that is
    /// dropped while it is open is closed without a reset.
    ///
    /// A driver that could not be reset ends its device's DMA here: the memory of the next user is not that of this one.
    fn close_device(&mut self, context: &Context) {
        let _ = context;
    }

    /// Returns the kind of device, and its numbers of regions and IRQ indices.
    fn info(&self) -> Info;

    /// Returns region `index`, which is below `num_regions`. The core sets the offset. EINVAL for an unknown one.
    /// Called when the device is opened and at each VFIO_DEVICE_GET_REGION_INFO; accesses are checked against the last
    /// result.
    fn region(&self, index: u32) -> Result<Region, Errno> {
        let _ = index;
        Err(Errno::EINVAL)
    }

    /// Returns IRQ index `index`, which is below `num_irqs`.
    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let _ = index;
        Ok(Irq::new(IrqInfoFlags::empty(), 0))
    }

    /// Reads from a region, and returns the number of bytes read. `offset` and `data` lie within the region.
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

    /// Writes to a region, and returns the number of bytes accepted. `offset` and `data` lie within the region.
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

    /// Returns the device's doorbells: writes of one value at one offset of a BAR that a user may replace by eventfds
    /// ([`DeviceFile::set_ioeventfd`](crate::DeviceFile::set_ioeventfd)). A server offers them to its client
    /// (VFIO_USER_DEVICE_GET_REGION_IO_FDS); a VMM passes them to KVM, and a guest's write reaches the device without
    /// an exit to the VMM.
    ///
    /// Return only writes that may be delayed, reordered and merged: the guest continues before such a write is made, a
    /// later write of the guest may overtake it, and several are made once. A register that takes an index or a count
    /// is not a doorbell.
    ///
    /// The result is cached while the device is open. Writes outside of BARs are ignored, and only PCI devices have
    /// doorbells.
    fn doorbells(&self) -> Vec<IoeventfdWrite> {
        Vec::new()
    }

    /// Returns the memory behind `length` bytes of region `index` from `offset` on: a file that the user maps shared.
    ///
    /// Called only for whole pages that the region's MMAP flag and sparse areas allow. The file's access mode limits
    /// the user's access, and the file must keep these bytes as long as a user may have it mapped. The driver does not
    /// see accesses through a mapping. EINVAL for a part that cannot be mapped now.
    ///
    /// [`RegionMemory`](crate::RegionMemory) is such memory. A program under `whimbrel run` maps only a file in memory with a
    /// sealed size, in which the region lies as in the program's device file: region `index` from
    /// `REGION_MEMORY_START + region_offset(index)` on ([`RegionMemory::for_programs`](crate::RegionMemory::for_programs)).
    /// VFIO_DEVICE_GET_REGION_INFO offers it no other mapping, and asks for the memory to find out.
    fn mmap(&mut self, context: &Context, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        let _ = (context, index, offset, length);
        Err(Errno::EINVAL)
    }

    /// Resets the device to its power-on state. The core ends the data session and sets RUNNING. In pre-copy
    /// it calls [`Driver::reset_in_precopy`] instead if the device's owner wants a migration to survive resets.
    ///
    /// ENOTTY if the device cannot be reset; its `info()` then lacks the RESET flag.
    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        let _ = context;
        Err(Errno::ENOTTY)
    }

    /// Resets the device to its power-on state in a hot reset of its bus or slot. A device that cannot be reset on its
    /// own can still be reset in this way.
    fn bus_reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.reset(context)
    }

    /// Returns whether the driver implements [`Driver::reset_in_precopy`]. The result does not change while the device is
    /// open.
    fn can_reset_in_precopy(&self) -> bool {
        false
    }

    /// Resets the device in PRE_COPY or PRE_COPY_P2P and keeps its data session: the driver's part in
    /// [`ResetRule::KeepsPrecopy`].
    ///
    /// The device is in its power-on state afterwards, as after [`Driver::reset`], but its migration state, its session
    /// and its DMA log go on. The stream continues where it is: bytes that were read stay valid, and everything that the
    /// reset has changed is read again. After an error the device is as it was.
    ///
    /// Called only if [`Driver::can_reset_in_precopy`] returns true. ENOTTY, the default, if not.
    fn reset_in_precopy(&mut self, context: &Context) -> Result<(), Errno> {
        let _ = context;
        Err(Errno::ENOTTY)
    }

    /// Returns the migration half; `None` for a device that cannot migrate. The result does not change while the device
    /// is open.
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        None
    }

    /// Returns the driver's description of its migration data: [`Migration::compatibility`]. A driver that migrates by
    /// other means, such as a migration region, returns its own.
    fn compatibility(&mut self) -> Option<Compatibility> {
        self.migration()?.compatibility()
    }

    /// Returns the device's own DMA log; `None` without one. The result does not change while the device is open.
    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        None
    }

    /// Returns the half whose accesses to memory the core makes, without keeping requests waiting; `None` for a driver
    /// that makes its own. Whether there is one never changes.
    fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
        None
    }

    /// Returns the low-power half; `None` for a device that is always awake. Called for PCI devices only. The result
    /// never changes.
    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        None
    }

    /// Returns the bus master switch of a CDX device; `None` without one. The result never changes.
    fn bus_master(&mut self) -> Option<&mut dyn BusMaster> {
        None
    }

    /// Returns the half that exports parts of a BAR as a file; `None` without it. The result never changes.
    fn dma_buf(&mut self) -> Option<&mut dyn DmaBuf> {
        None
    }

    /// Returns the error records of a device on s390; `None` without them. The result never changes.
    fn zpci_errors(&mut self) -> Option<&mut dyn ZpciErrors> {
        None
    }

    /// Returns the device's display; `None` without one. The result never changes.
    fn graphics(&mut self) -> Option<&mut dyn Graphics> {
        None
    }

    /// Advances the device's own work by a small step: submitted jobs, changing state. Called only in a state where
    /// the device runs, and not while it is closed.
    ///
    /// A [`Worker`](crate::Worker) calls it ([`WorkingDevice::start`](crate::WorkingDevice::start)), or the owner of the
    /// device ([`DeviceFile::advance`](crate::DeviceFile::advance)); without either it is never called.
    ///
    /// A call takes well under a millisecond, because requests wait for it. A driver whose device accesses memory
    /// implements [`AsyncDma`]: an access by [`Context::bus`] may wait for the memory's owner.
    fn advance(&mut self, context: &Context) -> Next {
        let _ = context;
        Next::Idle
    }

    /// Returns whether the device may have something to do in [`Driver::advance`]. Called after a write to a region: only
    /// if it returns true, the default, a waiting [`Worker`](crate::Worker) is woken, which costs more than most writes.
    ///
    /// Return false only if the last call of `advance` would still have the same result. After a reset, a state change
    /// and at the time of [`Next::At`] the worker calls `advance` in any case.
    fn has_work(&self) -> bool {
        true
    }
}

/// The time of a device's next [`Driver::advance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller must wait in every way")]
pub enum Next {
    /// At once: work remains.
    Now,
    /// At this time ([`Context::now`]), or after a request that may have given the device work ([`Driver::has_work`]).
    At(Duration),
    /// After a request that may have given the device work.
    Idle,
}

/// Boxes a driver, for code that chooses a driver's type at run time.
impl<D: Driver + 'static> From<D> for Box<dyn Driver> {
    fn from(driver: D) -> Box<dyn Driver> {
        Box::new(driver)
    }
}
