//! A device's own character file, `/dev/vfio/devices/vfioN`: bound to an iommufd first, then attached to one
//! of its address spaces or page tables (`drivers/vfio/device_cdev.c`).
//!
//! What a bound device answers to everything else is [`DeviceFile`]'s business.

use std::mem::offset_of;

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_uapi::cdev::{
    DeviceAttachFlags, DeviceAttachIommufdPt, DeviceBindFlags, DeviceBindIommufd, DeviceDetachFlags,
    DeviceDetachIommufdPt,
};
use whimbrel_uapi::ioctl::{
    VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_DETACH_IOMMUFD_PT,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use whimbrel_uapi::decode;

use crate::core::file::DeviceFile;
use crate::iommu::iommufd::{Caller, Iommu, Iommufd, copy_struct_from_user};
use crate::raw::trace::traced;
use crate::topology::group::Claim;
use crate::topology::opens::{Binding, GroupBlocked, Way};

/// A device opened through its own file. Closing it (dropping it) detaches the device and unbinds it.
///
/// ```
/// use whimbrel_device::{Bus, Cdev, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, iommufd::Iommu};
///
/// struct Idle;
///
/// impl Driver for Idle {
///     fn info(&self) -> Info {
///         Info { flags: DeviceInfoFlags::RESET, num_regions: 0, num_irqs: 0, capabilities: vec![] }
///     }
///     fn reset(&mut self) -> Result<(), Errno> {
///         Ok(())
///     }
/// }
///
/// let cdev = Cdev::new(DeviceFile::new("idle", Bus::new(), Box::new(Idle)), Iommu::Emulated);
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
    /// As long as the device is bound its group cannot be opened.
    _group: GroupBlocked,
}

impl Cdev {
    /// Opens a device that reaches memory through `iommu`. The device's [`Bus`](crate::Bus) must be nobody
    /// else's.
    pub fn new(device: DeviceFile, iommu: Iommu) -> Cdev {
        device.put_behind_files();
        Cdev { device, iommu, bound: Mutex::new(None) }
    }

    /// The device, for reads and writes of its regions. EINVAL before it is bound.
    pub fn device(&self) -> Result<&DeviceFile, Errno> {
        if self.bound.lock().is_some() { Ok(&self.device) } else { Err(Errno::EINVAL) }
    }

    /// A raw ioctl on the file: `number` as in the header, `argument` an address in `caller`. Everything but
    /// VFIO_DEVICE_BIND_IOMMUFD is EINVAL before the device is bound.
    pub fn ioctl(&self, number: u32, argument: u64, caller: &mut dyn Caller) -> Result<i32, Errno> {
        traced(decode::File::Device, "cdev", (number, argument), caller, |caller| {
            self.execute(number, argument, caller)
        })
    }

    fn execute(&self, number: u32, argument: u64, caller: &mut dyn Caller) -> Result<i32, Errno> {
        if number == VFIO_DEVICE_BIND_IOMMUFD.number() {
            return self.bind(argument, caller).map(|()| 0);
        }
        let device = self.device()?;
        match number {
            n if n == VFIO_DEVICE_ATTACH_IOMMUFD_PT.number() => self.attach(argument, caller).map(|()| 0),
            n if n == VFIO_DEVICE_DETACH_IOMMUFD_PT.number() => self.detach(argument, caller).map(|()| 0),
            _ => device.execute(number, argument, caller),
        }
    }

    fn bind(&self, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
        let least = offset_of!(DeviceBindIommufd, token_uuid_ptr);
        let argsz: u32 = read(caller, argument)?;
        if (argsz as usize) < least {
            return Err(Errno::EINVAL);
        }
        let asked: DeviceBindIommufd = copy_struct_from_user(caller, argument, argsz)?;
        let flags = DeviceBindFlags::from_bits(asked.flags).ok_or(Errno::EINVAL)?;
        if asked.iommufd < 0 {
            return Err(Errno::EINVAL);
        }
        let group = self.device.block_group()?;
        let mut bound = self.bound.lock();
        if bound.is_some() {
            return Err(Errno::EINVAL);
        }
        self.check_token(flags, asked.token_uuid_ptr, caller)?;
        let iommufd = caller.iommufd(asked.iommufd)?;
        let mut id = 0;
        self.device.open(Way::OwnFile, || {
            let claim = self.claim(&iommufd)?;
            id = iommufd.bind(self.device.bus().clone(), &self.iommu)?;
            Ok(Some(Binding::new(iommufd.clone(), id, claim)))
        })?;
        let out = argument.wrapping_add(offset_of!(DeviceBindIommufd, out_devid) as u64);
        if let Err(fault) = caller.write(out, id.as_bytes()) {
            self.device.close_one();
            return Err(fault.into());
        }
        *bound = Some(Bound { iommufd, id, _group: group });
        Ok(())
    }

    /// An IOMMU of its own tells apart the groups of devices, not devices: the iommufd must own the whole
    /// group.
    fn claim(&self, iommufd: &Iommufd) -> Result<Option<Claim>, Errno> {
        match (&self.iommu, self.device.group()) {
            (Iommu::Own(_), Some(group)) => group.claim(iommufd).map(Some),
            _ => Ok(None),
        }
    }

    /// `vfio_df_check_token()`: only the PCI driver looks at tokens.
    fn check_token(&self, flags: DeviceBindFlags, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let given = flags.contains(DeviceBindFlags::TOKEN);
        if self.device.check_pci().is_err() {
            return if given { Err(Errno::EINVAL) } else { Ok(()) };
        }
        let token = if given { Some(read(caller, address)?) } else { None };
        self.device.validate_vf_token(token)
    }

    fn attach(&self, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
        let least = offset_of!(DeviceAttachIommufdPt, pasid);
        let flag = DeviceAttachFlags::PASID.bits();
        let head = |asked: &DeviceAttachIommufdPt| (asked.argsz, asked.flags);
        let asked = self.read_with_pasid(caller, argument, least, flag, head)?;
        let pasid = (asked.flags & flag != 0).then_some(asked.pasid);
        let bound = self.bound.lock();
        let Bound { iommufd, id, .. } = bound.as_ref().ok_or(Errno::EINVAL)?;
        let used = iommufd.attach(*id, pasid, asked.pt_id)?;
        let out = argument.wrapping_add(offset_of!(DeviceAttachIommufdPt, pt_id) as u64);
        caller.write(out, used.as_bytes()).map_err(|fault| {
            iommufd.detach(*id, pasid);
            fault.into()
        })
    }

    fn detach(&self, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
        let least = offset_of!(DeviceDetachIommufdPt, pasid);
        let flag = DeviceDetachFlags::PASID.bits();
        let head = |asked: &DeviceDetachIommufdPt| (asked.argsz, asked.flags);
        let asked = self.read_with_pasid(caller, argument, least, flag, head)?;
        if let Some(Bound { iommufd, id, .. }) = &*self.bound.lock() {
            iommufd.detach(*id, (asked.flags & flag != 0).then_some(asked.pasid));
        }
        Ok(())
    }

    /// Reads the `least` bytes every user gives, and the PASID behind them if the one flag there is is set.
    ///
    /// EFAULT; EINVAL for a size below what is needed or an unknown flag; EOPNOTSUPP for a PASID of a device
    /// that has none, before its size is looked at.
    fn read_with_pasid<T: FromBytes + FromZeros + IntoBytes>(
        &self,
        caller: &dyn Caller,
        address: u64,
        least: usize,
        flag: u32,
        head: impl Fn(&T) -> (u32, u32),
    ) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        caller.read(address, &mut value.as_mut_bytes()[..least])?;
        let (argsz, flags) = head(&value);
        if (argsz as usize) < least || flags & !flag != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & flag != 0 {
            if !self.iommu.has_pasids() {
                return Err(Errno::EOPNOTSUPP);
            }
            if (argsz as usize) < size_of::<T>() {
                return Err(Errno::EINVAL);
            }
            caller.read(address.wrapping_add(least as u64), &mut value.as_mut_bytes()[least..])?;
        }
        Ok(value)
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

fn read<T: FromBytes + FromZeros + IntoBytes>(caller: &dyn Caller, address: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    caller.read(address, value.as_mut_bytes())?;
    Ok(value)
}
