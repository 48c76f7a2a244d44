//! The error record feature of a PCI device on s390 (`vfio_pci_zdev.c` of Linux 7.x).

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{DeviceFeatureZpciErr, FeatureFlags};

use super::{Checked, Request};

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
