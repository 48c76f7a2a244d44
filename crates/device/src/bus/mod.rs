//! A device's outbound interface: DMA, interrupts, the wake line and the work line.

pub mod dma;
pub(crate) mod irq;
pub(crate) mod listener;
mod wake;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use self::dma::DmaSpace;
use self::irq::Interrupts;
use self::wake::WakeLine;
use self::work::WorkLine;

/// A device's outbound interface: DMA, interrupts, the wake line and the work line. Clones share the bus: a driver has one handle, and
/// its [`DeviceFile`](crate::DeviceFile) another.
#[derive(Clone, Debug, Default)]
pub struct Bus {
    dma: Arc<DmaSpace>,
    /// The address space of each PASID that the user has attached.
    pasids: Arc<RwLock<BTreeMap<u32, Arc<DmaSpace>>>>,
    interrupts: Arc<Interrupts>,
    wake_line: Arc<WakeLine>,
    work_line: Arc<WorkLine>,
}

impl Bus {
    /// Returns a bus without mappings and interrupts.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Returns the address space of the device's DMA.
    pub fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    /// Returns the address space of a PASID, separate from [`Bus::dma`]; `None` for a PASID that the user has not
    /// attached, and for 0, which is not a PASID.
    ///
    /// The device may keep the handle: once the user detaches the PASID, nothing is mapped there. Writes are not in the
    /// log of VFIO_DEVICE_FEATURE_DMA_LOGGING, which has no PASIDs.
    pub fn pasid(&self, pasid: u32) -> Option<Arc<DmaSpace>> {
        self.pasids.read().get(&pasid).cloned()
    }

    /// Returns the device's interrupts.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Returns the address space of a PASID; for 0, the one without a PASID.
    pub(crate) fn space(&self, pasid: u32) -> Arc<DmaSpace> {
        if pasid == 0 { self.dma.clone() } else { self.pasid(pasid).unwrap_or_default() }
    }

    /// Sets or removes the address space of a PASID.
    pub(crate) fn set_pasid(&self, pasid: u32, space: Option<Arc<DmaSpace>>) {
        if pasid != 0 {
            match space {
                Some(space) => self.pasids.write().insert(pasid, space),
                None => self.pasids.write().remove(&pasid),
            };
        }
    }

    /// Requests that a sleeping device be woken, as by PME#. It wakes a moment later, never within this call, so a
    /// driver may call it at any time. No effect on a device that is awake.
    pub fn wake(&self) {
        self.wake_line.raise();
    }

    /// Tells the device's [`Worker`](crate::Worker) that [`Driver::advance`](crate::Driver::advance) has something to do,
    /// for a driver whose own threads finish work, such as I/O on a file. No effect on a device without a worker.
    ///
    /// It waits at most a millisecond for a request that the device is executing, so that a driver may wait within
    /// such a request for the thread that calls this. In that case the call may come too late for a worker that is about
    /// to wait: return a time from `advance` ([`Next::At`](crate::Next::At)) while such work is in flight.
    pub fn notify_work(&self) {
        self.work_line.raise();
    }

    pub(crate) fn work_line(&self) -> &WorkLine {
        &self.work_line
    }

    pub(crate) fn wake_line(&self) -> &WakeLine {
        &self.wake_line
    }
}
