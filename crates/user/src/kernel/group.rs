//! A device opened through its IOMMU group, with a container for its DMA.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_uapi::group::{GroupFlags, GroupStatus, VFIO_API_VERSION, VFIO_TYPE1V2_IOMMU};
use whimbrel_uapi::ioctl as requests;
use whimbrel_uapi::type1::DmaMapFlags;

use super::address_space::AddressSpace;
use super::sysfs;
use super::vfio_device::{OnKernel, VfioDevice};
use super::{ioctl, state_file};
use crate::dirty_source::DirtySource;
use crate::dma_map::{DmaMap, DmaRegion};
use crate::error::{Error, Result};
use crate::operation::Operation;

/// The file that creates a container.
const CONTAINER: &str = "/dev/vfio/vfio";

/// A device of a group, with its group and its own container.
///
/// The kernel allows only one open of a group: while this object lives, nobody else can open the group, even
/// for another device in it. Its mappings are removed when it is dropped.
///
/// ```no_run
/// use whimbrel_user::Migratable;
/// use whimbrel_user::kernel::Group;
///
/// let mut device = Group::find("0000:3b:00.2")?;
/// println!("{:?} in {}", device.migration_flags()?, device.state()?);
/// # Ok::<(), whimbrel_user::Error>(())
/// ```
#[derive(Debug)]
pub struct Group {
    // Closed first: an open device may still use its memory.
    device: VfioDevice,
    memory: AddressSpace,
}

impl Group {
    /// Opens the device with this name on the host: the address of a PCI device, or the UUID of a mediated
    /// one.
    pub fn find(device: &str) -> Result<Group> {
        let found = sysfs::find(device)?;
        let Some(group_path) = found.group_path else {
            let why = "no IOMMU group: check that the IOMMU is on (intel_iommu=on) and that the device is bound to a \
                       vfio driver";
            return Err(Error::unusable(&found.name, why));
        };
        Group::open(found.name.clone(), group_path, &found.name)
    }

    /// Opens a device of the group at `group_path`, such as `/dev/vfio/12`.
    ///
    /// `name` appears in errors and reports. `device_name` is the kernel's: the device's name in sysfs,
    /// followed by ` vf_token=<uuid>` if the physical function's driver requires a token.
    pub fn open(name: impl Into<String>, group_path: impl AsRef<Path>, device_name: &str) -> Result<Group> {
        let name = name.into();
        let failed = |request: Operation| Error::at(&name, request);
        let unusable = |why: String| Error::unusable(&name, why);
        let c_name = CString::new(device_name)
            .map_err(|_| unusable(format!("invalid device name {device_name:?}")))?;

        let container = open_file(&name, Path::new(CONTAINER))?;
        let request = requests::VFIO_GET_API_VERSION;
        let version = ioctl::with_number(container.as_fd(), request, 0).map_err(failed(request.into()))?;
        if version != VFIO_API_VERSION {
            return Err(unusable(format!("{CONTAINER} has VFIO API version {version}, expected 0")));
        }
        let request = requests::VFIO_CHECK_EXTENSION;
        let type1 = ioctl::with_number(container.as_fd(), request, VFIO_TYPE1V2_IOMMU)
            .map_err(failed(format!("{request} of VFIO_TYPE1v2_IOMMU").into()))?;
        if type1 <= 0 {
            return Err(unusable(
                "the kernel has no type1v2 IOMMU driver; run modprobe vfio_iommu_type1".into(),
            ));
        }

        let group = open_file(&name, group_path.as_ref())?;
        let mut status = GroupStatus { argsz: size_of::<GroupStatus>() as u32, flags: 0 };
        let request = requests::VFIO_GROUP_GET_STATUS;
        ioctl::with_struct(group.as_fd(), &mut status).map_err(failed(request.into()))?;
        if !GroupFlags::from_bits_retain(status.flags).contains(GroupFlags::VIABLE) {
            return Err(unusable(format!(
                "group {} is not viable; bind each of its devices to a vfio driver, or unbind it",
                group_path.as_ref().display()
            )));
        }
        let request = requests::VFIO_GROUP_SET_CONTAINER;
        ioctl::set_container(group.as_fd(), container.as_fd()).map_err(failed(request.into()))?;
        let request = requests::VFIO_SET_IOMMU;
        ioctl::with_number(container.as_fd(), request, VFIO_TYPE1V2_IOMMU)
            .map_err(failed(format!("{request} to VFIO_TYPE1v2_IOMMU").into()))?;
        let request = requests::VFIO_GROUP_GET_DEVICE_FD;
        let fd = ioctl::device_fd(group.as_fd(), &c_name)
            .map_err(failed(format!("{request} of {device_name}").into()))?;

        let memory = AddressSpace::type1(&name, OwnedFd::from(group), OwnedFd::from(container));
        Ok(Group { device: VfioDevice::new(name, fd), memory })
    }
}

/// Opens one of VFIO's files for reading and writing.
pub(super) fn open_file(device: &str, path: &Path) -> Result<File> {
    // std opens with O_CLOEXEC, because a device must not leak into another program.
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| Error::Open {
        device: device.to_string(),
        path: path.to_path_buf(),
        errno: state_file::errno(&error),
    })
}

impl AsFd for Group {
    /// Returns the device fd, for requests that this crate does not make. Do not change the device's
    /// migration state through it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl OnKernel for Group {
    fn vfio(&self) -> &VfioDevice {
        &self.device
    }

    fn vfio_mut(&mut self) -> &mut VfioDevice {
        &mut self.device
    }

    fn memory(&mut self) -> Option<&mut AddressSpace> {
        Some(&mut self.memory)
    }
}

impl DmaMap for Group {
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        self.memory.map_dma(iova, rights, memory)
    }

    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64> {
        self.memory.unmap_dma(iova, size)
    }

    fn unmap_dma_dirty(&mut self, dirty: &mut DirtyReport<'_>) -> Result<u64> {
        self.memory.unmap_dma_dirty(dirty)
    }

    fn dirty_log(&mut self) -> Option<Box<dyn DirtySource + Send>> {
        self.memory.dirty_log()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_is_named_with_advice() {
        let error = open_file("0000:01:00.0", Path::new("/dev/vfio/no such group")).unwrap_err();
        assert!(
            error.to_string().starts_with("0000:01:00.0: cannot open /dev/vfio/no such group: "),
            "{error}"
        );
        assert!(error.advice().is_some());
    }

    #[test]
    fn a_name_the_kernel_cannot_be_told_is_refused() {
        let error = Group::open("test", "/dev/null", "a\0b").unwrap_err();
        assert!(error.to_string().contains(r#"invalid device name "a\0b""#), "{error}");
    }
}
