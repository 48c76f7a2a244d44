//! A device's own character file, `/dev/vfio/devices/vfioN`: bound to an iommufd first, then attached to one
//! of its address spaces or page tables (`drivers/vfio/device_cdev.c`).
//!
//! [`DeviceFile`] answers every other request of a bound device.

use parking_lot::{Mutex, MutexGuard};
use whimbrel_protocol::Errno;

use super::group::Claim;
use super::opens::{Binding, GroupBlocked, Way};
use crate::core::file::DeviceFile;
use crate::iommu::iommufd::{Iommu, Iommufd};

/// A device opened through its cdev. Closing (dropping) it detaches and unbinds the device.
///
/// ```
/// use whimbrel_device::{
///     Bus, Cdev, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, iommufd::Iommu,
/// };
///
/// struct Idle;
///
/// impl Driver for Idle {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::RESET)
///     }
///     fn reset(&mut self, _: &Context) -> Result<(), Errno> {
///         Ok(())
///     }
/// }
///
/// let cdev = Cdev::new(DeviceFile::new("idle", |_| Idle), Iommu::Emulated);
/// assert_eq!(cdev.device().err(), Some(Errno::EINVAL), "not before VFIO_DEVICE_BIND_IOMMUFD");
/// ```
#[derive(Debug)]
pub struct Cdev {
    device: DeviceFile,
    iommu: Iommu,
    bound: Mutex<Option<Bound>>,
}

#[derive(Debug)]
struct Bound {
    iommufd: Iommufd,
    id: u32,
    /// Keeps the device's group from being opened while the device is bound.
    _group: GroupBlocked,
}

/// A device about to be bound: meanwhile its group cannot be opened, and nobody else can bind it.
#[derive(Debug)]
pub(crate) struct Bind<'a> {
    cdev: &'a Cdev,
    bound: MutexGuard<'a, Option<Bound>>,
    group: GroupBlocked,
}

impl Cdev {
    /// Opens a device that accesses memory through `iommu`. The device's [`Bus`](crate::Bus) must not be shared with
    /// other devices.
    pub fn new(device: DeviceFile, iommu: Iommu) -> Cdev {
        device.put_behind_files();
        Cdev { device, iommu, bound: Mutex::new(None) }
    }

    /// Returns the device, for reads and writes of its regions. EINVAL before it is bound.
    pub fn device(&self) -> Result<&DeviceFile, Errno> {
        if self.bound.lock().is_some() { Ok(&self.device) } else { Err(Errno::EINVAL) }
    }

    /// Begins to bind the device. EBUSY while its group is open, EINVAL if it is bound.
    pub(crate) fn begin_bind(&self) -> Result<Bind<'_>, Errno> {
        let group = self.device.block_group()?;
        let bound = self.bound.lock();
        if bound.is_some() {
            return Err(Errno::EINVAL);
        }
        Ok(Bind { cdev: self, bound, group })
    }

    /// Attaches the bound device, or one of its PASIDs, and passes what it uses to `tell`. If `tell` fails, it is
    /// detached.
    pub(crate) fn attach(
        &self,
        pasid: Option<u32>,
        page_table: u32,
        tell: impl FnOnce(u32) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let bound = self.bound.lock();
        let Bound { iommufd, id, .. } = bound.as_ref().ok_or(Errno::EINVAL)?;
        let used = iommufd.attach(*id, pasid, page_table)?;
        tell(used).inspect_err(|_| iommufd.detach(*id, pasid))
    }

    /// Detaches the bound device, or one of its PASIDs.
    pub(crate) fn detach(&self, pasid: Option<u32>) {
        if let Some(Bound { iommufd, id, .. }) = &*self.bound.lock() {
            iommufd.detach(*id, pasid);
        }
    }

    /// Returns whether the device supports PASIDs.
    pub(crate) fn has_pasids(&self) -> bool {
        self.iommu.has_pasids()
    }

    /// Claims the device's group, if it has one: an IOMMU isolates groups, not devices, so the iommufd must own the
    /// whole group.
    fn claim(&self, iommufd: &Iommufd) -> Result<Option<Claim>, Errno> {
        match (&self.iommu, self.device.group()) {
            (Iommu::Own(_), Some(group)) => group.claim(iommufd).map(Some),
            _ => Ok(None),
        }
    }
}

impl Bind<'_> {
    /// `vfio_df_check_token()`: only the PCI driver checks tokens. `token` is called where one is `given` and needed.
    pub(crate) fn check_token(
        &self,
        given: bool,
        token: impl FnOnce() -> Result<[u8; 16], Errno>,
    ) -> Result<(), Errno> {
        let device = &self.cdev.device;
        if device.check_pci().is_err() {
            return if given { Err(Errno::EINVAL) } else { Ok(()) };
        }
        device.validate_vf_token(given.then(token).transpose()?)
    }

    /// Binds the device, and passes its number in the iommufd to `tell`. If `tell` fails, it is not bound.
    pub(crate) fn finish(
        mut self,
        iommufd: Iommufd,
        tell: impl FnOnce(u32) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Cdev { device, iommu, .. } = self.cdev;
        let mut id = 0;
        device.open(Way::OwnFile, || {
            let claim = self.cdev.claim(&iommufd)?;
            id = iommufd.bind(device.bus().clone(), iommu)?;
            Ok(Some(Binding::new(iommufd.clone(), id, claim)))
        })?;
        tell(id).inspect_err(|_| device.close_one())?;
        *self.bound = Some(Bound { iommufd, id, _group: self.group });
        Ok(())
    }
}

impl Drop for Cdev {
    fn drop(&mut self) {
        // Only a device that was bound has been opened as far as its driver goes (`vfio_df_close()`).
        if let Some(_bound) = self.bound.get_mut().take() {
            self.device.close_one();
        }
    }
}
