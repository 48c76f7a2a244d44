//! The feature by which the user of a PCI device on s390 takes its error records (`vfio_pci_zdev.c` of Linux
//! 7.x).

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{DeviceFeatureZpciErr, FeatureFlags};

use super::{Checked, Request};
use crate::core::file::DeviceFile;

impl DeviceFile {
    /// VFIO_DEVICE_FEATURE_ZPCI_ERROR: the oldest error record that has not been taken; all zero if there is
    /// none. ENOTTY for a device that keeps none.
    pub fn zpci_error(&self) -> Result<Vec<u8>, Errno> {
        self.shared().active().driver.zpci_errors().ok_or(Errno::ENOTTY)?.take()
    }

    fn has_zpci_errors(&self) -> bool {
        self.shared().active().driver.zpci_errors().is_some()
    }
}

impl Request<'_> {
    pub(super) fn zpci_error(self) -> Result<(), Errno> {
        if !self.device.has_zpci_errors() {
            return Err(Errno::ENOTTY);
        }
        if let Checked::Probed = self.check(FeatureFlags::GET, size_of::<DeviceFeatureZpciErr>())? {
            return Ok(());
        }
        let asked: DeviceFeatureZpciErr = self.copy_in()?;
        if asked.data == 0 {
            return Err(Errno::EINVAL);
        }
        // Taken, also if it cannot be written.
        let record = self.device.zpci_error()?;
        Ok(self.process.write(asked.data, &record)?)
    }
}
