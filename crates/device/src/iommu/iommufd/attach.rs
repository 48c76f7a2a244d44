//! Attaching devices and their PASIDs to address spaces and page tables (`drivers/iommu/iommufd/device.c`, and the
//! state in `drivers/vfio/iommufd.c`).

use std::collections::{BTreeMap, BTreeSet};

use whimbrel_protocol::Errno;
use whimbrel_uapi::iommufd::HwptAllocFlags;

use super::Iommu;
use super::device::{Access, Device};
use super::hwpt::Hwpt;
use super::ioas::Origin;
use super::object::{Object, Objects};
use crate::bus::Bus;

/// The largest PASID that the kernel can allocate (`ida_alloc_range()`).
const LAST_PASID: u32 = i32::MAX as u32;

impl Objects {
    pub(crate) fn bind(&mut self, bus: Bus, iommu: &Iommu) -> Result<u32, Errno> {
        let id = self.free_id()?;
        let object = match iommu {
            Iommu::Emulated => Object::Access(Access { bus, attached: None }),
            Iommu::Own(iommu) => Object::Device(Device {
                bus,
                iommu: iommu.clone(),
                tables: BTreeMap::new(),
                attached: false,
                pasids: BTreeSet::new(),
            }),
        };
        self.by_id.insert(id, object);
        Ok(id)
    }

    /// Detaches a device with all its PASIDs, and forgets it.
    pub(crate) fn unbind(&mut self, id: u32) {
        let pasids = self.device(id).map(|device| device.pasids.clone()).unwrap_or_default();
        for pasid in pasids {
            self.detach(id, Some(pasid));
        }
        self.detach(id, None);
        self.by_id.remove(&id);
    }

    /// Attaches a device, or one of its PASIDs, in place of its earlier attachment, and returns what it uses now. An
    /// error changes nothing.
    ///
    /// ENOSPC for a PASID of more than 31 bits; ENOENT for a missing object; EINVAL for one that is neither address
    /// space nor page table, for a table that the device's IOMMU cannot use, for a PASID that the device cannot have,
    /// and unless all tables of a device with PASIDs were created for PASIDs; EBUSY for PASID 0 of a device that is
    /// attached without a PASID; EADDRINUSE if something is mapped in the device's reserved ranges; EFAULT if memory is
    /// unavailable.
    pub(crate) fn attach(&mut self, id: u32, pasid: Option<u32>, to: u32) -> Result<u32, Errno> {
        match self.by_id.get(&id) {
            Some(Object::Access(access)) => {
                let (bus, before) = (access.bus.clone(), access.attached);
                self.attach_access(id, &bus, before, to).map(|()| to)
            }
            Some(Object::Device(device)) => {
                let replaces = device.is_attached(pasid);
                let pasid_number = pasid.unwrap_or(0);
                if !replaces && pasid_number > LAST_PASID {
                    return Err(Errno::ENOSPC);
                }
                let origin = Origin { device: id, pasid: pasid_number };
                let used = match self.by_id.get(&to) {
                    None => Err(Errno::ENOENT),
                    Some(Object::Hwpt(_)) => self.use_table(origin, to, replaces).map(|()| to),
                    Some(Object::Ioas(_)) => self.use_automatic_table(origin, to, replaces),
                    Some(_) => Err(Errno::EINVAL),
                }?;
                self.device_mut(id)?.set_attached(pasid, true);
                Ok(used)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Detaches a device or one of its PASIDs, if attached.
    pub(crate) fn detach(&mut self, id: u32, pasid: Option<u32>) {
        let origin = Origin { device: id, pasid: pasid.unwrap_or(0) };
        match self.by_id.get_mut(&id) {
            Some(Object::Access(access)) => {
                let Some(ioas_id) = access.attached.take() else { return };
                self.stop_using(ioas_id, id, 0);
                if let Ok(ioas) = self.ioas_mut(ioas_id) {
                    ioas.detach(origin);
                }
            }
            Some(Object::Device(device)) if device.is_attached(pasid) => {
                device.set_attached(pasid, false);
                device.bus.set_pasid(origin.pasid, None);
                let Some(table) = device.tables.remove(&origin.pasid) else { return };
                if let Ok(ioas_id) = self.hwpt(table).map(|hwpt| hwpt.ioas)
                    && let Ok(ioas) = self.ioas_mut(ioas_id)
                {
                    ioas.detach(origin);
                }
                self.leave_table(origin, table);
            }
            _ => {}
        }
    }

    fn attach_access(&mut self, id: u32, bus: &Bus, before: Option<u32>, to: u32) -> Result<(), Errno> {
        let ioas = self.ioas(to)?;
        if before == Some(to) {
            return Ok(());
        }
        ioas.check_page_alignment()?;
        self.detach(id, None);
        self.ioas_mut(to)?.attach_access(id, bus.space(0));
        self.start_using(to, id, 0);
        if let Some(Object::Access(access)) = self.by_id.get_mut(&id) {
            access.attached = Some(to);
        }
        Ok(())
    }

    /// Returns an automatic page table of the address space that fits, or a new one.
    fn use_automatic_table(&mut self, origin: Origin, ioas: u32, replaces: bool) -> Result<u32, Errno> {
        let automatic = self.tables(ioas).filter(|(_, hwpt)| hwpt.automatic).map(|(id, _)| id);
        for table in automatic.collect::<Vec<_>>() {
            match self.use_table(origin, table, replaces) {
                // Not for this device. Any other error is one of the address space.
                Err(Errno::EINVAL) => {}
                result => return result.map(|()| table),
            }
        }
        let made = Hwpt::new(ioas, &self.device(origin.device)?.iommu, HwptAllocFlags::empty(), true);
        if !replaces {
            // The kernel attaches the device first, and then maps what there is.
            self.check_table(origin, &made, replaces)?;
        }
        let table = self.add_hwpt(made)?;
        self.use_table(origin, table, replaces).map(|()| table).inspect_err(|_| self.remove(table))
    }

    /// Checks in the kernel's order that a table, which may not exist yet, can be used.
    fn check_table(&self, origin: Origin, hwpt: &Hwpt, replaces: bool) -> Result<(), Errno> {
        let device = self.device(origin.device)?;
        let before = match (device.tables.get(&origin.pasid), replaces) {
            (Some(_), false) => return Err(Errno::EBUSY),
            (None, true) => return Err(Errno::EINVAL),
            (None, false) => None,
            (Some(table), true) => Some(self.hwpt(*table)?.ioas),
        };
        if origin.pasid == 0 && before != Some(hwpt.ioas) {
            self.ioas(hwpt.ioas)?.check_reserved(&device.iommu.reserved)?;
        }
        let fits = if origin.pasid == 0 {
            hwpt.is_for_pasids() || device.tables.keys().all(|pasid| *pasid == 0)
        } else {
            let of_device = device.tables.get(&0).map(|table| self.hwpt(*table)).transpose()?;
            hwpt.is_for_pasids()
                && of_device.is_none_or(Hwpt::is_for_pasids)
                && origin.pasid < 1 << device.iommu.pasid_width()
        };
        if fits { hwpt.check_iommu(&device.iommu) } else { Err(Errno::EINVAL) }
    }

    fn use_table(&mut self, origin: Origin, table: u32, replaces: bool) -> Result<(), Errno> {
        let device = self.device(origin.device)?;
        let before = device.tables.get(&origin.pasid).copied();
        if replaces && before == Some(table) {
            return Ok(());
        }
        let hwpt = *self.hwpt(table)?;
        self.check_table(origin, &hwpt, replaces)?;
        let bus = device.bus.clone();
        let space = bus.space(origin.pasid);
        let reserved = if origin.pasid == 0 { device.iommu.reserved.clone() } else { Vec::new() };
        match before.and_then(|before| Some((before, self.hwpt(before).ok()?.ioas))) {
            Some((_, ioas)) if ioas == hwpt.ioas => self.ioas_mut(ioas)?.change_domain(origin, table),
            Some((before, ioas)) => {
                self.ioas_mut(ioas)?.detach(origin);
                let attach = self.ioas_mut(hwpt.ioas)?.attach_device(origin, space.clone(), table, &reserved);
                if let Err(errno) = attach {
                    self.ioas_mut(ioas)?.attach_device(origin, space, before, &reserved)?;
                    return Err(errno);
                }
            }
            None => self.ioas_mut(hwpt.ioas)?.attach_device(origin, space.clone(), table, &reserved)?,
        }
        if let Some(before) = before {
            self.leave_table(origin, before);
        } else {
            bus.set_pasid(origin.pasid, Some(space));
        }
        self.start_using(table, origin.device, origin.pasid);
        self.device_mut(origin.device)?.tables.insert(origin.pasid, table);
        Ok(())
    }

    /// Releases a page table; an automatic one is destroyed with its last device.
    fn leave_table(&mut self, origin: Origin, table: u32) {
        self.stop_using(table, origin.device, origin.pasid);
        if self.hwpt(table).is_ok_and(|hwpt| hwpt.automatic) && !self.in_use(table) {
            self.remove(table);
        }
    }

    fn device_mut(&mut self, id: u32) -> Result<&mut Device, Errno> {
        match self.by_id.get_mut(&id) {
            Some(Object::Device(device)) => Ok(device),
            _ => Err(Errno::ENOENT),
        }
    }
}
