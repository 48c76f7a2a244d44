//! A device bound to an iommufd, and the attachments of the device and its PASIDs.

use std::collections::{BTreeMap, BTreeSet};

use super::OwnIommu;
use crate::bus::Bus;

/// A device with an IOMMU of its own.
#[derive(Debug)]
pub(crate) struct Device {
    pub(super) bus: Bus,
    pub(crate) iommu: OwnIommu,
    /// The page table of each PASID; 0 stands for requests without a PASID.
    pub(super) tables: BTreeMap<u32, u32>,
    /// True if it is attached by a request without a PASID.
    pub(super) attached: bool,
    /// The PASIDs that are attached, by requests with a PASID. The kernel lets 0 be one of them.
    pub(super) pasids: BTreeSet<u32>,
}

/// A device with an emulated IOMMU.
#[derive(Debug)]
pub(crate) struct Access {
    pub(super) bus: Bus,
    /// The address space it uses.
    pub(super) attached: Option<u32>,
}

impl Device {
    pub(super) fn is_attached(&self, pasid: Option<u32>) -> bool {
        pasid.map_or(self.attached, |pasid| self.pasids.contains(&pasid))
    }

    pub(super) fn set_attached(&mut self, pasid: Option<u32>, attached: bool) {
        match (pasid, attached) {
            (None, _) => self.attached = attached,
            (Some(pasid), true) => drop(self.pasids.insert(pasid)),
            (Some(pasid), false) => drop(self.pasids.remove(&pasid)),
        }
    }
}
