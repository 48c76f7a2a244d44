//! The VF token feature of a physical function.

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::FeatureFlags;

use super::{Checked, Request};

impl Request<'_> {
    pub(super) fn pci_vf_token(self) -> Result<(), Errno> {
        if !self.device.has_vf_token() {
            return Err(Errno::ENOTTY);
        }
        match self.check(FeatureFlags::SET, size_of::<[u8; 16]>())? {
            Checked::Probed => Ok(()),
            Checked::Go => self.device.set_vf_token(self.copy_in()?),
        }
    }
}
