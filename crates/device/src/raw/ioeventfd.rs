//! VFIO_DEVICE_IOEVENTFD as a raw ioctl.

use std::os::fd::OwnedFd;

use whimbrel_protocol::Errno;
use whimbrel_uapi::pci::{
    DeviceIoeventfd, VFIO_DEVICE_IOEVENTFD_8, VFIO_DEVICE_IOEVENTFD_16, VFIO_DEVICE_IOEVENTFD_32,
    VFIO_DEVICE_IOEVENTFD_64,
};
use zerocopy::{FromZeros, IntoBytes};

use super::process::Process;
use crate::core::file::DeviceFile;
use crate::core::offsets::split_offset;
use crate::driver::{IoeventfdWrite, WriteWidth};

/// Minimum size of the structure: up to `fd`.
const MIN_IOEVENTFD: usize = 28;

impl DeviceFile {
    pub(super) fn raw_ioeventfd(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        self.check_pci()?;
        let (write, eventfd) = read(argument, process)?;
        self.tie_ioeventfd(write, eventfd)?;
        Ok(0)
    }
}

/// Reads the raw request. The descriptor is resolved, but an error counts only if it is used.
fn read(
    argument: u64,
    process: &dyn Process,
) -> Result<(IoeventfdWrite, Option<Result<OwnedFd, Errno>>), Errno> {
    let mut asked = DeviceIoeventfd::new_zeroed();
    process.read(argument, &mut asked.as_mut_bytes()[..MIN_IOEVENTFD])?;
    if (asked.argsz as usize) < MIN_IOEVENTFD {
        return Err(Errno::EINVAL);
    }
    let width = width_of(asked.flags)?;
    if asked.fd < -1 {
        return Err(Errno::EINVAL);
    }
    let (region, offset) = split_offset(asked.offset);
    let eventfd = (asked.fd != -1).then(|| process.eventfd(asked.fd));
    Ok((IoeventfdWrite::new(region, offset, width, asked.data), eventfd))
}

fn width_of(flags: u32) -> Result<WriteWidth, Errno> {
    match flags {
        VFIO_DEVICE_IOEVENTFD_8 => Ok(WriteWidth::One),
        VFIO_DEVICE_IOEVENTFD_16 => Ok(WriteWidth::Two),
        VFIO_DEVICE_IOEVENTFD_32 => Ok(WriteWidth::Four),
        VFIO_DEVICE_IOEVENTFD_64 => Ok(WriteWidth::Eight),
        _ => Err(Errno::EINVAL),
    }
}
