//! The registered vendors, and the choice of one for a device.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::Errno;

use super::{MediateOps, Opened, PlainDevice};

/// Vendors that may mediate devices (`mediate_ops_list`). A clone is another handle to the same list.
#[derive(Clone, Debug, Default)]
pub struct Mediators {
    /// The vendors in the order of registration.
    vendors: Arc<Mutex<Vec<Vendor>>>,
}

/// A registered vendor. Each device that it mediates holds a clone.
#[derive(Clone)]
pub(super) struct Vendor(Arc<dyn MediateOps>);

impl Mediators {
    /// Returns an empty list.
    pub fn new() -> Mediators {
        Mediators::default()
    }

    /// Registers a vendor, which may mediate devices opened from now on. EEXIST while one of the same name is
    /// registered.
    pub fn register(&self, ops: Arc<dyn MediateOps>) -> Result<(), Errno> {
        let mut vendors = self.vendors.lock();
        if vendors.iter().any(|vendor| vendor.name() == ops.name()) {
            return Err(Errno::EEXIST);
        }
        vendors.push(Vendor(ops));
        Ok(())
    }

    /// Unregisters a vendor, which is not asked again once this returns. ENOENT if none of that name is registered.
    ///
    /// It keeps its devices until they are closed.
    pub fn unregister(&self, name: &str) -> Result<(), Errno> {
        let mut vendors = self.vendors.lock();
        let at = vendors.iter().position(|vendor| vendor.name() == name).ok_or(Errno::ENOENT)?;
        vendors.remove(at);
        Ok(())
    }

    /// Returns the first vendor that accepts the device, asking the one registered last first.
    pub(super) fn open(&self, mut device: PlainDevice<'_>) -> Option<(Vendor, Opened)> {
        // Locked while they are asked: who has unregistered may go.
        self.vendors.lock().iter().rev().find_map(|vendor| match vendor.0.open(device.reborrow()) {
            Ok(opened) => Some((vendor.clone(), opened)),
            Err(Errno::ENODEV) => None,
            Err(error) => {
                tracing::warn!(vendor = vendor.name(), %error, "vendor driver cannot mediate a device");
                None
            }
        })
    }
}

impl Vendor {
    pub(super) fn name(&self) -> &str {
        self.0.name()
    }
}

impl fmt::Debug for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vendor").field(&self.name()).finish()
    }
}
