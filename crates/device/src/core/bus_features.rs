//! Typed requests for specific buses: the bus master switch of CDX, the error records of PCI on s390.

use whimbrel_protocol::Errno;

use super::file::DeviceFile;

impl DeviceFile {
    /// VFIO_DEVICE_FEATURE_BUS_MASTER: enables or disables the device's DMA. ENOTTY for a device without this switch.
    pub fn set_bus_master(&self, master: bool) -> Result<(), Errno> {
        let mut core = self.shared().active();
        let (bus_master, context) = core.half(|driver| driver.bus_master())?;
        bus_master.set(context, master)
    }

    pub(crate) fn has_bus_master(&self) -> bool {
        self.shared().active().driver.bus_master().is_some()
    }

    /// VFIO_DEVICE_FEATURE_ZPCI_ERROR: takes the oldest error record; all zero without one. ENOTTY for a
    /// device without error records.
    pub fn zpci_error(&self) -> Result<Vec<u8>, Errno> {
        let mut core = self.shared().active();
        let (errors, context) = core.half(|driver| driver.zpci_errors())?;
        errors.take(context)
    }

    pub(crate) fn has_zpci_errors(&self) -> bool {
        self.shared().active().driver.zpci_errors().is_some()
    }
}
