//! The numbered objects of an iommufd, and the references that keep each of them in use.
//!
//! The rules for numbers and IOMMU_DESTROY are those of `drivers/iommu/iommufd/main.c`. `device` has the attachments.

use std::collections::{BTreeMap, BTreeSet};

use whimbrel_protocol::Errno;

use super::device::{Access, Device};
use super::hwpt::Hwpt;
use super::ioas::Ioas;
use super::pages::PAGE_SIZE;

/// The largest number an object can have.
const LAST_ID: u32 = i32::MAX as u32;

#[derive(Debug)]
pub(crate) enum Object {
    Ioas(Ioas),
    Hwpt(Hwpt),
    /// A device with an IOMMU of its own.
    Device(Device),
    /// A device with an emulated IOMMU; requests do not see it.
    Access(Access),
}

#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) by_id: BTreeMap<u32, Object>,
    /// The uses of objects: used object, user, and PASID (0 for none).
    uses: BTreeSet<(u32, u32, u32)>,
    /// The address space that replaces a container.
    compatible: Option<u32>,
    /// True if locked memory is charged to the process instead of the user.
    pub(crate) charges_process: bool,
}

/// The kind of an object as the target of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageTable {
    Ioas,
    Hwpt,
    /// Neither, or no object.
    None,
}

impl Objects {
    pub(crate) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Returns the next object's number: the lowest free one.
    pub(crate) fn free_id(&self) -> Result<u32, Errno> {
        let mut id = 1;
        for taken in self.by_id.keys() {
            if *taken != id {
                break;
            }
            id += 1;
        }
        if id > LAST_ID { Err(Errno::ENOSPC) } else { Ok(id) }
    }

    pub(crate) fn add_ioas(&mut self) -> Result<u32, Errno> {
        let id = self.free_id()?;
        self.by_id.insert(id, Object::Ioas(Ioas::default()));
        Ok(id)
    }

    pub(crate) fn ioas(&self, id: u32) -> Result<&Ioas, Errno> {
        match self.by_id.get(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn ioas_mut(&mut self, id: u32) -> Result<&mut Ioas, Errno> {
        match self.by_id.get_mut(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn all_ioas(&self) -> impl Iterator<Item = &Ioas> {
        self.by_id.values().filter_map(|object| match object {
            Object::Ioas(ioas) => Some(ioas),
            _ => None,
        })
    }

    pub(crate) fn hwpt(&self, id: u32) -> Result<&Hwpt, Errno> {
        match self.by_id.get(&id) {
            Some(Object::Hwpt(hwpt)) => Ok(hwpt),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn device(&self, id: u32) -> Result<&Device, Errno> {
        match self.by_id.get(&id) {
            Some(Object::Device(device)) => Ok(device),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn page_table(&self, id: u32) -> PageTable {
        match self.by_id.get(&id) {
            Some(Object::Ioas(_)) => PageTable::Ioas,
            Some(Object::Hwpt(_)) => PageTable::Hwpt,
            _ => PageTable::None,
        }
    }

    /// Creates a page table for an address space. EINVAL if its pages are larger than the process's or a mapping has no
    /// rights, EADDRINUSE if the mappings do not fit, EFAULT if memory is unavailable.
    pub(crate) fn add_hwpt(&mut self, hwpt: Hwpt) -> Result<u32, Errno> {
        let id = self.free_id()?;
        if hwpt.page_sizes & (PAGE_SIZE | (PAGE_SIZE - 1)) == 0 {
            return Err(Errno::EINVAL);
        }
        self.ioas_mut(hwpt.ioas)?.add_domain(id, hwpt.last_iova)?;
        self.start_using(hwpt.ioas, id, 0);
        self.by_id.insert(id, Object::Hwpt(hwpt));
        Ok(id)
    }

    /// Returns the page tables of an address space.
    pub(crate) fn tables(&self, ioas: u32) -> impl Iterator<Item = (u32, &Hwpt)> {
        self.users(ioas).filter_map(|user| Some((user, self.hwpt(user).ok()?)))
    }

    /// IOMMU_DESTROY: ENOENT, EBUSY for an object in use. A bound device is in use by its file.
    pub(crate) fn destroy(&mut self, id: u32) -> Result<(), Errno> {
        match self.by_id.get(&id).ok_or(Errno::ENOENT)? {
            Object::Device(_) | Object::Access(_) => return Err(Errno::EBUSY),
            Object::Ioas(_) | Object::Hwpt(_) if self.in_use(id) => return Err(Errno::EBUSY),
            Object::Ioas(_) | Object::Hwpt(_) => {}
        }
        self.remove(id);
        Ok(())
    }

    /// Undoes the making of an object whose number the user was never told.
    pub(crate) fn remove(&mut self, id: u32) {
        if let Some(Object::Hwpt(hwpt)) = self.by_id.remove(&id) {
            self.stop_using(hwpt.ioas, id, 0);
            if let Ok(ioas) = self.ioas_mut(hwpt.ioas) {
                ioas.remove_domain(id);
            }
        }
        if self.compatible == Some(id) {
            self.compatible = None;
        }
    }

    pub(crate) fn in_use(&self, id: u32) -> bool {
        self.users(id).next().is_some()
    }

    /// Returns the users of an object: page tables, and devices once for each PASID.
    fn users(&self, id: u32) -> impl Iterator<Item = u32> {
        self.uses.range((id, 0, 0)..=(id, u32::MAX, u32::MAX)).map(|(_, user, _)| *user)
    }

    pub(crate) fn start_using(&mut self, id: u32, user: u32, pasid: u32) {
        self.uses.insert((id, user, pasid));
    }

    pub(crate) fn stop_using(&mut self, id: u32, user: u32, pasid: u32) {
        self.uses.remove(&(id, user, pasid));
    }

    /// Returns the address space that replaces a container; ENODEV without one.
    pub(crate) fn compatible(&self) -> Result<u32, Errno> {
        self.compatible.ok_or(Errno::ENODEV)
    }

    /// Creates the address space that replaces a container, if it does not exist.
    pub(crate) fn make_compatible(&mut self) -> Result<(), Errno> {
        if self.compatible.is_none() {
            self.compatible = Some(self.add_ioas()?);
        }
        Ok(())
    }

    /// Sets the address space that replaces a container. ENOENT if it is not an address space.
    pub(crate) fn set_compatible(&mut self, id: Option<u32>) -> Result<(), Errno> {
        if let Some(id) = id {
            self.ioas(id)?;
        }
        self.compatible = id;
        Ok(())
    }
}
