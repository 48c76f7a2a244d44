//! Devices behind regions, and a user that does what the text says.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use whimbrel_device::wrap::mediate::{Mediated, Mediators};
use whimbrel_device::wrap::migration_region::{Layout, MigrationRegion, RegionVendor, Version};
use whimbrel_device::{Bus, Capability, DeviceFile, Driver, Errno, MmapArea};
use whimbrel_models::{Accel, AccelConfig, Ports, Serial, SerialConfig};

pub(crate) const RUNNING: u32 = 1;
pub(crate) const SAVING: u32 = 2;
pub(crate) const RESUMING: u32 = 4;
/// v1's SAVING with RESUMING.
pub(crate) const ERROR: u32 = 6;

pub(crate) const DEVICE_STATE: u64 = 0;
pub(crate) const PENDING_BYTES: u64 = 8;
pub(crate) const DATA_OFFSET: u64 = 16;
pub(crate) const DATA_SIZE: u64 = 24;
pub(crate) const START_PFN: u64 = 32;
pub(crate) const PAGE_SIZE: u64 = 40;
pub(crate) const TOTAL_PFNS: u64 = 48;
pub(crate) const COPIED_PFNS: u64 = 56;

/// How a device comes to its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    ByItsDriver,
    ByAVendor,
}

/// A device whose last region is the migration region.
pub(crate) fn offer<D: Driver + 'static>(
    driver: impl FnOnce(Bus) -> D,
    layout: &Layout,
    offered: Offered,
) -> DeviceFile {
    DeviceFile::new("device", |bus| match (offered, driver(bus)) {
        (Offered::ByItsDriver, driver) => {
            Box::<dyn Driver>::from(MigrationRegion::new(driver, layout.clone()).unwrap())
        }
        (Offered::ByAVendor, driver) => {
            let vendors = Mediators::new();
            vendors.register(Arc::new(RegionVendor::new("vendor", layout.clone()))).unwrap();
            Mediated::new(driver, vendors).into()
        }
    })
}

pub(crate) fn serial(layout: &Layout, offered: Offered) -> DeviceFile {
    let config = SerialConfig::default().ports(Ports::Two);
    offer(|bus| Serial::new(config, bus), layout, offered)
}

pub(crate) fn accel(layout: &Layout, offered: Offered) -> DeviceFile {
    let config = AccelConfig::default().state_bytes(256 << 10).state_rate(1 << 20);
    offer(|bus| Accel::new(config, bus).unwrap(), layout, offered)
}

/// Every shape of region.
pub(crate) fn layouts() -> Vec<Layout> {
    let area = |offset, size| MmapArea::new(offset, size);
    [Version::V1, Version::Draft]
        .into_iter()
        .flat_map(|version| {
            [
                Layout::trapped(version, 1000),
                Layout::trapped(version, 0x10000),
                Layout::mapped(version, 0x4000),
                Layout::partly_mapped(version, 0x1000, 0x123),
                Layout::new(version, 0x2000, 0x4800, vec![area(0x3000, 0x1000), area(0x5000, 0x1000)]),
            ]
        })
        .map(Result::unwrap)
        .collect()
}

/// A user of the region, which reaches mapped parts of the data section through mappings.
pub(crate) struct User<'a> {
    pub(crate) device: &'a DeviceFile,
    pub(crate) index: u32,
    areas: Vec<MmapArea>,
}

impl User<'_> {
    pub(crate) fn new(device: &DeviceFile) -> User<'_> {
        let index = device.info().num_regions - 1;
        let areas =
            device.region_info(index).unwrap().capabilities.into_iter().find_map(
                |capability| match capability {
                    Capability::SparseMmap(areas) => Some(areas),
                    _ => None,
                },
            );
        User { device, index, areas: areas.unwrap_or_default() }
    }

    pub(crate) fn state(&self) -> Result<u32, Errno> {
        let mut state = [0; 4];
        self.device.read_region(self.index, DEVICE_STATE, &mut state)?;
        Ok(u32::from_ne_bytes(state))
    }

    pub(crate) fn set_state(&self, state: u32) -> Result<(), Errno> {
        self.device.write_region(self.index, DEVICE_STATE, &state.to_ne_bytes()).map(drop)
    }

    pub(crate) fn get(&self, field: u64) -> Result<u64, Errno> {
        let mut value = [0; 8];
        self.device.read_region(self.index, field, &mut value)?;
        Ok(u64::from_ne_bytes(value))
    }

    pub(crate) fn set(&self, field: u64, value: u64) -> Result<(), Errno> {
        self.device.write_region(self.index, field, &value.to_ne_bytes()).map(drop)
    }

    /// The parts of some bytes that are one access each: through a mapping, or trapped.
    fn pieces(&self, offset: u64, length: u64) -> Vec<(u64, u64, bool)> {
        let end = offset + length;
        let mut cuts: Vec<u64> =
            self.areas.iter().flat_map(|area| [area.offset, area.offset + area.size]).collect();
        cuts.retain(|cut| (offset + 1..end).contains(cut));
        cuts.push(end);
        let mut at = offset;
        cuts.into_iter()
            .map(|cut| {
                let mapped =
                    self.areas.iter().any(|area| (area.offset..area.offset + area.size).contains(&at));
                let piece = (at, cut - at, mapped);
                at = cut;
                piece
            })
            .collect()
    }

    pub(crate) fn read_data(&self, offset: u64, length: u64) -> Result<Vec<u8>, Errno> {
        let mut data = vec![0; length as usize];
        for (at, count, mapped) in self.pieces(offset, length) {
            let piece = &mut data[(at - offset) as usize..][..count as usize];
            if mapped {
                let page = at & !0xfff;
                let file = self.device.mmap(self.index, page, at + count - page)?;
                file.file().read_exact_at(piece, file.start() + at - page).unwrap();
            } else {
                assert_eq!(self.device.read_region(self.index, at, piece)?, count as usize);
            }
        }
        Ok(data)
    }

    pub(crate) fn write_data(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        for (at, count, mapped) in self.pieces(offset, data.len() as u64) {
            let piece = &data[(at - offset) as usize..][..count as usize];
            if mapped {
                let page = at & !0xfff;
                let file = self.device.mmap(self.index, page, at + count - page)?;
                file.file().write_all_at(piece, file.start() + at - page).unwrap();
            } else {
                assert_eq!(self.device.write_region(self.index, at, piece)?, count as usize);
            }
        }
        Ok(())
    }

    /// One iteration: `None` if nothing is pending.
    pub(crate) fn transaction(&self) -> Result<Option<Vec<u8>>, Errno> {
        if self.get(PENDING_BYTES)? == 0 {
            return Ok(None);
        }
        let (offset, size) = (self.get(DATA_OFFSET)?, self.get(DATA_SIZE)?);
        self.read_data(offset, size).map(Some)
    }

    /// All transactions until nothing is pending.
    pub(crate) fn transactions(&self) -> Result<Vec<Vec<u8>>, Errno> {
        std::iter::from_fn(|| self.transaction().transpose()).collect()
    }

    pub(crate) fn resume(&self, transactions: &[Vec<u8>]) -> Result<(), Errno> {
        for data in transactions {
            let offset = self.get(DATA_OFFSET)?;
            self.write_data(offset, data)?;
            self.set(DATA_SIZE, data.len() as u64)?;
        }
        Ok(())
    }
}
