//! A device's outward interface: memory, interrupts, and the line that wakes it.

pub mod dma;
pub(crate) mod irq;
pub(crate) mod listener;
mod wake;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use self::dma::DmaSpace;
use self::irq::Interrupts;
use self::wake::WakeLine;

/// The ways out of a device. A clone is another handle to the same bus: a driver keeps one, its
/// [`DeviceFile`](crate::DeviceFile) another.
#[derive(Clone, Debug, Default)]
pub struct Bus {
    dma: Arc<DmaSpace>,
    /// The address space of each PASID that the user has attached.
    pasids: Arc<RwLock<BTreeMap<u32, Arc<DmaSpace>>>>,
    interrupts: Arc<Interrupts>,
    wake_line: Arc<WakeLine>,
}

impl Bus {
    /// A bus with no memory mapped and no interrupt set up.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// The memory the device can reach.
    pub fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    /// The memory the device can reach with a PASID in its requests: an address space apart from
    /// [`Bus::dma`]. `None` for a PASID that the user has not attached; 0 is no PASID at all.
    ///
    /// A device may keep what it gets. When the user detaches the PASID, nothing is mapped there any more.
    /// What a device writes here is not in the log of VFIO_DEVICE_FEATURE_DMA_LOGGING, which knows no PASIDs.
    pub fn pasid(&self, pasid: u32) -> Option<Arc<DmaSpace>> {
        self.pasids.read().get(&pasid).cloned()
    }

    /// The interrupts the user has set up.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// The address space of a PASID, or without any: for 0.
    pub(crate) fn space(&self, pasid: u32) -> Arc<DmaSpace> {
        if pasid == 0 { self.dma.clone() } else { self.pasid(pasid).unwrap_or_default() }
    }

    /// Makes a space the one of a PASID, so that the device finds it; without one, it finds none any more.
    pub(crate) fn set_pasid(&self, pasid: u32, space: Option<Arc<DmaSpace>>) {
        if pasid != 0 {
            match space {
                Some(space) => self.pasids.write().insert(pasid, space),
                None => self.pasids.write().remove(&pasid),
            };
        }
    }

    /// The device has to wake: something arrived, as PME# tells. A moment later it does, if it sleeps.
    /// Nothing happens otherwise, and never within this call, so that a driver may call it at any time.
    pub fn wake(&self) {
        self.wake_line.raise();
    }

    pub(crate) fn wake_line(&self) -> &WakeLine {
        &self.wake_line
    }
}
