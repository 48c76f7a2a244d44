//! The objects of an iommufd under their numbers, and what keeps each of them in use.
//!
//! The rules are those of `drivers/iommu/iommufd/main.c` (numbers, IOMMU_DESTROY) and `device.c` (attaching).

use std::collections::{BTreeMap, BTreeSet};

use whimbrel_protocol::Errno;

use super::hwpt::Hwpt;
use super::ioas::Ioas;
use super::{Iommu, OwnIommu};
use crate::bus::Bus;

/// The largest number an object can have.
const LAST_ID: u32 = i32::MAX as u32;

#[derive(Debug)]
enum Object {
    Ioas(Ioas),
    Hwpt(Hwpt),
    /// A device with an IOMMU of its own.
    Device(Device),
    /// A device with an emulated IOMMU; requests do not see it.
    Access(Access),
}

#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) bus: Bus,
    pub(super) iommu: OwnIommu,
    /// The page table it uses.
    attached: Option<u32>,
}

#[derive(Debug)]
struct Access {
    bus: Bus,
    /// The address space it uses.
    attached: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    by_id: BTreeMap<u32, Object>,
    /// Who uses which object: the used one first.
    uses: BTreeSet<(u32, u32)>,
    /// The address space that stands in for a container.
    compatible: Option<u32>,
    /// Locked memory is charged to the process, not to the user.
    pub(super) charges_process: bool,
}

/// What an object is as the target of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageTable {
    Ioas,
    Hwpt,
    /// Neither, or no object.
    None,
}

impl Objects {
    pub(super) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// The number the next object gets: the lowest that is free.
    fn free_id(&self) -> Result<u32, Errno> {
        let mut id = 1;
        for taken in self.by_id.keys() {
            if *taken != id {
                break;
            }
            id += 1;
        }
        if id > LAST_ID { Err(Errno::ENOSPC) } else { Ok(id) }
    }

    pub(super) fn add_ioas(&mut self) -> Result<u32, Errno> {
        let id = self.free_id()?;
        self.by_id.insert(id, Object::Ioas(Ioas::default()));
        Ok(id)
    }

    pub(super) fn ioas(&self, id: u32) -> Result<&Ioas, Errno> {
        match self.by_id.get(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(super) fn ioas_mut(&mut self, id: u32) -> Result<&mut Ioas, Errno> {
        match self.by_id.get_mut(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(super) fn all_ioas(&self) -> impl Iterator<Item = &Ioas> {
        self.by_id.values().filter_map(|object| match object {
            Object::Ioas(ioas) => Some(ioas),
            _ => None,
        })
    }

    pub(super) fn hwpt(&self, id: u32) -> Result<&Hwpt, Errno> {
        match self.by_id.get(&id) {
            Some(Object::Hwpt(hwpt)) => Ok(hwpt),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(super) fn device(&self, id: u32) -> Result<&Device, Errno> {
        match self.by_id.get(&id) {
            Some(Object::Device(device)) => Ok(device),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(super) fn page_table(&self, id: u32) -> PageTable {
        match self.by_id.get(&id) {
            Some(Object::Ioas(_)) => PageTable::Ioas,
            Some(Object::Hwpt(_)) => PageTable::Hwpt,
            _ => PageTable::None,
        }
    }

    /// Makes a page table for an address space. EADDRINUSE if what is mapped there does not fit the IOMMU,
    /// EFAULT if it is memory that cannot be had.
    pub(super) fn add_hwpt(
        &mut self,
        ioas_id: u32,
        iommu: &OwnIommu,
        tracks: bool,
        automatic: bool,
    ) -> Result<u32, Errno> {
        let id = self.free_id()?;
        self.ioas_mut(ioas_id)?.add_domain(id, iommu.last_iova)?;
        self.by_id.insert(id, Object::Hwpt(Hwpt { ioas: ioas_id, tracks, automatic }));
        self.uses.insert((ioas_id, id));
        Ok(id)
    }

    /// IOMMU_DESTROY: ENOENT, EBUSY for an object in use. A bound device is in use by its file.
    pub(super) fn destroy(&mut self, id: u32) -> Result<(), Errno> {
        match self.by_id.get(&id).ok_or(Errno::ENOENT)? {
            Object::Device(_) | Object::Access(_) => return Err(Errno::EBUSY),
            Object::Ioas(_) | Object::Hwpt(_) if self.in_use(id) => return Err(Errno::EBUSY),
            Object::Ioas(_) | Object::Hwpt(_) => {}
        }
        self.remove(id);
        Ok(())
    }

    /// Undoes the making of an object whose number the user was never told.
    pub(super) fn remove(&mut self, id: u32) {
        if let Some(Object::Hwpt(hwpt)) = self.by_id.remove(&id) {
            self.uses.remove(&(hwpt.ioas, id));
            if let Ok(ioas) = self.ioas_mut(hwpt.ioas) {
                ioas.remove_domain(id);
            }
        }
        if self.compatible == Some(id) {
            self.compatible = None;
        }
    }

    fn in_use(&self, id: u32) -> bool {
        self.uses.range((id, 0)..=(id, u32::MAX)).next().is_some()
    }

    /// The address space that stands in for a container: ENODEV if there is none.
    pub(super) fn compatible(&self) -> Result<u32, Errno> {
        self.compatible.ok_or(Errno::ENODEV)
    }

    /// ENOENT if it is no address space.
    pub(super) fn set_compatible(&mut self, id: Option<u32>) -> Result<(), Errno> {
        if let Some(id) = id {
            self.ioas(id)?;
        }
        self.compatible = id;
        Ok(())
    }

    pub(super) fn bind(&mut self, bus: Bus, iommu: &Iommu) -> Result<u32, Errno> {
        let id = self.free_id()?;
        let object = match iommu {
            Iommu::Emulated => Object::Access(Access { bus, attached: None }),
            Iommu::Own(iommu) => Object::Device(Device { bus, iommu: iommu.clone(), attached: None }),
        };
        self.by_id.insert(id, object);
        Ok(id)
    }

    pub(super) fn unbind(&mut self, id: u32) {
        self.detach(id);
        self.by_id.remove(&id);
    }

    /// Attaches a device, in place of what it was attached to, and says what it uses now. If it fails, the
    /// device stays where it was.
    pub(super) fn attach(&mut self, id: u32, to: u32) -> Result<u32, Errno> {
        match self.by_id.get(&id) {
            Some(Object::Access(access)) => {
                let (bus, before) = (access.bus.clone(), access.attached);
                self.attach_access(id, bus, before, to).map(|()| to)
            }
            Some(Object::Device(device)) => {
                let device = device.clone();
                self.attach_device(id, &device, to)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn attach_access(&mut self, id: u32, bus: Bus, before: Option<u32>, to: u32) -> Result<(), Errno> {
        let ioas = self.ioas(to)?;
        if before == Some(to) {
            return Ok(());
        }
        ioas.check_page_alignment()?;
        self.detach(id);
        self.ioas_mut(to)?.attach_access(id, bus);
        self.use_from_now(id, to);
        Ok(())
    }

    fn attach_device(&mut self, id: u32, device: &Device, to: u32) -> Result<u32, Errno> {
        let (hwpt_id, made) = match self.by_id.get(&to) {
            None => return Err(Errno::ENOENT),
            Some(Object::Hwpt(_)) => (to, false),
            Some(Object::Ioas(_)) => self.automatic_hwpt(to, device)?,
            Some(_) => return Err(Errno::EINVAL),
        };
        let result = self.use_hwpt(id, device, hwpt_id);
        if result.is_err() && made {
            self.remove(hwpt_id);
        }
        result.map(|()| hwpt_id)
    }

    /// A page table of an address space that was made for some device that attached to it, or a new one.
    fn automatic_hwpt(&mut self, ioas: u32, device: &Device) -> Result<(u32, bool), Errno> {
        let found = self.uses.range((ioas, 0)..=(ioas, u32::MAX)).find_map(|(_, user)| {
            matches!(self.by_id.get(user), Some(Object::Hwpt(hwpt)) if hwpt.automatic).then_some(*user)
        });
        match found {
            Some(id) => Ok((id, false)),
            None => self.add_hwpt(ioas, &device.iommu, false, true).map(|id| (id, true)),
        }
    }

    fn use_hwpt(&mut self, id: u32, device: &Device, hwpt_id: u32) -> Result<(), Errno> {
        if device.attached == Some(hwpt_id) {
            return Ok(());
        }
        let Hwpt { ioas: ioas_id, tracks, .. } = *self.hwpt(hwpt_id)?;
        if tracks && !device.iommu.dirty_tracking {
            return Err(Errno::EINVAL);
        }
        let before = device.attached.and_then(|hwpt| Some((hwpt, self.hwpt(hwpt).ok()?.ioas)));
        let reserved = &device.iommu.reserved;
        match before {
            Some((_, ioas)) if ioas == ioas_id => self.ioas_mut(ioas)?.change_domain(id, hwpt_id),
            Some((hwpt, ioas)) => {
                self.ioas(ioas_id)?.check_reserved(reserved)?;
                self.ioas_mut(ioas)?.detach(id);
                let bus = || device.bus.clone();
                if let Err(errno) = self.ioas_mut(ioas_id)?.attach_device(id, bus(), hwpt_id, reserved) {
                    self.ioas_mut(ioas)?.attach_device(id, bus(), hwpt, reserved)?;
                    return Err(errno);
                }
            }
            None => self.ioas_mut(ioas_id)?.attach_device(id, device.bus.clone(), hwpt_id, reserved)?,
        }
        if let Some(before) = device.attached {
            self.leave_hwpt(id, before);
        }
        self.use_from_now(id, hwpt_id);
        Ok(())
    }

    fn use_from_now(&mut self, id: u32, to: u32) {
        self.uses.insert((to, id));
        match self.by_id.get_mut(&id) {
            Some(Object::Access(access)) => access.attached = Some(to),
            Some(Object::Device(device)) => device.attached = Some(to),
            _ => {}
        }
    }

    /// A page table that was made for devices that attach goes with the last of them.
    fn leave_hwpt(&mut self, id: u32, hwpt_id: u32) {
        self.uses.remove(&(hwpt_id, id));
        if self.hwpt(hwpt_id).is_ok_and(|hwpt| hwpt.automatic) && !self.in_use(hwpt_id) {
            self.remove(hwpt_id);
        }
    }

    /// Takes from a device what it is attached to, if anything.
    pub(super) fn detach(&mut self, id: u32) {
        match self.by_id.get_mut(&id) {
            Some(Object::Access(access)) => {
                let Some(ioas_id) = access.attached.take() else { return };
                self.uses.remove(&(ioas_id, id));
                if let Ok(ioas) = self.ioas_mut(ioas_id) {
                    ioas.detach(id);
                }
            }
            Some(Object::Device(device)) => {
                let Some(hwpt_id) = device.attached.take() else { return };
                if let Ok(ioas_id) = self.hwpt(hwpt_id).map(|hwpt| hwpt.ioas)
                    && let Ok(ioas) = self.ioas_mut(ioas_id)
                {
                    ioas.detach(id);
                }
                self.leave_hwpt(id, hwpt_id);
            }
            _ => {}
        }
    }
}
