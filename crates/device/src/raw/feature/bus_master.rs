//! The bus master feature, by which the user of a CDX device enables DMA (`drivers/vfio/cdx/main.c`).

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{
    DeviceFeatureBusMaster, FeatureFlags, VFIO_DEVICE_FEATURE_CLEAR_MASTER, VFIO_DEVICE_FEATURE_SET_MASTER,
};

use super::{Checked, Request};

impl Request<'_> {
    pub(super) fn bus_master(self) -> Result<(), Errno> {
        if !self.device.has_bus_master() {
            return Err(Errno::ENOTTY);
        }
        if let Checked::Probed = self.check(FeatureFlags::SET, size_of::<DeviceFeatureBusMaster>())? {
            return Ok(());
        }
        let asked: DeviceFeatureBusMaster = self.copy_in()?;
        match asked.op {
            VFIO_DEVICE_FEATURE_CLEAR_MASTER => self.device.set_bus_master(false),
            VFIO_DEVICE_FEATURE_SET_MASTER => self.device.set_bus_master(true),
            _ => Err(Errno::EINVAL),
        }
    }
}
