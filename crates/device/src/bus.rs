//! What a device reaches outward: memory and interrupts.

use std::sync::Arc;

use crate::dma::DmaSpace;
use crate::irq::Interrupts;

/// The two ways out of a device. A clone is another handle to the same bus: a driver keeps one, its
/// [`DeviceFile`](crate::DeviceFile) another.
#[derive(Clone, Debug, Default)]
pub struct Bus {
    dma: Arc<DmaSpace>,
    interrupts: Arc<Interrupts>,
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

    /// The interrupts the user has set up.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }
}
