//! The requests of a group as raw ioctls.

use whimbrel_protocol::Errno;
use whimbrel_uapi::decode;
use whimbrel_uapi::group::GroupStatus;
use whimbrel_uapi::ioctl::{
    VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_STATUS, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_UNSET_CONTAINER,
};
use zerocopy::{FromZeros, IntoBytes};

use super::process::Process;
use super::trace::traced;
use crate::topology::group::GroupFile;

/// Maximum size of a device's name, with its NUL.
const MAX_NAME: u64 = 4096;

impl GroupFile {
    /// A raw ioctl on the group: `number` as in the header, `argument` an address in `process`.
    pub fn ioctl(&self, number: u32, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        traced(decode::File::Group, "group", (number, argument), process, |process| {
            self.execute(number, argument, process)
        })
    }

    fn execute(&self, number: u32, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        match number {
            n if n == VFIO_GROUP_GET_STATUS.number() => self.raw_status(argument, process),
            n if n == VFIO_GROUP_SET_CONTAINER.number() => {
                let mut fd = 0i32;
                process.read(argument, i32::as_mut_bytes(&mut fd))?;
                self.raw_set_container(fd, process)
            }
            n if n == VFIO_GROUP_UNSET_CONTAINER.number() => self.unset_container().map(|()| 0),
            n if n == VFIO_GROUP_GET_DEVICE_FD.number() => {
                let name = read_name(argument, process)?;
                let device = self.open_device(&name)?;
                process.install_device(device)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn raw_status(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        let mut status = GroupStatus::new_zeroed();
        process.read(argument, status.as_mut_bytes())?;
        if (status.argsz as usize) < size_of::<GroupStatus>() {
            return Err(Errno::EINVAL);
        }
        status.flags = self.status().bits();
        process.write(argument, status.as_bytes())?;
        Ok(0)
    }

    fn raw_set_container(&self, fd: i32, process: &dyn Process) -> Result<i32, Errno> {
        match process.container(fd) {
            Ok(container) => self.set_container(&container).map(|()| 0),
            // A descriptor of another kind is found out last, one that is not open first.
            Err(Errno::EBADFD) if self.has_iommu() => Err(Errno::EINVAL),
            Err(Errno::EBADFD) => match process.iommufd(fd) {
                Ok(iommufd) => self.set_iommufd(&iommufd).map(|()| 0),
                Err(_) => Err(Errno::EBADFD),
            },
            Err(error) => Err(error),
        }
    }
}

/// Reads a C string of at most [`MAX_NAME`] bytes with its NUL, byte by byte, since it may end right before the end of
/// memory.
fn read_name(address: u64, process: &dyn Process) -> Result<Vec<u8>, Errno> {
    let mut name = Vec::new();
    for offset in 0..MAX_NAME {
        let mut byte = [0];
        process.read(address.checked_add(offset).ok_or(Errno::EFAULT)?, &mut byte)?;
        if byte == [0] {
            return Ok(name);
        }
        name.push(byte[0]);
    }
    Err(Errno::EINVAL)
}
