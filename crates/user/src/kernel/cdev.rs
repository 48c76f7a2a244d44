//! A device opened through its cdev, with an iommufd for its DMA.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_uapi::cdev::{DeviceAttachIommufdPt, DeviceBindIommufd};
use whimbrel_uapi::ioctl as requests;
use whimbrel_uapi::iommufd::{HwCapabilities, HwptAllocFlags, IoasAlloc};
use whimbrel_uapi::type1::DmaMapFlags;

use super::address_space::AddressSpace;
use super::group::open_file;
use super::vfio_device::{OnKernel, VfioDevice};
use super::{dirty_log, ioctl, sysfs};
use crate::dirty_source::DirtySource;
use crate::dma_map::{DmaMap, DmaRegion};
use crate::error::{Error, Result};

/// The file that creates an iommufd.
const IOMMUFD: &str = "/dev/iommu";

/// Size of `vfio_device_bind_iommufd` without a token, in bytes: the most that kernels before the token
/// accept.
const BIND_WITHOUT_TOKEN: u32 = 16;

/// Size of `vfio_device_attach_iommufd_pt` without a PASID, in bytes: the most that kernels before the PASID
/// accept.
const ATTACH_WITHOUT_PASID: u32 = 12;

/// A device opened through its cdev, bound to an iommufd and attached to an address space in it.
///
/// A device in use through its group cannot be opened in this way, and vice versa. When this object is
/// dropped, its mappings are removed and its address space is destroyed.
///
/// ```no_run
/// use whimbrel_user::Migratable;
/// use whimbrel_user::kernel::Cdev;
///
/// let mut device = Cdev::open("/dev/vfio/devices/vfio0")?;
/// println!("{:?} in {}", device.migration_flags()?, device.state()?);
/// # Ok::<(), whimbrel_user::Error>(())
/// ```
#[derive(Debug)]
pub struct Cdev {
    // Closed first: that detaches it from the address space.
    device: VfioDevice,
    memory: AddressSpace,
}

impl Cdev {
    /// Opens the device with this name on the host: the address of a PCI device, or the UUID of a mediated
    /// one.
    pub fn find(device: &str) -> Result<Cdev> {
        let found = sysfs::find(device)?;
        let Some(path) = found.cdev_path else {
            let why = "no file in /dev/vfio/devices: bind the device to a vfio driver, or, on a kernel without VFIO \
                       cdev, use the device's group";
            return Err(Error::unusable(&found.name, why));
        };
        Cdev::open_as(found.name, &path)
    }

    /// Opens the device at `path`, such as `/dev/vfio/devices/vfio0`. The path names the device in errors and
    /// reports.
    pub fn open(path: impl AsRef<Path>) -> Result<Cdev> {
        Cdev::open_as(path.as_ref().display().to_string(), path.as_ref())
    }

    fn open_as(name: String, path: &Path) -> Result<Cdev> {
        let file = open_file(&name, path)?;
        let iommufd = open_file(&name, Path::new(IOMMUFD))?;
        Cdev::of_files(name, file, iommufd)
    }

    /// Binds a device to an iommufd, and attaches it to an address space of its own.
    pub(super) fn of_files(name: String, file: File, iommufd: File) -> Result<Cdev> {
        let failed = |request: requests::Request| Error::at(&name, request);
        let mut bind = DeviceBindIommufd {
            argsz: BIND_WITHOUT_TOKEN,
            iommufd: iommufd.as_raw_fd(),
            ..DeviceBindIommufd::default()
        };
        ioctl::with_struct(file.as_fd(), &mut bind).map_err(failed(requests::VFIO_DEVICE_BIND_IOMMUFD))?;

        let mut alloc = IoasAlloc { size: size_of::<IoasAlloc>() as u32, ..IoasAlloc::default() };
        ioctl::with_struct(iommufd.as_fd(), &mut alloc).map_err(failed(requests::IOMMU_IOAS_ALLOC))?;
        let ioas = alloc.out_ioas_id;
        let hwpt = logging_page_table(&name, iommufd.as_fd(), bind.out_devid, ioas);
        let mut memory = AddressSpace::ioas(&name, OwnedFd::from(iommufd), ioas, hwpt);

        let attached = match hwpt.map(|hwpt| attach(file.as_fd(), hwpt)) {
            Some(Err(errno)) => {
                let request = requests::VFIO_DEVICE_ATTACH_IOMMUFD_PT;
                tracing::warn!(name, %errno, "no dirty log: {request} to a page table with dirty tracking");
                memory.destroy_page_table();
                attach(file.as_fd(), ioas)
            }
            Some(Ok(())) => Ok(()),
            None => attach(file.as_fd(), ioas),
        };
        attached.map_err(failed(requests::VFIO_DEVICE_ATTACH_IOMMUFD_PT))?;
        Ok(Cdev { device: VfioDevice::new(name, OwnedFd::from(file)), memory })
    }
}

/// Attaches a device to a page table or an IOAS.
fn attach(device: BorrowedFd<'_>, to: u32) -> std::result::Result<(), Errno> {
    let mut attach =
        DeviceAttachIommufdPt { argsz: ATTACH_WITHOUT_PASID, pt_id: to, ..DeviceAttachIommufdPt::default() };
    ioctl::with_struct(device, &mut attach).map(drop)
}

/// Returns a new page table that logs the device's writes, if its IOMMU can; a device without an IOMMU of its own has none.
fn logging_page_table(name: &str, iommufd: BorrowedFd<'_>, device: u32, ioas: u32) -> Option<u32> {
    let tracks = dirty_log::hardware_capabilities(iommufd, device)
        .is_ok_and(|capabilities| capabilities.contains(HwCapabilities::DIRTY_TRACKING));
    let table = tracks
        .then(|| dirty_log::new_page_table(iommufd, device, ioas, HwptAllocFlags::ALLOC_DIRTY_TRACKING))?;
    table
        .inspect_err(|errno| {
            tracing::warn!(name, %errno, "no dirty log: {} with dirty tracking", requests::IOMMU_HWPT_ALLOC);
        })
        .ok()
}

impl AsFd for Cdev {
    /// Returns the device fd, for requests that this crate does not make. Do not change the device's
    /// migration state through it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl OnKernel for Cdev {
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

impl DmaMap for Cdev {
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
    fn a_path_without_a_device_is_named_with_advice() {
        let error = Cdev::open("/dev/vfio/devices/vfio999").unwrap_err();
        let expected = "/dev/vfio/devices/vfio999: cannot open /dev/vfio/devices/vfio999: ENOENT: ";
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(error.errno(), Some(Errno::ENOENT));
        assert!(error.advice().is_some());
    }
}
