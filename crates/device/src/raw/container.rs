//! The requests of a container as raw ioctls. Unknown ones go to its IOMMU.

use whimbrel_protocol::Errno;
use whimbrel_uapi::decode;
use whimbrel_uapi::group::VFIO_API_VERSION;
use whimbrel_uapi::ioctl::{VFIO_CHECK_EXTENSION, VFIO_GET_API_VERSION, VFIO_SET_IOMMU};

use super::process::Process;
use super::trace::traced;
use crate::iommu::container::Container;

impl Container {
    /// A raw ioctl on the container: `number` as in the header, `argument` a number or an address in
    /// `process`.
    pub fn ioctl(&self, number: u32, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        traced(decode::File::Container, "container", (number, argument), process, |process| {
            self.execute(number, argument, process)
        })
    }

    fn execute(&self, number: u32, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        match number {
            n if n == VFIO_GET_API_VERSION.number() => Ok(VFIO_API_VERSION),
            n if n == VFIO_CHECK_EXTENSION.number() => Ok(self.check_extension(argument).into()),
            n if n == VFIO_SET_IOMMU.number() => self.set_iommu(argument).map(|()| 0),
            _ => self.with_iommu(|iommu| iommu.ioctl(number, argument, process)),
        }
    }
}
