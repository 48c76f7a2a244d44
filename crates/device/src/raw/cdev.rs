//! The requests of a cdev as raw ioctls: VFIO_DEVICE_BIND_IOMMUFD, and attaching the bound device.

use std::mem::offset_of;

use whimbrel_protocol::Errno;
use whimbrel_uapi::cdev::{
    DeviceAttachFlags, DeviceAttachIommufdPt, DeviceBindFlags, DeviceBindIommufd, DeviceDetachFlags,
    DeviceDetachIommufdPt,
};
use whimbrel_uapi::decode;
use whimbrel_uapi::ioctl::{
    VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_DETACH_IOMMUFD_PT,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::iommufd::{Caller, copy_struct_from_user};
use super::trace::traced;
use crate::topology::cdev::Cdev;

impl Cdev {
    /// A raw ioctl on the file: `number` as in the header, `argument` an address in `caller`. Everything but
    /// VFIO_DEVICE_BIND_IOMMUFD is EINVAL before the device is bound.
    pub fn ioctl(&self, number: u32, argument: u64, caller: &mut dyn Caller) -> Result<i32, Errno> {
        traced(decode::File::Device, "cdev", (number, argument), caller, |caller| {
            self.execute(number, argument, caller)
        })
    }

    fn execute(&self, number: u32, argument: u64, caller: &mut dyn Caller) -> Result<i32, Errno> {
        if number == VFIO_DEVICE_BIND_IOMMUFD.number() {
            return self.raw_bind(argument, caller).map(|()| 0);
        }
        let device = self.device()?;
        match number {
            n if n == VFIO_DEVICE_ATTACH_IOMMUFD_PT.number() => self.raw_attach(argument, caller).map(|()| 0),
            n if n == VFIO_DEVICE_DETACH_IOMMUFD_PT.number() => self.raw_detach(argument, caller).map(|()| 0),
            _ => device.execute(number, argument, caller),
        }
    }

    fn raw_bind(&self, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
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
        let bind = self.begin_bind()?;
        let given = flags.contains(DeviceBindFlags::TOKEN);
        bind.check_token(given, || read(caller, asked.token_uuid_ptr))?;
        let iommufd = caller.iommufd(asked.iommufd)?;
        let out = argument.wrapping_add(offset_of!(DeviceBindIommufd, out_devid) as u64);
        bind.finish(iommufd, |id| Ok(caller.write(out, id.as_bytes())?))
    }

    fn raw_attach(&self, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
        let least = offset_of!(DeviceAttachIommufdPt, pasid);
        let flag = DeviceAttachFlags::PASID.bits();
        let head = |asked: &DeviceAttachIommufdPt| (asked.argsz, asked.flags);
        let asked = self.read_with_pasid(caller, argument, least, flag, head)?;
        let pasid = (asked.flags & flag != 0).then_some(asked.pasid);
        let out = argument.wrapping_add(offset_of!(DeviceAttachIommufdPt, pt_id) as u64);
        self.attach(pasid, asked.pt_id, |used| Ok(caller.write(out, used.as_bytes())?))
    }

    fn raw_detach(&self, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
        let least = offset_of!(DeviceDetachIommufdPt, pasid);
        let flag = DeviceDetachFlags::PASID.bits();
        let head = |asked: &DeviceDetachIommufdPt| (asked.argsz, asked.flags);
        let asked = self.read_with_pasid(caller, argument, least, flag, head)?;
        self.detach((asked.flags & flag != 0).then_some(asked.pasid));
        Ok(())
    }

    /// Reads the `least` bytes of every request, and the PASID after them if its flag is set.
    ///
    /// EFAULT; EINVAL for a size that is too small or an unknown flag; EOPNOTSUPP for a PASID of a device without
    /// PASIDs, before the check of its size.
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
            if !self.has_pasids() {
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

fn read<T: FromBytes + FromZeros + IntoBytes>(caller: &dyn Caller, address: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    caller.read(address, value.as_mut_bytes())?;
    Ok(value)
}
