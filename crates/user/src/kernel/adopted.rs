//! A device that a VMM has opened itself and adopts for migration only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::address_space::AddressSpace;
use super::state_file;
use super::vfio_device::{OnKernel, VfioDevice};
use crate::error::{Error, Result};

/// A device behind an fd that another part of the program has opened, through a group or as a cdev.
///
/// All requests of the device itself work. The VMM still manages DMA mappings: there is no
/// [`Device::dma_map`](crate::Device::dma_map).
///
/// ```no_run
/// use std::os::fd::BorrowedFd;
/// use whimbrel_user::kernel::Adopted;
/// use whimbrel_user::{Migratable, Result, State};
///
/// fn begin_migration(device_fd: BorrowedFd<'_>) -> Result<()> {
///     let mut device = Adopted::duplicate("0000:3b:00.2", device_fd)?;
///     let data = device.go_to(State::PreCopy)?;
///     // ...
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Adopted {
    pub(super) device: VfioDevice,
    pub(super) holder: Option<String>,
}

impl Adopted {
    /// Takes over a device fd. `name` appears in errors and reports.
    ///
    /// Fails if VFIO_DEVICE_GET_INFO does, which detects files other than VFIO devices.
    pub fn new(name: impl Into<String>, device_fd: OwnedFd) -> Result<Adopted> {
        let device = VfioDevice::new(name.into(), device_fd);
        match device.info() {
            Ok(_) => Ok(Adopted { device, holder: None }),
            Err(error) => {
                let why = format!("the file descriptor is not a VFIO device ready for use ({error})");
                Err(Error::unusable(device.name(), why))
            }
        }
    }

    /// Says that another process keeps the device open, such as a store of file descriptors: its state outlives this process.
    ///
    /// `holder` names that process in words that tell it apart from any other, also after a restart, such as its id and the
    /// time of its start: see [`Migratable::holder`](crate::Migratable::holder). A journal records it, and a VMM that resolves
    /// a migration has to give the same words. Only for a descriptor that came from there: one that was opened anew has lost
    /// the state, however its holder is called.
    #[must_use]
    pub fn with_holder(self, holder: impl Into<String>) -> Adopted {
        Adopted { holder: Some(holder.into()), ..self }
    }

    /// Uses a duplicate of the caller's device fd. The device is open as long as either fd is.
    pub fn duplicate(name: impl Into<String>, device_fd: BorrowedFd<'_>) -> Result<Adopted> {
        let name = name.into();
        let fd = device_fd
            .try_clone_to_owned()
            .map_err(|error| Error::request(&name, "fcntl(F_DUPFD_CLOEXEC)", state_file::errno(&error)))?;
        Adopted::new(name, fd)
    }
}

impl AsFd for Adopted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl OnKernel for Adopted {
    fn vfio(&self) -> &VfioDevice {
        &self.device
    }

    fn vfio_mut(&mut self) -> &mut VfioDevice {
        &mut self.device
    }

    fn memory(&mut self) -> Option<&mut AddressSpace> {
        None
    }

    fn named_holder(&self) -> Option<&str> {
        self.holder.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Migratable};

    #[test]
    fn a_file_that_is_no_device_is_not_adopted() {
        let file = tempfile::tempfile().unwrap();
        let error = Adopted::duplicate("vm 1", file.as_fd()).unwrap_err();
        assert!(error.to_string().contains("VFIO_DEVICE_GET_INFO: ENOTTY"), "{error}");
    }

    #[test]
    fn memory_is_left_to_the_vmm() {
        let file = tempfile::tempfile().unwrap();
        let device = VfioDevice::new("vm 1".into(), file.into());
        let mut device = Adopted { device, holder: None };
        assert!(device.dma_map().is_none());
        assert_eq!(device.holder(), None);
        assert_eq!(device.with_holder("store 7").holder().as_deref(), Some("store 7"));
    }
}
