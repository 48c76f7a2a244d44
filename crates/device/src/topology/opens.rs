//! The rules for opening a device: through its group or by its own file, bound to an iommufd or not.
//!
//! The kernel keeps this in `struct vfio_device` (`open_count`, `cdev_opened`, `iommufd_device`). The two ways exclude
//! each other: a group cannot be opened while one of its devices is bound through its cdev, and a device cannot be
//! bound while its group is open (`drivers/vfio/group.c`). The files are in [`group`](crate::topology::group) and
//! [`cdev`](crate::topology::cdev).

use std::sync::{OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard};
use whimbrel_protocol::Errno;

use super::group::{self, Claim, Group};
use crate::core::file::DeviceFile;
use crate::iommu::iommufd::Iommufd;
use crate::topology::set::DeviceSet;
use crate::topology::vf_token::Role;

/// The open state of one device.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    state: Mutex<State>,
    set: OnceLock<DeviceSet>,
    role: OnceLock<Role>,
    /// Lock in place of a set's, for a device without a set.
    alone: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    group: Weak<group::Shared>,
    /// Number of processes that bind it through its cdev, or try to (a share of the kernel's `cdev_device_open_cnt`).
    blockers: u32,
    count: u32,
    by_own_file: bool,
    binding: Option<Binding>,
    /// It was closed and could not be reset on its own.
    needs_reset: bool,
}

/// The binding of a device to an iommufd.
#[derive(Debug)]
pub(crate) struct Binding {
    iommufd: Iommufd,
    id: u32,
    _claim: Option<Claim>,
}

impl Binding {
    /// Returns the binding of a device with the number `id`. The claim keeps other iommufds from the device's group.
    pub(crate) fn new(iommufd: Iommufd, id: u32, claim: Option<Claim>) -> Binding {
        Binding { iommufd, id, _claim: claim }
    }
}

/// The way of opening a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Group,
    OwnFile,
}

/// A guard that keeps the group of a device from being opened.
#[derive(Debug)]
pub(crate) struct GroupBlocked {
    device: DeviceFile,
}

impl Opens {
    /// Returns the device's SR-IOV role, if any.
    pub(crate) fn role(&self) -> Option<&Role> {
        self.role.get()
    }

    /// Sets the device's SR-IOV role. EEXIST if it has one.
    pub(crate) fn set_role(&self, role: Role) -> Result<(), Errno> {
        self.role.set(role).map_err(|_| Errno::EEXIST)
    }
}

impl DeviceFile {
    pub(super) fn opens(&self) -> &Opens {
        self.open_rules()
    }

    /// Adds the device to a group. EEXIST if it is in another one.
    pub(crate) fn join_group(&self, group: Weak<group::Shared>) -> Result<(), Errno> {
        let mut state = self.opens().state.lock();
        if state.group.strong_count() > 0 {
            return Err(Errno::EEXIST);
        }
        state.group = group;
        drop(state);
        self.put_behind_files();
        Ok(())
    }

    pub(crate) fn group(&self) -> Option<Group> {
        self.opens().state.lock().group.upgrade().map(Group::from)
    }

    /// Adds the device to a set. EEXIST if it is in one.
    pub(crate) fn join_set(&self, set: DeviceSet) -> Result<(), Errno> {
        self.opens().set.set(set).map_err(|_| Errno::EEXIST)
    }

    pub(crate) fn set(&self) -> Option<&DeviceSet> {
        self.opens().set.get()
    }

    /// `vfio_device_block_group()`: EBUSY while the group is open.
    pub(crate) fn block_group(&self) -> Result<GroupBlocked, Errno> {
        let block = || {
            self.opens().state.lock().blockers += 1;
            GroupBlocked { device: self.clone() }
        };
        match self.group() {
            Some(group) => group.unless_open(block),
            None => Ok(block()),
        }
    }

    pub(crate) fn blocks_group(&self) -> bool {
        self.opens().state.lock().blockers > 0
    }

    /// `vfio_df_open()`: opens the device once more through the group, or once through its cdev (EINVAL while it is
    /// open). The first open binds the device to an iommufd, if there is one.
    pub(crate) fn open(
        &self,
        way: Way,
        bind: impl FnOnce() -> Result<Option<Binding>, Errno>,
    ) -> Result<(), Errno> {
        let _exclusive = self.exclusive();
        if self.open_count() > 0 && way == Way::OwnFile {
            return Err(Errno::EINVAL);
        }
        if self.open_count() == 0 {
            let binding = bind()?;
            let mut state = self.opens().state.lock();
            state.binding = binding;
            state.by_own_file = way == Way::OwnFile;
            drop(state);
            self.begin_use();
            self.use_vf_token(true);
        }
        self.opens().state.lock().count += 1;
        Ok(())
    }

    /// `vfio_df_close()`. The last close removes the user's setup. A device that cannot be reset on its own is then
    /// reset together with its set, if none of the set is open.
    pub(crate) fn close_one(&self) {
        let _exclusive = self.exclusive();
        if self.open_count() == 1 {
            self.use_vf_token(false);
            let needs_reset = !self.close();
            let binding = {
                let mut state = self.opens().state.lock();
                state.needs_reset = needs_reset;
                state.by_own_file = false;
                state.binding.take()
            };
            if let Some(binding) = binding {
                binding.iommufd.unbind(binding.id);
            }
        }
        self.opens().state.lock().count -= 1;
        if let Some(set) = self.set() {
            set.reset_if_unused(self);
        }
    }

    /// Locks the opens of the set: while the guard is held, no device of the set is opened or closed.
    pub(crate) fn exclusive(&self) -> MutexGuard<'_, ()> {
        self.set().map_or_else(|| self.opens().alone.lock(), DeviceSet::lock)
    }

    pub(crate) fn open_count(&self) -> u32 {
        self.opens().state.lock().count
    }

    pub(crate) fn is_open_by_own_file(&self) -> bool {
        self.opens().state.lock().by_own_file
    }

    pub(crate) fn bound_to(&self) -> Option<Iommufd> {
        self.opens().state.lock().binding.as_ref().map(|binding| binding.iommufd.clone())
    }

    /// Returns its number in `iommufd`, if it is bound there.
    pub(crate) fn id_in(&self, iommufd: &Iommufd) -> Option<u32> {
        let state = self.opens().state.lock();
        state.binding.as_ref().filter(|binding| binding.iommufd.is(iommufd)).map(|binding| binding.id)
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.opens().state.lock().needs_reset
    }

    pub(crate) fn was_reset(&self) {
        self.opens().state.lock().needs_reset = false;
    }
}

impl Drop for GroupBlocked {
    fn drop(&mut self) {
        self.device.opens().state.lock().blockers -= 1;
    }
}
