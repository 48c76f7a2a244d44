//! A card and a vendor that tell what they are asked.

use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::wrap::mediate::{
    Access, MediateCapabilities, MediateOps, Mediated, Mediation, Mediators, Opened, PlainDevice,
};
use whimbrel_device::{
    Container, ContainerSettings, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Group, GroupFile,
    Info, Next, Region, RegionInfoFlags, Translation,
};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;

/// Everything that is called, in order.
pub(crate) type Calls = Arc<Mutex<Vec<String>>>;

/// A card with two regions, one of which can be mapped.
pub(crate) struct Card(pub(crate) Calls);

impl Driver for Card {
    fn info(&self) -> Info {
        let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::RESET;
        Info::new(flags).num_regions(2)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let mut flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        flags.set(RegionInfoFlags::MMAP, index == 1);
        Ok(Region::new(flags, 0x1000))
    }

    fn read_region(
        &mut self,
        _: &Context,
        index: u32,
        _offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        self.0.lock().push(format!("card: read {index}"));
        data.fill(0xcc);
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, index: u32, _offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.0.lock().push(format!("card: write {index}"));
        Ok(data.len())
    }

    fn mmap(&mut self, _: &Context, index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
        self.0.lock().push(format!("card: mmap {index}"));
        Ok(FileOffset::new(page(), offset))
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.0.lock().push("card: reset".into());
        Ok(())
    }

    fn advance(&mut self, _: &Context) -> Next {
        self.0.lock().push("card: advance".into());
        Next::Idle
    }
}

fn page() -> File {
    let file = File::from(memfd_create(c"page", MemfdFlags::empty()).unwrap());
    file.set_len(0x1000).unwrap();
    file
}

/// A vendor that tells what it is asked.
pub(crate) struct Vendor {
    pub(crate) name: &'static str,
    pub(crate) answer: Result<MediateCapabilities, Errno>,
    pub(crate) calls: Calls,
    /// What it makes of accesses to each region; those beyond are passed through.
    pub(crate) accesses: Vec<Access<usize>>,
    /// What it says of the migration region.
    pub(crate) overridden: Option<Region>,
}

impl Vendor {
    pub(crate) fn new(name: &'static str, calls: &Calls) -> Vendor {
        let answer = Ok(MediateCapabilities::empty());
        Vendor { name, answer, calls: calls.clone(), accesses: vec![], overridden: None }
    }
}

impl MediateOps for Vendor {
    fn name(&self) -> &str {
        self.name
    }

    fn open(&self, _device: PlainDevice<'_>) -> Result<Opened, Errno> {
        self.calls.lock().push(format!("{}: open", self.name));
        let mediation = Mediating {
            name: self.name,
            calls: self.calls.clone(),
            accesses: self.accesses.clone(),
            overridden: self.overridden.clone(),
        };
        Ok(Opened::new(self.answer?, mediation))
    }
}

struct Mediating {
    name: &'static str,
    calls: Calls,
    accesses: Vec<Access<usize>>,
    overridden: Option<Region>,
}

impl Mediating {
    fn access(&self, what: &str, index: u32) -> Access<usize> {
        self.calls.lock().push(format!("{}: {what} {index}", self.name));
        self.accesses.get(index as usize).copied().unwrap_or(Access::PassThrough)
    }
}

impl Mediation for Mediating {
    fn release(self: Box<Self>, _device: PlainDevice<'_>) {
        self.calls.lock().push(format!("{}: release", self.name));
    }

    fn region_info(&self, index: u32, region: &mut Region) {
        match &self.overridden {
            Some(overridden) if index == 2 => *region = overridden.clone(),
            _ => {}
        }
    }

    fn read(&mut self, _: PlainDevice<'_>, index: u32, _offset: u64, _data: &mut [u8]) -> Access<usize> {
        self.access("read", index)
    }

    fn write(&mut self, _: PlainDevice<'_>, index: u32, _offset: u64, _data: &[u8]) -> Access<usize> {
        self.access("write", index)
    }

    fn mmap(&mut self, _: PlainDevice<'_>, index: u32, _: u64, _: u64) -> Access<FileOffset> {
        match self.access("mmap", index) {
            Access::PassThrough => Access::PassThrough,
            Access::Answered(answer) => Access::Answered(answer.map(|_| FileOffset::new(page(), 0))),
        }
    }

    fn reset(&mut self, _device: PlainDevice<'_>) {
        self.calls.lock().push(format!("{}: reset", self.name));
    }

    fn advance(&mut self, _device: PlainDevice<'_>) -> Next {
        self.calls.lock().push(format!("{}: advance", self.name));
        Next::Now
    }
}

pub(crate) fn device(calls: &Calls, vendors: &Mediators) -> DeviceFile {
    DeviceFile::new("card", |_| Mediated::new(Card(calls.clone()), vendors.clone()))
}

pub(crate) fn taken(calls: &Calls) -> Vec<String> {
    std::mem::take(&mut *calls.lock())
}

pub(crate) fn in_a_group(device: &DeviceFile) -> GroupFile {
    let container = Container::new(ContainerSettings::default());
    let group = Group::new(Translation::Emulated, vec![device.clone()]).unwrap().open().unwrap();
    group.set_container(&container).unwrap();
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    group
}
