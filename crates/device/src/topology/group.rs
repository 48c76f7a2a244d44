//! A group, `/dev/vfio/$GROUP`: devices that can be assigned only together to one user, through a container.

use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_uapi::group::GroupFlags;

use super::opens::{Binding, Way};
use crate::core::file::DeviceFile;
use crate::iommu::container::Container;
use crate::iommu::iommufd::{Iommu, Iommufd};
use crate::iommu::type1::{Member, Translation};

/// A group and its devices. A clone is another handle to the same group.
#[derive(Clone, Debug)]
pub struct Group {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    translation: Translation,
    devices: Vec<DeviceFile>,
    state: Mutex<State>,
    owner: Mutex<Owner>,
}

#[derive(Debug)]
struct State {
    opened: bool,
    container: Option<Container>,
    /// The iommufd used in place of a container.
    iommufd: Option<Iommufd>,
    /// Number of opens of each device.
    open_devices: Vec<u32>,
}

/// The DMA owner of the group while it is not open (`iommu_device_claim_dma_owner()`).
#[derive(Debug)]
struct Owner {
    viable: bool,
    /// The iommufd to which devices are bound through cdevs, and their number.
    iommufd: Option<(Iommufd, u32)>,
}

/// A device's share in the ownership of its group.
#[derive(Debug)]
pub(crate) struct Claim {
    group: Group,
}

/// An open group. A clone is another handle to the same open file, as from `dup(2)`.
///
/// It is closed, and the group leaves its container, once the last handle and all devices opened through it are closed.
#[derive(Clone, Debug)]
pub struct GroupFile {
    opened: Arc<Opened>,
}

#[derive(Debug)]
struct Opened {
    group: Group,
}

/// A device opened through its group. A clone is another handle to the same open file, as from `dup(2)`.
///
/// The last close resets the device, which also ends its data session.
#[derive(Clone, Debug)]
pub struct OpenDevice {
    file: Arc<OpenedDevice>,
}

#[derive(Debug)]
struct OpenedDevice {
    opened: Arc<Opened>,
    index: usize,
}

impl Group {
    /// Returns a group of devices, identified by their names. EEXIST if two have the same name, or one is in another
    /// group that still exists.
    pub fn new(translation: Translation, devices: Vec<DeviceFile>) -> Result<Group, Errno> {
        for (index, device) in devices.iter().enumerate() {
            if devices[..index].iter().any(|other| other.name() == device.name()) {
                return Err(Errno::EEXIST);
            }
        }
        let state =
            State { opened: false, container: None, iommufd: None, open_devices: vec![0; devices.len()] };
        let owner = Owner { viable: true, iommufd: None };
        let shared = Shared { translation, devices, state: Mutex::new(state), owner: Mutex::new(owner) };
        let shared = Arc::new(shared);
        for device in &shared.devices {
            device.join_group(Arc::downgrade(&shared))?;
        }
        Ok(Group { shared })
    }

    /// Sets whether the group is viable. A group is not viable while a host driver uses one of its devices.
    ///
    /// A group without hardware has no other user, so it is always viable. A group in a container stays there.
    pub fn set_viable(&self, viable: bool) {
        self.shared.owner.lock().viable = viable;
    }

    /// Opens the group. EBUSY while it is open, and while one of its devices is bound through its
    /// [`Cdev`](crate::Cdev).
    pub fn open(&self) -> Result<GroupFile, Errno> {
        let mut state = self.shared.state.lock();
        if self.shared.devices.iter().any(DeviceFile::blocks_group) {
            return Err(Errno::EBUSY);
        }
        if std::mem::replace(&mut state.opened, true) {
            return Err(Errno::EBUSY);
        }
        Ok(GroupFile { opened: Arc::new(Opened { group: self.clone() }) })
    }

    pub(crate) fn devices(&self) -> &[DeviceFile] {
        &self.shared.devices
    }

    /// Runs a function unless the group is open, which is EBUSY.
    pub(crate) fn unless_open<T>(&self, act: impl FnOnce() -> T) -> Result<T, Errno> {
        let state = self.shared.state.lock();
        if state.opened { Err(Errno::EBUSY) } else { Ok(act()) }
    }

    /// Claims the group for a device that is bound to `iommufd`. EPERM if it is not viable, or claimed by another
    /// iommufd.
    pub(crate) fn claim(&self, iommufd: &Iommufd) -> Result<Claim, Errno> {
        let mut owner = self.shared.owner.lock();
        if !owner.viable {
            return Err(Errno::EPERM);
        }
        match &mut owner.iommufd {
            Some((other, _)) if !other.is(iommufd) => return Err(Errno::EPERM),
            Some((_, shares)) => *shares += 1,
            none => *none = Some((iommufd.clone(), 1)),
        }
        Ok(Claim { group: self.clone() })
    }

    /// Returns the identity of this group in a container, valid as long as the group lives.
    fn identity(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }
}

impl GroupFile {
    /// VFIO_GROUP_GET_STATUS.
    pub fn status(&self) -> GroupFlags {
        let shared = self.shared();
        let state = shared.state.lock();
        if state.has_iommu() {
            GroupFlags::VIABLE | GroupFlags::CONTAINER_SET
        } else if shared.may_be_used() {
            GroupFlags::VIABLE
        } else {
            GroupFlags::empty()
        }
    }

    /// VFIO_GROUP_SET_CONTAINER: EINVAL if the group has one, EPERM if it is not viable; if the container has an IOMMU,
    /// also the error of attaching the group to it.
    pub fn set_container(&self, container: &Container) -> Result<(), Errno> {
        let shared = self.shared();
        let mut state = shared.state.lock();
        if state.has_iommu() {
            return Err(Errno::EINVAL);
        }
        if !shared.may_be_used() {
            return Err(Errno::EPERM);
        }
        container.attach(Member {
            group: self.opened.group.identity(),
            translation: shared.translation.clone(),
            buses: shared.devices.iter().map(|device| device.bus().clone()).collect(),
        })?;
        state.container = Some(container.clone());
        Ok(())
    }

    /// VFIO_GROUP_SET_CONTAINER with an iommufd in place of a container: EINVAL if the group has one. An address space
    /// of the iommufd replaces the container; without one, the iommufd creates one
    /// (`iommufd_vfio_compat_ioas_create()`).
    pub fn set_iommufd(&self, iommufd: &Iommufd) -> Result<(), Errno> {
        let mut state = self.shared().state.lock();
        if state.has_iommu() {
            return Err(Errno::EINVAL);
        }
        iommufd.make_compatible()?;
        state.iommufd = Some(iommufd.clone());
        Ok(())
    }

    /// VFIO_GROUP_UNSET_CONTAINER: EINVAL if it has none, EBUSY while a device is open. When the last group leaves, the
    /// IOMMU and all its mappings are removed.
    ///
    /// With an iommufd this is possible at any time; open devices stay attached to it.
    pub fn unset_container(&self) -> Result<(), Errno> {
        let shared = self.shared();
        let mut state = shared.state.lock();
        if state.iommufd.take().is_some() {
            return Ok(());
        }
        if state.container.is_none() {
            return Err(Errno::EINVAL);
        }
        if state.open_devices.iter().any(|count| *count > 0) {
            return Err(Errno::EBUSY);
        }
        if let Some(container) = state.container.take() {
            container.detach(self.opened.group.identity());
        }
        Ok(())
    }

    /// VFIO_GROUP_GET_DEVICE_FD: ENODEV for an unknown name, EINVAL before the group is in a container and before the
    /// container has an IOMMU. A device can be opened more than once.
    ///
    /// A PCI device's name may be followed by ` vf_token=UUID` ([`PhysicalFunction`](crate::PhysicalFunction)), which
    /// is checked before the container: EINVAL for a token on a device without tokens and for anything else after the
    /// name, EACCES for a missing or wrong token where one is required.
    ///
    /// With an iommufd the first open binds the device and attaches it: EPERM if the group is not viable, ENODEV if the
    /// address space that replaces a container is gone, and the errors of attaching the device.
    pub fn device(&self, name: &str) -> Result<OpenDevice, Errno> {
        self.open_device(name.as_bytes())
    }

    pub(crate) fn open_device(&self, name: &[u8]) -> Result<OpenDevice, Errno> {
        let shared = self.shared();
        let mut named = Err(Errno::ENODEV);
        for (index, device) in shared.devices.iter().enumerate() {
            if device.matches(name)? {
                named = Ok(index);
                break;
            }
        }
        let index = named?;
        let mut state = shared.state.lock();
        let device = &shared.devices[index];
        match &state.iommufd {
            Some(iommufd) => device.open(Way::Group, || self.bind(device, iommufd).map(Some))?,
            None if state.container.as_ref().is_some_and(Container::has_iommu) => {
                device.open(Way::Group, || Ok(None))?;
            }
            None => return Err(Errno::EINVAL),
        }
        state.open_devices[index] += 1;
        Ok(OpenDevice { file: Arc::new(OpenedDevice { opened: self.opened.clone(), index }) })
    }

    /// `vfio_df_iommufd_bind()` and `vfio_iommufd_compat_attach_ioas()`.
    fn bind(&self, device: &DeviceFile, iommufd: &Iommufd) -> Result<Binding, Errno> {
        let translation = &self.shared().translation;
        let claim = translation.is_hardware().then(|| self.group().claim(iommufd)).transpose()?;
        let id = iommufd.bind(device.bus().clone(), &Iommu::from(translation))?;
        iommufd.attach_compatible(id).inspect_err(|_| iommufd.unbind(id))?;
        Ok(Binding::new(iommufd.clone(), id, claim))
    }

    pub(crate) fn has_iommu(&self) -> bool {
        self.shared().state.lock().has_iommu()
    }

    pub(crate) fn group(&self) -> &Group {
        &self.opened.group
    }

    fn shared(&self) -> &Shared {
        &self.opened.group.shared
    }
}

impl From<Arc<Shared>> for Group {
    fn from(shared: Arc<Shared>) -> Group {
        Group { shared }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut owner = self.group.shared.owner.lock();
        match &mut owner.iommufd {
            Some((_, shares)) if *shares > 1 => *shares -= 1,
            last => *last = None,
        }
    }
}

impl State {
    /// `vfio_group_has_iommu()`.
    fn has_iommu(&self) -> bool {
        self.container.is_some() || self.iommufd.is_some()
    }
}

impl Shared {
    fn may_be_used(&self) -> bool {
        self.owner.lock().viable || !self.translation.is_hardware()
    }
}

impl Deref for OpenDevice {
    type Target = DeviceFile;

    fn deref(&self) -> &DeviceFile {
        &self.file.opened.group.shared.devices[self.file.index]
    }
}

impl Drop for OpenedDevice {
    fn drop(&mut self) {
        let shared = &self.opened.group.shared;
        let mut state = shared.state.lock();
        state.open_devices[self.index] -= 1;
        shared.devices[self.index].close_one();
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut state = self.group.shared.state.lock();
        if let Some(container) = state.container.take() {
            container.detach(self.group.identity());
        }
        state.iommufd = None;
        state.opened = false;
    }
}
