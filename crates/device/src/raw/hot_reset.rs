//! VFIO_DEVICE_GET_PCI_HOT_RESET_INFO and VFIO_DEVICE_PCI_HOT_RESET as raw ioctls.

use whimbrel_protocol::Errno;
use whimbrel_uapi::pci::{PciDependentDevice, PciHotReset, PciHotResetInfo};
use zerocopy::{FromZeros, IntoBytes};

use super::process::{Process, copy_to_user};
use crate::core::file::DeviceFile;

impl DeviceFile {
    pub(super) fn raw_hot_reset_info(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        const HEAD: usize = size_of::<PciHotResetInfo>();
        self.check_pci()?;
        let mut head = PciHotResetInfo::new_zeroed();
        process.read(argument, head.as_mut_bytes())?;
        let room = (head.argsz as usize).checked_sub(HEAD).ok_or(Errno::EINVAL)?;
        let count = self.set().ok_or(Errno::ENODEV)?.function_count();
        if count > room / size_of::<PciDependentDevice>() {
            (head.flags, head.count) = (0, count as u32);
            process.write(argument, head.as_bytes())?;
            return Err(Errno::ENOSPC);
        }
        let info = self.hot_reset_info()?;
        copy_to_user(process, argument.wrapping_add(HEAD as u64), info.devices.as_bytes())?;
        (head.flags, head.count) = (info.flags.bits(), info.devices.len() as u32);
        process.write(argument, head.as_bytes())?;
        Ok(0)
    }

    pub(super) fn raw_hot_reset(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        const HEAD: usize = size_of::<PciHotReset>();
        self.check_pci()?;
        let mut head = PciHotReset::new_zeroed();
        process.read(argument, head.as_mut_bytes())?;
        if (head.argsz as usize) < HEAD || head.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let count = head.count as usize;
        self.hot_reset_set(count)?;
        // Not more than the set has functions.
        let mut fds = vec![0i32; count];
        if count > 0 {
            process.read(argument.wrapping_add(HEAD as u64), fds.as_mut_bytes())?;
        }
        let groups = fds.into_iter().map(|fd| process.group(fd)).collect::<Result<Vec<_>, _>>()?;
        self.hot_reset(&groups).map(|()| 0)
    }
}
